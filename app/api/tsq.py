"""The troubleshooting queue: list it, and retry, complete or cancel what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.actions.jobs import Action, CommandKey, Order, choose, start_job
from app.api import answers, bp, schemas
from app.api.body import require_payload_size
from app.api.commands import window
from app.api.problems import domain_of
from app.api.routing import CommandPath
from app.api.tsq_jobs import job_started
from app.models import (
    TroubledFilters,
    domains_of_many,
    list_groups,
    list_rejected,
    list_troubled,
)
from app.server import access
from app.server.portal import call, current_tsq
from commandbus.models import OperatorResult, OperatorVerdict

SKIPPED_SHOWN = 100


@bp.get("/tsq", responses={200: answers.TsqList})
@access.viewer
def list_tsq(query: schemas.TsqQuery) -> Any:
    """The commands that need an operator, the latest arrivals first."""
    page = list_troubled(
        TroubledFilters(
            domain=query.domain,
            command_type=query.command_type,
            error_code=query.error_code,
            group_id=query.group_id,
            q=query.q,
        ),
        window(query),
    )
    return answers.TsqList(
        commands=[answers.TsqItem.model_validate(row) for row in page.rows],
        total=page.total,
        total_is_exact=page.total_is_exact,
        limit=query.limit,
        offset=query.offset,
        next_cursor=page.next_cursor,
        previous_cursor=page.previous_cursor,
    )


@bp.get("/tsq/groups", responses={200: answers.GroupList})
@access.viewer
def groups(query: schemas.GroupsQuery) -> Any:
    """Failures grouped by error code and normalised message, the largest groups first."""
    found, total = list_groups(query.domain, query.limit)
    return answers.GroupList(
        groups=[answers.GroupItem.model_validate(row) for row in found], total=total
    )


@bp.get("/tsq/rejected", responses={200: answers.RejectedList})
@access.viewer
def rejected(query: schemas.RejectedQuery) -> Any:
    """Messages that no command explains, the latest first."""
    found = list_rejected(query.limit, query.before)
    return answers.RejectedList(
        messages=[answers.RejectedItem.model_validate(row) for row in found]
    )


@bp.post("/tsq/<command_id:command_id>/retry", responses={200: answers.CommandState})
@access.operator
def retry(path: CommandPath, query: schemas.DomainQuery, body: schemas.RetryCommand) -> Any:
    """Put a command back to work, its attempts counted anew."""
    domain = domain_of(path.command_id, query.domain)
    done = call(
        current_tsq().operator_retry,
        domain,
        path.command_id,
        body.operator,
        delay_seconds=body.delay_seconds,
    )
    return answers.CommandState.model_validate(done)


@bp.post("/tsq/<command_id:command_id>/undo-retry", responses={200: answers.CommandState})
@access.operator
def undo_retry(path: CommandPath, query: schemas.DomainQuery, body: schemas.UndoRetry) -> Any:
    """Take back a delayed retry whose time has not come."""
    domain = domain_of(path.command_id, query.domain)
    done = call(current_tsq().undo_retry, domain, path.command_id, body.operator)
    return answers.CommandState.model_validate(done)


@bp.post("/tsq/<command_id:command_id>/cancel", responses={200: answers.CommandState})
@access.operator
def cancel_troubled(
    path: CommandPath, query: schemas.DomainQuery, body: schemas.CancelCommand
) -> Any:
    """End a command as CANCELLED."""
    domain = domain_of(path.command_id, query.domain)
    done = call(current_tsq().operator_cancel, domain, path.command_id, body.operator, body.reason)
    return answers.CommandState.model_validate(done)


@bp.post("/tsq/<command_id:command_id>/complete", responses={200: answers.CommandState})
@access.operator
def complete(path: CommandPath, query: schemas.DomainQuery, body: schemas.CompleteCommand) -> Any:
    """End a command as COMPLETED with a result."""
    require_payload_size(body.result_data)
    domain = domain_of(path.command_id, query.domain)
    done = call(
        current_tsq().operator_complete,
        domain,
        path.command_id,
        body.operator,
        body.result_data,
        notes=body.notes,
    )
    return answers.CommandState.model_validate(done)


@bp.post("/tsq/bulk-retry", responses={200: answers.BulkRetried, 202: answers.JobDetailItem})
@access.operator
def bulk_retry(body: schemas.BulkRetry) -> Any:
    """Retry several commands; more than 500 that match a filter in the background (202)."""
    done = _carry_out(_order(Action.RETRY, body, delay_seconds=body.delay_seconds), body)
    if not isinstance(done, _Done):
        return done
    return answers.BulkRetried(
        retried=done.count, skipped=done.skipped, skipped_count=done.skipped_count
    )


@bp.post("/tsq/bulk-cancel", responses={200: answers.BulkCancelled, 202: answers.JobDetailItem})
@access.operator
def bulk_cancel(body: schemas.BulkCancel) -> Any:
    """Cancel several commands; more than 500 that match a filter in the background (202)."""
    done = _carry_out(_order(Action.CANCEL, body, reason=body.reason), body)
    if not isinstance(done, _Done):
        return done
    return answers.BulkCancelled(
        cancelled=done.count, skipped=done.skipped, skipped_count=done.skipped_count
    )


@bp.post("/tsq/bulk-complete", responses={200: answers.BulkCompleted, 202: answers.JobDetailItem})
@access.operator
def bulk_complete(body: schemas.BulkComplete) -> Any:
    """Complete several commands with one result; more than 500 in the background (202)."""
    require_payload_size(body.result_data)
    arguments = {"result": body.result_data, "notes": body.notes}
    done = _carry_out(_order(Action.COMPLETE, body, **arguments), body)
    if not isinstance(done, _Done):
        return done
    return answers.BulkCompleted(
        completed=done.count, skipped=done.skipped, skipped_count=done.skipped_count
    )


@dataclass(slots=True)
class _Done:
    """What became of a set so far."""

    count: int = 0
    skipped_count: int = 0
    skipped: list[answers.Skipped] = field(default_factory=list)

    def skip(self, command_id: UUID, reason: str, status: Any = None) -> None:
        self.skipped_count += 1
        if len(self.skipped) < SKIPPED_SHOWN:
            self.skipped.append(
                answers.Skipped(command_id=command_id, reason=reason, current_status=status)
            )

    def add(self, results: Sequence[OperatorResult]) -> None:
        for result in results:
            if result.verdict is OperatorVerdict.DONE:
                self.count += 1
            elif result.verdict is OperatorVerdict.NOT_FOUND:
                self.skip(result.command_id, "not_found")
            else:
                self.skip(result.command_id, "invalid_state", result.status)


def _order(action: Action, body: schemas.BulkChoice, **arguments: Any) -> Order:
    filters = None if body.filter is None else TroubledFilters(**body.filter.model_dump())
    return Order(action=action, operator=body.operator, filters=filters, **arguments)


def _carry_out(order: Order, body: schemas.BulkChoice) -> _Done | Any:
    """Say what became of each command of a choice, or answer that a job has begun on them."""
    done = _Done()
    if order.filters is None:
        keys = list(_keys_of(body.command_ids or [], done))
    else:
        found = choose(order.filters)
        if found.keys is None:
            return job_started(start_job(order, found))
        keys = found.keys
    for domain, ids in _by_domain(keys):
        done.add(_act(order, domain, ids))
    return done


def _act(order: Order, domain: str, ids: Sequence[UUID]) -> Sequence[OperatorResult]:
    tsq, by = current_tsq(), order.operator
    match order.action:
        case Action.RETRY:
            delay = order.delay_seconds
            return call(tsq.operator_retry_many, domain, ids, by, delay_seconds=delay)
        case Action.CANCEL:
            return call(tsq.operator_cancel_many, domain, ids, by, order.reason)
        case Action.COMPLETE:
            notes = order.notes
            return call(tsq.operator_complete_many, domain, ids, by, order.result, notes=notes)


def _keys_of(command_ids: Sequence[UUID], done: _Done) -> Iterator[CommandKey]:
    domains = domains_of_many(command_ids)
    for command_id in dict.fromkeys(command_ids):
        match domains.get(command_id, []):
            case [domain]:
                yield domain, command_id
            case []:
                done.skip(command_id, "not_found")
            case _:
                done.skip(command_id, "ambiguous_command")


def _by_domain(keys: Iterable[CommandKey]) -> list[tuple[str, list[UUID]]]:
    domains: dict[str, list[UUID]] = {}
    for domain, command_id in keys:
        domains.setdefault(domain, []).append(command_id)
    return sorted(domains.items())
