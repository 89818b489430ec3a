"""The embedded server: started by the first process that needs it, stopped by the last.

A server must neither outlive its users nor die under them, however a process ends. Two lock files
beside the data decide, both by flock, which the kernel frees even on SIGKILL. `start.lock` is held
while anyone starts, joins, leaves or stops. Each user of the server holds a share of `users.lock`;
who leaves and can take all of it was the last, and stops the server. A server whose users were
all killed, or that was left running on purpose, runs on until the next one joins and leaves.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from app.database.cluster import PORT, Cluster
from app.database.errors import EmbeddedServerError
from app.database.postmaster import Postmaster
from app.database.urls import DEFAULT_DATABASE, socket_url
from app.settings.private_files import OTHERS, PrivateFileError, make_own_folder, refuse_foreign

logger = logging.getLogger(__name__)

# Starting takes seconds, and so does stopping; a holder that takes longer does neither.
SAY_SECONDS = 5.0
LOCK_SECONDS = 120.0
POLL_SECONDS = 0.02


class EmbeddedServer:
    """The server of one DATA_DIR, seen from one process. Use `join` and `leave`, or `with`."""

    def __init__(self, data_dir: Path) -> None:
        """Nothing is started or written yet."""
        self._cluster = Cluster(Path(os.path.realpath(data_dir)))
        self._users: int | None = None  # the descriptor that holds our share of users.lock
        self._joined_by = 0
        self._has_died = False  # and is not ready again, as far as this process knows

    def __enter__(self) -> EmbeddedServer:
        self.join()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    @property
    def data_dir(self) -> Path:
        """Where PostgreSQL keeps its data."""
        return self._cluster.data_dir

    def join(self) -> None:
        """The server is ready, and stays until this process leaves or ends.

        Creates the data on first use. Waits for another process that is starting the server, and
        as long as the server needs to recover after a crash. Joining twice is harmless.

        Raises EmbeddedServerError with the reason, the end of the server's log included.
        """
        if self._users is not None:
            return
        self._make_home()
        with self._start_lock():
            users = self._open("users.lock")
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
                self._cluster.ensure_ready()
            except BaseException:
                self._give_up(users)
                raise
        self._users = users
        self._joined_by = os.getpid()
        atexit.register(self.leave)

    def leave(self) -> None:
        """This process no longer uses the server; the last one to leave stops it.

        Leaving twice is harmless. A child that was forked while its parent used the server only
        forgets it.
        """
        users, self._users = self._users, None
        if users is None:
            return
        atexit.unregister(self.leave)
        if os.getpid() != self._joined_by or not self._is_current(users):
            os.close(users)
            return
        with self._start_lock():
            self._give_up(users)

    def revive(self, on_death: Callable[[], None]) -> bool:
        """A server that died under its users is ready again; True where it was this call's doing.

        *on_death* hears of it before that. A server that somebody has stopped stays so. Raises
        EmbeddedServerError with the reason.
        """
        if self._users is None or not (self._has_died or self._cluster.has_died()):
            return False
        with self._start_lock():
            # Another user may have been first; a start that failed leaves no trace of the death.
            self._has_died = self._cluster.running() is None and (
                self._has_died or self._cluster.has_died()
            )
            if not self._has_died:
                return False
            on_death()
            self._cluster.ensure_ready()
            self._has_died = False
        return True

    def leave_running(self) -> None:
        """This process no longer uses the server, which runs on: until `stop`, or until a later
        user is the last to leave.
        """
        users, self._users = self._users, None
        if users is not None:
            atexit.unregister(self.leave)
            os.close(users)

    def stop(self, *, force: bool = False) -> bool:
        """The server is stopped; True when it was running.

        Raises EmbeddedServerError when other processes use it, unless *force*.
        """
        if not self._cluster.home.is_dir():
            return False
        with self._start_lock():
            if self._cluster.running() is None:
                return False
            users = self._open("users.lock")
            try:
                if not _try_lock(users) and not force:
                    raise EmbeddedServerError(
                        "The embedded server is in use by another process; end that first, or"
                        " stop the server under it with --force"
                    )
                self._cluster.stop()
            finally:
                os.close(users)
        return True

    def running(self) -> Postmaster | None:
        """The server, if it runs; starts nothing."""
        return self._cluster.running()

    def url(self, database: str = DEFAULT_DATABASE) -> str:
        """A libpq URI for *database*: where the server listens, or would if it ran."""
        postmaster = self.running()
        if postmaster is not None and postmaster.is_ready:
            return socket_url(postmaster.socket_dir, postmaster.port, database)
        return socket_url(self._cluster.socket_dir, PORT, database)

    def _make_home(self) -> None:
        home = self._cluster.home
        try:
            make_own_folder(home)
        except PrivateFileError as exc:
            raise EmbeddedServerError(str(exc)) from exc
        except OSError as exc:
            raise EmbeddedServerError(f"DATA_DIR {home} cannot be created: {exc.strerror}") from exc

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        lock = self._open("start.lock")
        try:
            self._wait_for(lock)
            yield
        finally:
            os.close(lock)

    def _wait_for(self, lock: int) -> None:
        """Take the lock; raises EmbeddedServerError where it is held for long and nothing starts.

        A server that recovers after a crash is busy as long as it lives.
        """
        began = time.monotonic()
        say_at, until = began + SAY_SECONDS, began + LOCK_SECONDS
        while not _try_lock(lock):
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            home = self._cluster.home
            if now >= say_at:
                say_at = until + LOCK_SECONDS
                told = {"data_dir": str(home), "held_by": lock_holder(lock)}
                logger.warning("database_busy", extra=told)
            if now >= until and self._cluster.running() is not None:
                until = now + SAY_SECONDS
            elif now >= until:
                holder = lock_holder(lock)
                raise EmbeddedServerError(
                    f"{home / 'start.lock'} is held by {holder} for {LOCK_SECONDS:g} s, and no"
                    " server starts; end that process and try again"
                )

    def _open(self, name: str) -> int:
        """Our lock file: only this user can open it, and it is not a link."""
        path = self._cluster.home / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                found = os.fstat(descriptor)
                refuse_foreign(path, found)
                if found.st_mode & OTHERS and found.st_uid == os.geteuid():
                    os.fchmod(descriptor, 0o600)
            except BaseException:
                os.close(descriptor)
                raise
        except PrivateFileError as exc:
            raise EmbeddedServerError(str(exc)) from exc
        except OSError as exc:
            reason = "it is a symbolic link" if exc.errno == errno.ELOOP else exc.strerror
            raise EmbeddedServerError(f"{path} cannot be opened: {reason}") from exc
        return descriptor

    def _give_up(self, users: int) -> None:
        """Free our share of users.lock; stop the server if nobody else has one."""
        try:
            if _try_lock(users):
                self._cluster.stop()
        finally:
            os.close(users)

    def _is_current(self, users: int) -> bool:
        """Whether the lock we hold is still the one in the folder, which may have been replaced."""
        try:
            return os.path.samestat(os.fstat(users), (self._cluster.home / "users.lock").stat())
        except FileNotFoundError:
            return False


def lock_holder(descriptor: int) -> str:
    """The processes that hold the lock of a file, for people."""
    inode = str(os.fstat(descriptor).st_ino)
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:  # only Linux has it
        lines = []
    held = [
        fields
        for fields in map(str.split, lines)
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode
    ]
    pids = sorted({int(fields[4]) for fields in held if fields[4].isdigit()} - {os.getpid()})
    return f"process {', '.join(map(str, pids))}" if pids else "another process"


def _try_lock(descriptor: int) -> bool:
    """Take all of a lock file, if that is possible without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
