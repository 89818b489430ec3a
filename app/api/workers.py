"""Worker processes: who runs, start one here, let one or all drain."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from app.actions import workers as local_workers
from app.actions.inputs import ByWhom, StartWorker
from app.api import bp
from app.api.routing import Answer, WorkerPath
from app.models import WorkerState, get_worker, list_workers
from app.processes import request_stop
from app.server import access
from app.server.errors import Problem
from app.server.portal import call, current_portal


class WorkerItem(Answer):
    """A worker process, as its last heartbeat describes it."""

    worker_id: int
    domain: str
    host: str
    pid: int
    version: str = Field(description="Of the library")
    app_version: str | None = Field(description="Of the application; null: it does not say")
    command_types: list[str] | None = Field(
        description="What it has handlers for; null: it does not say"
    )
    state: WorkerState
    concurrency: int
    settings: dict[str, Any]
    running: list[Any]
    running_count: int
    rate_per_second: float
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_age_seconds: float
    stop_requested_at: datetime | None
    stop_requested_by: str | None
    stopped_at: datetime | None
    replaced_by: int | None = Field(
        description="The worker that took its place after its process had ended unasked"
    )
    end_reason: str | None = Field(description="How that process ended: SIGKILL, exit code 1")
    completed: int
    failed: int
    retried: int
    moved_to_tsq: int


class WorkerList(Answer):
    """The workers, those that run first."""

    workers: list[WorkerItem]
    can_start: bool = Field(description="Whether this server starts workers")


class StartedWorker(Answer):
    """A process that was started; it registers itself within moments."""

    host: str
    pid: int


class StopRequested(Answer):
    """How many living workers were asked to drain; one that is gone would, should it come back."""

    requested: int


@bp.get("/workers", responses={200: WorkerList})
@access.viewer
def workers() -> Any:
    """The worker processes of all hosts."""
    return WorkerList(
        workers=[WorkerItem.model_validate(row) for row in list_workers()],
        can_start=local_workers.can_start(),
    )


@bp.post("/workers", responses={201: StartedWorker})
@access.operator
def start(body: StartWorker) -> Any:
    """Start one worker process on this host."""
    pid = local_workers.start(body.concurrency)
    return StartedWorker(host=local_workers.own_host(), pid=pid), 201


@bp.post("/workers/<worker_id:worker_id>/stop", responses={202: StopRequested})
@access.operator
def stop(path: WorkerPath, body: ByWhom) -> Any:
    """Ask one worker to drain, on whichever host it runs."""
    worker = get_worker(path.worker_id)
    if worker is None:
        raise Problem(404, "unknown_worker", f"There is no worker {path.worker_id}.")
    if worker.state is WorkerState.STOPPED:
        raise Problem(409, "worker_stopped", "The worker has stopped already.")
    asked = call(request_stop, current_portal().pool, path.worker_id, body.operator)
    return StopRequested(requested=asked), 202


@bp.post("/workers/stop", responses={202: StopRequested})
@access.operator
def stop_all(body: ByWhom) -> Any:
    """Ask every worker to drain."""
    asked = call(request_stop, current_portal().pool, None, body.operator)
    return StopRequested(requested=asked), 202
