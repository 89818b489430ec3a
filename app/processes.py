"""Worker processes that this process starts, and looks after until they end."""

from __future__ import annotations

import os
import signal
import subprocess  # nosec B404
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.config import PROJECT_ROOT, Settings
from commandbus import store

POLL_SECONDS = 0.05
KEPT_FAILURES = 5


@dataclass(frozen=True, slots=True)
class EndedProcess:
    """How a worker process ended: its exit code, or minus the number of the signal."""

    pid: int
    code: int

    def __str__(self) -> str:
        if self.code < 0:
            return f"worker process {self.pid} was ended by {signal.Signals(-self.code).name}"
        return f"worker process {self.pid} ended with exit code {self.code}"


class WorkerProcesses:
    """Real processes of `python -m app.worker`, each in a process group of its own.

    A Ctrl-C in the terminal reaches this process only, which then decides. When this process ends
    in whatever way, its workers notice and drain. Callable from any thread.
    """

    def __init__(self, settings: Settings) -> None:
        """*settings* are those of this process as they were read, before a server was joined."""
        self._settings = settings
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._failed: deque[tuple[float, EndedProcess]] = deque(maxlen=KEPT_FAILURES)

    @property
    def pids(self) -> list[int]:
        """The processes that have not been seen to end."""
        with self._lock:
            return list(self._running)

    def start(
        self, *, domain: str | None = None, flags: Mapping[str, int | float | str] | None = None
    ) -> int:
        """Start one process; returns its pid.

        *flags* are options of `python -m app.worker` by their long names without dashes in front;
        what is left out comes from the environment and the stored configuration.
        """
        command = [sys.executable, "-m", "app.worker", "--processes", "1", "--stop-with-parent"]
        if domain is not None:
            command += ["--domain", domain]
        for name, value in (flags or {}).items():
            command += [f"--{name}", str(value)]
        process = subprocess.Popen(  # nosec B603
            command,
            cwd=PROJECT_ROOT,
            env=self._environment(),
            stdin=subprocess.PIPE,  # never written to: it ends when this process does
            process_group=0,
        )
        with self._lock:
            self._running[process.pid] = process
        return process.pid

    def reap(self) -> list[EndedProcess]:
        """The processes that have ended since the last call."""
        with self._lock:
            ended = [
                EndedProcess(pid, code)
                for pid, process in self._running.items()
                if (code := process.poll()) is not None
            ]
            for each in ended:
                self._forget(each.pid)
                if each.code > 0:
                    self._failed.append((time.monotonic(), each))
        return ended

    def failed_within(self, seconds: float) -> list[EndedProcess]:
        """The latest few that ended by themselves with an error in the last *seconds*."""
        earliest = time.monotonic() - seconds
        with self._lock:
            return [each for at, each in self._failed if at >= earliest]

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to every process that runs; to one that has just ended it does nothing."""
        with self._lock:
            for process in self._running.values():
                process.send_signal(number)

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
        """End every process at once."""
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

    def _forget(self, pid: int) -> None:
        process = self._running.pop(pid)
        if process.stdin is not None:
            process.stdin.close()


async def request_stop(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]], worker_id: int | None, by: str
) -> int:
    """Ask one worker (None: all), on whichever host, to drain; returns how many were asked."""
    async with store.autocommit(pool) as conn:
        return await store.request_stop(conn, worker_id, by)
