"""Worker processes that this process starts, and looks after until they end."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess  # nosec B404
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.settings.configuration import PROJECT_ROOT, Settings
from app.settings.signals import stop_signals
from commandbus import CommandBus

POLL_SECONDS = 0.05
# What a worker tells the process that started it, over its standard input: that it works, with its
# id; and that it ends because somebody asked it to.
_WORKS = re.compile(rb"works (\d+);")
_OBEYED = b"obeyed;"


@dataclass(frozen=True, slots=True)
class EndedProcess:
    """How a worker process ended: its exit code, or minus the number of the signal."""

    pid: int
    code: int
    lived_seconds: float = 0.0
    worker_id: int | None = None
    """Its id as a worker, where it came to work."""
    obeyed: bool = False
    """Whether it says itself that it ended because somebody asked it to."""

    @property
    def worked(self) -> bool:
        """Whether it came to work: it had registered itself."""
        return self.worker_id is not None

    @property
    def is_asked(self) -> bool:
        """Whether somebody wanted it to end: a stop request, or a signal that asks for that."""
        return self.obeyed or -self.code in stop_signals()

    @property
    def how(self) -> str:
        """`SIGKILL`, or `exit code 1`."""
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return signal.Signals(-self.code).name
        except ValueError:  # a real-time signal has no name
            return f"signal {-self.code}"

    def __str__(self) -> str:
        verb = "was ended by" if self.code < 0 else "ended with"
        return f"worker process {self.pid} {verb} {self.how}"


@dataclass(slots=True)
class _Running:
    """A process, and the other end of its standard input."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    started: float


class WorkerProcesses:
    """Real processes of `python -m app.worker`, each in a process group of its own.

    A Ctrl-C in the terminal reaches this process only, which then decides. When this process ends
    in whatever way, its workers notice and drain. Callable from any thread.
    """

    def __init__(self, settings: Settings) -> None:
        """*settings* are those of this process as they were read, before a server was joined."""
        self._settings = settings
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}

    @property
    def pids(self) -> list[int]:
        """The processes that have not been seen to end."""
        with self._lock:
            return list(self._running)

    def start(
        self,
        *,
        domain: str | None = None,
        flags: Mapping[str, int | float | str] | None = None,
        replaces: EndedProcess | None = None,
    ) -> int:
        """Start one process; returns its pid.

        *flags* are options of `python -m app.worker` by their long names without dashes in front;
        what is left out comes from the environment and the stored configuration. *replaces*: the
        process whose place it takes. Raises OSError where the system starts none.
        """
        command = [sys.executable, "-m", "app.worker", "--processes", "1", "--stop-with-parent"]
        if domain is not None:
            command += ["--domain", domain]
        for name, value in (flags or {}).items():
            command += [f"--{name}", str(value)]
        if replaces is not None:
            command += ["--replaces", f"{replaces.worker_id}:{replaces.how}"]
        # Never written to here: it ends when this process does. The worker says there how it is.
        line, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # nosec B603
                command,
                cwd=PROJECT_ROOT,
                env=self._environment(),
                stdin=theirs.fileno(),
                process_group=0,
            )
        line.setblocking(False)
        with self._lock:
            self._running[process.pid] = _Running(process, line, time.monotonic())
        return process.pid

    def reap(self) -> list[EndedProcess]:
        """The processes that have ended since the last call."""
        with self._lock:
            codes = {
                pid: code
                for pid, running in self._running.items()
                if (code := running.process.poll()) is not None
            }
            return [_ended(self._running.pop(pid), code) for pid, code in codes.items()]

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to every process that runs; to one that has just ended it does nothing."""
        with self._lock:
            for running in self._running.values():
                running.process.send_signal(number)

    def wait(self, seconds: float) -> list[EndedProcess]:
        """Wait until all have ended, at most *seconds*; returns those that ended meanwhile."""
        deadline = time.monotonic() + seconds
        ended = self.reap()
        while self.pids and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            ended += self.reap()
        return ended

    def stop(self, *, seconds: float = 60.0) -> list[EndedProcess]:
        """Let all processes drain; those that still run after *seconds* are killed."""
        self.send_signal(signal.SIGTERM)
        return self.wait(seconds) + self.kill()

    def kill(self) -> list[EndedProcess]:
        """End every process immediately."""
        self.send_signal(signal.SIGKILL)
        return self.wait(seconds=10.0)

    def _environment(self) -> dict[str, str]:
        """The database is named here, because others can read a command line.

        Without DATABASE_URL each worker joins the embedded server itself, so that the server lives
        as long as the last of them.
        """
        return {
            **os.environ,
            "DATABASE_URL": self._settings.database_url or "",
            "DATA_DIR": str(self._settings.data_dir),
            "LOG_FORMAT": self._settings.log_format.value,
            "LOG_LEVEL": self._settings.log_level,
        }


def tell_that_it_works(worker_id: int) -> None:
    """This process is a worker now; who started it will know."""
    _tell_parent(b"works %d;" % worker_id)


def tell_that_it_obeyed() -> None:
    """This process ends because somebody asked it to; who started it will know."""
    _tell_parent(_OBEYED)


def _tell_parent(word: bytes) -> None:
    with suppress(OSError):
        if stat.S_ISSOCK(os.fstat(0).st_mode):
            os.write(0, word)


def _ended(running: _Running, code: int) -> EndedProcess:
    told = b""
    with running.line as line, suppress(OSError):  # it said nothing
        told = line.recv(256)
    works = _WORKS.search(told)
    return EndedProcess(
        pid=running.process.pid,
        code=code,
        lived_seconds=time.monotonic() - running.started,
        worker_id=None if works is None else int(works[1]),
        obeyed=_OBEYED in told,
    )


async def request_stop(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]], worker_id: int | None, by: str
) -> int:
    """Ask one worker (None: all), on whichever host, to drain; returns how many were asked."""
    return await CommandBus(pool).request_stop(worker_id, by)
