"""What an operator wants done with commands, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from app.models import TroubledFilters
from commandbus import (
    CommandNotFoundError,
    InvalidStateError,
    OperatorResult,
    OperatorVerdict,
    TroubleshootingQueue,
    UnknownDomainError,
)

SKIPPED_KEPT = 100
MAX_REASON = 2_000
"""How many characters a reason or notes may have."""
NOT_FOUND = "NOT_FOUND"
AMBIGUOUS = "AMBIGUOUS"
"""Instead of a status: several domains have a command with this id."""
UNDO_SECONDS = 10.0
"""How long a retry from a page waits and can be undone."""

Connection = AsyncConnection[TupleRow]
CommandKey = tuple[str, UUID]
"""Domain and id."""


class Action(StrEnum):
    """What an operator can do with commands."""

    RETRY = "retry"
    COMPLETE = "complete"
    CANCEL = "cancel"
    CANCEL_PENDING = "cancel_pending"
    UNDO_RETRY = "undo_retry"
    REQUEST_CANCEL = "request_cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An action, who ordered it, and its commands: by key, by id alone, or by a filter."""

    action: Action
    operator: str
    chosen: Sequence[CommandKey] | None = None
    command_ids: Sequence[UUID] | None = None
    filters: TroubledFilters | None = None
    reason: str | None = None
    notes: str | None = None
    result: Any = None
    delay_seconds: float = 0.0
    """How long each retry waits before a worker may take it."""

    @property
    def wanted_filters(self) -> TroubledFilters:
        """The filters. Raises ValueError for an order that names its commands."""
        if self.filters is None:
            raise ValueError("the order names its commands")
        return self.filters

    @property
    def arguments(self) -> dict[str, Any]:
        """The action's other arguments, as they are stored."""
        match self.action:
            case Action.CANCEL | Action.CANCEL_PENDING | Action.REQUEST_CANCEL:
                return {"reason": self.reason}
            case Action.COMPLETE:
                return {"result": self.result, "notes": self.notes}
            case Action.RETRY | Action.UNDO_RETRY:
                return {}


@dataclass(slots=True)
class Outcome:
    """What became of a set of commands."""

    done: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    """How many were skipped, by the status that was in the way."""
    skipped: list[dict[str, str]] = field(default_factory=list)
    """The first SKIPPED_KEPT of those: domain, command_id, status."""
    last: OperatorResult | None = None
    """The answer for the last command."""

    def add(self, domain: str, results: Iterable[OperatorResult]) -> None:
        """Count the answers for commands of *domain*."""
        for result in results:
            self.last = result
            if result.verdict is OperatorVerdict.DONE:
                self.done += 1
            else:
                status = NOT_FOUND if result.status is None else result.status.value
                self.skip(domain, result.command_id, status)

    def skip(self, domain: str, command_id: UUID, status: str) -> None:
        """Count a command on which nothing was done; *domain* is empty where it is not known."""
        self.changed[status] += 1
        if len(self.skipped) < SKIPPED_KEPT:
            self.skipped.append({"domain": domain, "command_id": str(command_id), "status": status})


async def act(
    tsq: TroubleshootingQueue,
    conn: Connection,
    order: Order,
    chosen: Iterable[CommandKey],
    outcome: Outcome,
) -> None:
    """Do with *chosen* what *order* says, in the transaction of *conn*; adds to *outcome*."""
    domains: dict[str, list[UUID]] = {}
    for domain, command_id in sorted(set(chosen)):
        domains.setdefault(domain, []).append(command_id)
    for domain, ids in domains.items():
        try:
            results = await _act_in(tsq, conn, order, domain, ids)
        except UnknownDomainError:  # deleted since the commands were chosen
            results = [OperatorResult(each, OperatorVerdict.NOT_FOUND, None) for each in ids]
        outcome.add(domain, results)


async def _act_in(
    tsq: TroubleshootingQueue, conn: Connection, order: Order, domain: str, ids: Sequence[UUID]
) -> Sequence[OperatorResult]:
    by = order.operator
    match order.action:
        case Action.RETRY:
            delay = order.delay_seconds
            return await tsq.operator_retry_many(domain, ids, by, delay_seconds=delay, conn=conn)
        case Action.CANCEL:
            return await tsq.operator_cancel_many(domain, ids, by, order.reason, conn=conn)
        case Action.COMPLETE:
            return await tsq.operator_complete_many(
                domain, ids, by, order.result, notes=order.notes, conn=conn
            )
        case Action.UNDO_RETRY:
            return await tsq.undo_retry_many(domain, ids, by, conn=conn)
        case Action.CANCEL_PENDING:
            cancel = tsq.cancel_pending
            return [await _cancel_one(cancel, conn, order, domain, each) for each in ids]
        case Action.REQUEST_CANCEL:
            cancel = tsq.request_cancel
            return [await _cancel_one(cancel, conn, order, domain, each) for each in ids]


async def _cancel_one(
    cancel: Callable[..., Awaitable[OperatorResult]],
    conn: Connection,
    order: Order,
    domain: str,
    command_id: UUID,
) -> OperatorResult:
    try:
        return await cancel(domain, command_id, order.operator, order.reason, conn=conn)
    except CommandNotFoundError:
        return OperatorResult(command_id, OperatorVerdict.NOT_FOUND, None)
    except InvalidStateError as exc:
        return OperatorResult(command_id, OperatorVerdict.CONFLICT, exc.current_status)
