"""The troubleshooting queue: list it, and retry, complete or cancel what is in it."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from app.actions import inputs, troubled
from app.actions.addressed import domain_of
from app.actions.orders import Action, Order
from app.api import answers, bp
from app.api.body import require_payload_size
from app.api.commands import paging, window
from app.api.routing import Answer, CommandPath
from app.api.tsq_jobs import job_started, skipped_item
from app.models import (
    TroubledFilters,
    list_groups,
    list_rejected,
    list_troubled,
)
from app.server import access


@bp.get("/tsq", responses={200: answers.TsqList})
@access.viewer
def list_tsq(query: inputs.TsqQuery) -> Any:
    """The commands that need an operator, the latest arrivals first."""
    page = list_troubled(TroubledFilters(**query.filters()), window(query))
    return answers.TsqList(
        commands=[answers.TsqItem.model_validate(row) for row in page.rows],
        **paging(query, page),
    )


@bp.get("/tsq/groups", responses={200: answers.GroupList})
@access.viewer
def groups(query: inputs.GroupsQuery) -> Any:
    """Failures grouped by error code and normalised message, the largest groups first."""
    found, total = list_groups(query.domain, query.limit)
    return answers.GroupList(
        groups=[answers.GroupItem.model_validate(row) for row in found], total=total
    )


@bp.get("/tsq/rejected", responses={200: answers.RejectedList})
@access.viewer
def rejected(query: inputs.RejectedQuery) -> Any:
    """Messages that no command explains, the latest first."""
    found = list_rejected(query.limit, query.before)
    return answers.RejectedList(
        messages=[answers.RejectedItem.model_validate(row) for row in found]
    )


@bp.post("/tsq/<command_id:command_id>/retry", responses={200: answers.CommandState})
@access.operator
def retry(path: CommandPath, query: inputs.DomainQuery, body: inputs.RetryCommand) -> Any:
    """Put a command back to work, its attempts counted anew."""
    return _one(Action.RETRY, path, query, body.operator, delay_seconds=body.delay_seconds)


@bp.post("/tsq/<command_id:command_id>/undo-retry", responses={200: answers.CommandState})
@access.operator
def undo_retry(path: CommandPath, query: inputs.DomainQuery, body: inputs.ByWhom) -> Any:
    """Take back a delayed retry whose time has not come."""
    return _one(Action.UNDO_RETRY, path, query, body.operator)


@bp.post("/tsq/<command_id:command_id>/cancel", responses={200: answers.CommandState})
@access.operator
def cancel_troubled(
    path: CommandPath, query: inputs.DomainQuery, body: inputs.CancelCommand
) -> Any:
    """End a command as CANCELLED."""
    return _one(Action.CANCEL, path, query, body.operator, reason=body.reason)


@bp.post("/tsq/<command_id:command_id>/complete", responses={200: answers.CommandState})
@access.operator
def complete(path: CommandPath, query: inputs.DomainQuery, body: inputs.CompleteCommand) -> Any:
    """End a command as COMPLETED with a result."""
    require_payload_size(body.result_data)
    return _one(
        Action.COMPLETE, path, query, body.operator, result=body.result_data, notes=body.notes
    )


@bp.post("/tsq/bulk-retry", responses={200: answers.BulkRetried, 202: answers.JobDetailItem})
@access.operator
def bulk_retry(body: inputs.BulkRetry) -> Any:
    """Retry several commands; more than 500 that match a filter in the background (202)."""
    return _carried_out(
        _order(Action.RETRY, body, delay_seconds=body.delay_seconds),
        answers.BulkRetried,
        "retried",
    )


@bp.post("/tsq/bulk-cancel", responses={200: answers.BulkCancelled, 202: answers.JobDetailItem})
@access.operator
def bulk_cancel(body: inputs.BulkCancel) -> Any:
    """Cancel several commands; more than 500 that match a filter in the background (202)."""
    return _carried_out(
        _order(Action.CANCEL, body, reason=body.reason),
        answers.BulkCancelled,
        "cancelled",
    )


@bp.post("/tsq/bulk-complete", responses={200: answers.BulkCompleted, 202: answers.JobDetailItem})
@access.operator
def bulk_complete(body: inputs.BulkComplete) -> Any:
    """Complete several commands with one result; more than 500 in the background (202)."""
    require_payload_size(body.result_data)
    return _carried_out(
        _order(Action.COMPLETE, body, result=body.result_data, notes=body.notes),
        answers.BulkCompleted,
        "completed",
    )


def _one(
    action: Action,
    path: CommandPath,
    query: inputs.DomainQuery,
    operator: str,
    **arguments: Any,
) -> answers.CommandState:
    """Do *action* with the command that the address names."""
    key = (domain_of(path.command_id, query.domain), path.command_id)
    done = troubled.carry_out_one(action, key, operator, **arguments)
    return answers.CommandState.model_validate(done)


def _carried_out(order: Order, answer: type[Answer], counted: str) -> Any:
    """Carry out *order*; *answer* says what became of it, or that a job has begun on it.

    *counted*: the answer's name for how many were dealt with.
    """
    carried = troubled.carry_out(order)
    if carried.outcome is None:
        return job_started(cast(UUID, carried.job_id))
    outcome = carried.outcome
    return answer(
        skipped=[skipped_item(each) for each in outcome.skipped],
        skipped_count=sum(outcome.changed.values()),
        **{counted: outcome.done},
    )


def _order(action: Action, body: inputs.BulkChoice, **arguments: Any) -> Order:
    return Order(
        action=action,
        operator=body.operator,
        command_ids=body.command_ids,
        filters=None if body.filter is None else TroubledFilters(**body.filter.model_dump()),
        **arguments,
    )
