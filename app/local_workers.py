"""Worker processes that this web server starts on its own host, for pages and API alike."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import cast

from flask import current_app

from app.config import Settings
from app.errors import Problem
from app.models import WorkerRow
from app.processes import EndedProcess, WorkerProcesses

SHOWN_FAILURE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LocalWorkers:
    """What this server's own processes do that no heartbeat tells yet."""

    starting: tuple[int, ...]
    """The pids of processes that have not registered themselves."""
    failed: tuple[EndedProcess, ...]
    """Those that ended lately although nobody asked them to."""


def can_start() -> bool:
    """Whether this server starts workers: not where it is switched off or others can reach it."""
    settings = _settings()
    return settings.start_workers and not settings.is_exposed


def start(concurrency: int | None = None) -> int:
    """Start one process; returns its pid. It registers itself within moments.

    Raises Problem 403 where this server starts none.
    """
    if not can_start():
        raise Problem(403, "starting_is_off", "This server does not start workers.")
    flags = {} if concurrency is None else {"concurrency": concurrency}
    return _processes().start(flags=flags)


def own_host() -> str:
    """This host as workers name it when they register."""
    return socket.gethostname()


def watch(registered: list[WorkerRow]) -> LocalWorkers:
    """What became of this server's processes, given the workers that have registered."""
    processes = _processes()
    known = {row.pid for row in registered if row.host == own_host()}
    return LocalWorkers(
        starting=tuple(pid for pid in processes.pids if pid not in known),
        failed=tuple(processes.failed_within(SHOWN_FAILURE_SECONDS)),
    )


def _processes() -> WorkerProcesses:
    """The processes that this server looks after; whoever serves it ends them."""
    processes = cast(
        WorkerProcesses,
        current_app.extensions.setdefault("worker_processes", WorkerProcesses(_settings())),
    )
    processes.reap()
    return processes


def _settings() -> Settings:
    return cast(Settings, current_app.config["SETTINGS"])
