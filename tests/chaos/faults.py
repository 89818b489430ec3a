"""Faults: killed workers, killed servers, and the plan of them that a run has to fulfil."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.database.cluster import Cluster
from app.database.postmaster import server_processes
from app.database.urls import socket_url
from tests.chaos.history import History
from tests.programs import ROOT


class Faults:
    """How many faults a run has planned, and how many of them really happened."""

    def __init__(self, planned: int) -> None:
        self.planned = planned
        self.done = 0

    def happened(self) -> None:
        """One more fault hit something."""
        self.done += 1

    def require(self) -> None:
        """Fail unless all happened: a run with fewer faults shows nothing."""
        if self.done < self.planned:
            pytest.fail(f"UNKNOWN: only {self.done} of {self.planned} planned faults happened")


class Fleet:
    """Worker processes, each replaced when it dies, however that happens."""

    def __init__(self, url: str, history: History, log: Path, size: int, **options: Any) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.deaths: list[int] = []
        self._url = url
        self._history = history
        self._log = log
        self._size = size
        self._options = options
        self._closing = False

    def fill(self) -> None:
        """Replace what died."""
        for process in list(self.processes):
            if (code := process.poll()) is not None:
                self.deaths.append(code)
                self.processes.remove(process)
        while len(self.processes) < self._size and not self._closing:
            self.processes.append(self._start())

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.chaos.worker_program",
                    self._url,
                    str(self._history.path),
                    json.dumps(self._options),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def look_after(self) -> None:
        """Replace what dies, for ever."""
        while True:
            self.fill()
            await asyncio.sleep(0.02)

    def kill_one(self, chance: random.Random, faults: Faults) -> None:
        """SIGKILL a worker at random, if one lives."""
        living = [process for process in self.processes if process.poll() is None]
        if living:
            chance.choice(living).send_signal(signal.SIGKILL)
            faults.happened()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every worker that lives."""
        for process in self.processes:
            process.send_signal(number)

    def close(self) -> list[int]:
        """All are stopped, by SIGTERM and at last by SIGKILL; their exit codes."""
        self._closing = True
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self.processes]


@contextmanager
def running(fleet: Fleet) -> Iterator[Fleet]:
    """*fleet* runs, and is looked after on the current loop; all its processes are gone after."""
    task = asyncio.get_running_loop().create_task(fleet.look_after())
    try:
        yield fleet
    finally:
        task.cancel()
        fleet.close()


async def every(seconds: float, times: int, act: Callable[[], object]) -> None:
    """Do something again and again."""
    for _ in range(times):
        await asyncio.sleep(seconds)
        act()


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that do nothing and answer nothing, and go on after."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """A server that runs for this test, in a folder that its account can reach."""
    home = Path(tempfile.mkdtemp(prefix="commandbus-kill-")).resolve()
    own = OwnServer(home)
    own.start()
    try:
        yield own
    finally:
        own.stop()
        shutil.rmtree(home)


class OwnServer:
    """A PostgreSQL server of the test's own, which it may kill."""

    def __init__(self, home: Path) -> None:
        self._cluster = Cluster(home)

    def start(self) -> None:
        """It runs and has recovered."""
        self._cluster.ensure_ready()

    def url(self, database: str) -> str:
        """Where the server listens."""
        return socket_url(self._cluster.socket_dir, 5432, database)

    @property
    def socket(self) -> Path:
        """The server's Unix socket."""
        return self._cluster.socket_dir / ".s.PGSQL.5432"

    def kill(self) -> None:
        """SIGKILL all its processes, the postmaster first; they are gone afterwards.

        One that is only about to go would still count as running, and nobody would start another.
        """
        postmaster = self._cluster.running()
        assert postmaster is not None, "there was no server to kill"
        os.kill(postmaster.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while left := list(server_processes(self._cluster.data_dir)):
            assert time.monotonic() < deadline, f"{left} outlive SIGKILL"
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)

    def frozen(self) -> AbstractContextManager[None]:
        """None of its processes does anything, the postmaster first."""
        postmaster = self._cluster.running()
        assert postmaster is not None, "there was no server to freeze"
        pids = [process.pid for process in server_processes(self._cluster.data_dir)]
        return stopped(postmaster.pid, *(pid for pid in pids if pid != postmaster.pid))

    def stop(self) -> None:
        """It is gone."""
        self._cluster.stop()
