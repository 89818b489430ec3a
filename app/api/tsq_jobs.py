"""Jobs: operators' actions on more commands than one request deals with, followed and stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import request

from app.actions import inputs, jobs
from app.actions.orders import AMBIGUOUS, NOT_FOUND
from app.api import answers, bp
from app.api.routing import JobPath
from app.models.operator_jobs import JobRow, get_job, list_jobs
from app.server import access
from app.server.errors import Problem
from commandbus.models import CommandStatus

_REASONS = {NOT_FOUND: "not_found", AMBIGUOUS: "ambiguous_command"}
"""Why a command was skipped where no status was in the way."""


@bp.get("/tsq/jobs", responses={200: answers.JobList})
@access.viewer
def list_operator_jobs(query: inputs.JobsQuery) -> Any:
    """What operators did, alone and with many, the latest first."""
    found = list_jobs(query.limit, query.before)
    return answers.JobList(jobs=[answers.JobItem.model_validate(job) for job in found])


@bp.get("/tsq/jobs/<command_id:job_id>", responses={200: answers.JobDetailItem})
@access.viewer
def show_job(path: JobPath) -> Any:
    """How far a job is."""
    # Whoever asks helps: a job whose process has died goes on in this one.
    jobs.current_runner().adopt()
    return _item(_found(path.job_id))


@bp.post("/tsq/jobs/<command_id:job_id>/stop", responses={200: answers.JobDetailItem})
@access.operator
def stop_job(path: JobPath, body: inputs.Empty) -> Any:  # noqa: ARG001 - read, so that nothing else is accepted
    """Let a job end after the commands under way; what it did stays done."""
    found = _found(path.job_id)
    if not jobs.stop(path.job_id):
        state = found.summary.state
        raise Problem(409, "job_is_over", f"The job is {state}.", current_state=state)
    return _item(_found(path.job_id))


def job_started(job_id: UUID) -> tuple[answers.JobDetailItem, int, dict[str, str]]:
    """The answer to an order that goes on in the background, with where to follow it."""
    location = f"{request.script_root}/api/v1/tsq/jobs/{job_id}"
    return _item(_found(job_id)), 202, {"Location": location}


def _item(row: JobRow) -> answers.JobDetailItem:
    item = answers.JobItem.model_validate(row.summary)
    return answers.JobDetailItem(
        **item.model_dump(), skipped=[skipped_item(each) for each in row.skipped]
    )


def skipped_item(stored: Mapping[str, str]) -> answers.Skipped:
    """A command that was skipped, as a job stores it, as an answer."""
    status = stored["status"]
    reason = _REASONS.get(status, "invalid_state")
    return answers.Skipped(
        command_id=UUID(stored["command_id"]),
        reason=reason,
        current_status=None if status in _REASONS else CommandStatus(status),
    )


def _found(job_id: UUID) -> JobRow:
    row = get_job(job_id)
    if row is None:
        raise Problem(404, "unknown_job", f"There is no job {job_id}.")
    return row
