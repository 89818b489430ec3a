"""Worker processes that this web server starts on its own host, for pages and API alike."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import cast

from flask import current_app

from app.models import WorkerRow
from app.processes import WorkerProcesses
from app.server.errors import Problem
from app.settings.configuration import Settings
from app.worker.supervision import Failure, Supervisor, TooManyWorkersError

SHOWN_FAILURE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LocalWorkers:
    """What this server's own processes do that no heartbeat tells yet."""

    starting: tuple[int, ...]
    """The pids of processes that have not registered themselves."""
    failed: tuple[Failure, ...]
    """Those that ended lately although nobody asked them to, and what became of their places."""


def can_start() -> bool:
    """Whether this server starts workers: not where it is switched off or others can reach it."""
    settings = _settings()
    return settings.start_workers and not settings.is_exposed


def start(concurrency: int | None = None) -> int:
    """Start a worker that is kept running; returns its pid. It registers itself within moments.

    Raises Problem 403 where this server starts none, 409 where it runs as many as it may, and 503
    where the system starts no further process.
    """
    if not can_start():
        raise Problem(403, "starting_is_off", "This server does not start workers.")
    flags = {} if concurrency is None else {"concurrency": concurrency}
    most = _settings().start_workers_max
    try:
        return _supervisor().start(flags=flags, at_most=most)
    except TooManyWorkersError:
        raise Problem(
            409,
            "too_many_workers",
            f"This server runs {most} worker {'process' if most == 1 else 'processes'} already, as"
            " many as START_WORKERS_MAX allows.",
        ) from None
    except OSError as exc:
        raise Problem(
            503, "no_process", f"The system starts no further process: {exc.strerror}."
        ) from exc


def own_host() -> str:
    """This host as workers name it when they register."""
    return socket.gethostname()


def watch(registered: list[WorkerRow]) -> LocalWorkers:
    """What became of this server's processes, given the workers that have registered."""
    supervisor = _supervisor()
    replaced = {row.worker_id for row in registered if row.replaced_by is not None}
    known = {row.pid for row in registered if row.host == own_host() and row.is_active}
    return LocalWorkers(
        starting=tuple(pid for pid in supervisor.pids if pid not in known),
        failed=tuple(
            failure
            for failure in supervisor.failures_within(SHOWN_FAILURE_SECONDS)
            if failure.ended.worker_id not in replaced  # told of as every host's are
        ),
    )


def _supervisor() -> Supervisor:
    """The processes that this server looks after; whoever serves it ends them."""
    return cast(
        Supervisor,
        current_app.extensions.setdefault(
            "worker_processes", Supervisor(WorkerProcesses(_settings()))
        ),
    )


def _settings() -> Settings:
    return cast(Settings, current_app.config["SETTINGS"])
