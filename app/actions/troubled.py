"""The one way in which pages and API act on commands that need an operator.

Every action is recorded as a job with its operator, its commands and its result. Up to AT_ONCE
commands are dealt with within the request, and the record and the effect are one transaction. A
larger set goes on in the background (app.actions.jobs). An action that finds its command in
another status is recorded too, with that command as skipped. A filter that matches nothing is not
recorded, and neither is an address that names no command.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.actions import job_store
from app.actions.jobs import create_job, current_runner, record
from app.actions.orders import AMBIGUOUS, NOT_FOUND, Action, CommandKey, Order, Outcome, act
from app.models import (
    TroubledFilters,
    count_troubled,
    domains_of_many,
    queue_moment,
    troubled_keys,
)
from app.models.operator_jobs import JobRow
from app.models.paging import Total
from app.server.portal import call, current_bus, current_tsq
from commandbus import (
    CommandNotFoundError,
    CommandStatus,
    InvalidStateError,
    OperatorResult,
    OperatorVerdict,
    uuid7,
)

AT_ONCE = 500
CHOOSE_SECONDS = 3.0
"""How long a request looks for the commands of a filter before it leaves them to a job."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The commands that match filters at one moment."""

    keys: list[CommandKey] | None
    """None where they are too many to be dealt with at once."""
    total: Total
    filters: TroubledFilters
    """The given ones with the moment: what comes into the queue later is not chosen."""


@dataclass(frozen=True, slots=True)
class Carried:
    """An order that was carried out, or that a job has begun to carry out."""

    job_id: UUID | None
    """None where a filter matched nothing."""
    outcome: Outcome | None
    """None where the job goes on in the background."""


def choose(filters: TroubledFilters) -> Choice:
    """The commands that match *filters*, and how many they are, as far as CHOOSE_SECONDS go."""
    deadline = time.monotonic() + CHOOSE_SECONDS
    if filters.entered_until is None:
        filters = replace(filters, entered_until=queue_moment())
    chosen: list[CommandKey] = []
    cursor: str | None = None
    while len(chosen) <= AT_ONCE:
        keys, cursor = troubled_keys(filters, AT_ONCE + 1, cursor)
        chosen += [(key.domain, key.command_id) for key in keys]
        if cursor is None and len(chosen) <= AT_ONCE:
            return Choice(chosen, Total(len(chosen), is_exact=True), filters)
        if time.monotonic() > deadline:
            return Choice(None, Total(len(chosen), is_exact=False), filters)
    return Choice(None, count_troubled(filters), filters)


def carry_out(order: Order) -> Carried:
    """Carry out *order* and record it.

    At most AT_ONCE commands are dealt with when this returns; more that match a filter are left to
    a job that has begun. Raises InvalidCommandError where the result cannot be stored.
    """
    outcome = Outcome()
    if order.chosen is not None:
        chosen = order.chosen
    elif order.command_ids is not None:
        chosen = _keys_of(order.command_ids, outcome)
    else:
        found = choose(order.wanted_filters)
        if found.keys is None:
            return Carried(_start_job(replace(order, filters=found.filters), found.total), None)
        chosen = found.keys
        if not chosen:
            return Carried(None, outcome)
    return Carried(_at_once(order, chosen, outcome), outcome)


def carry_out_one(
    action: Action,
    key: CommandKey,
    operator: str,
    *,
    reason: str | None = None,
    notes: str | None = None,
    result: object = None,
    delay_seconds: float = 0.0,
) -> OperatorResult:
    """Do *action* with one command and record it, also where the command was skipped.

    Raises CommandNotFoundError and InvalidStateError where it was skipped.
    """
    order = Order(
        action=action,
        operator=operator,
        chosen=[key],
        reason=reason,
        notes=notes,
        result=result,
        delay_seconds=delay_seconds,
    )
    outcome = Outcome()
    _at_once(order, [key], outcome)
    domain, command_id = key
    answer = outcome.last
    if answer is None or answer.verdict is OperatorVerdict.NOT_FOUND:
        raise CommandNotFoundError(domain, command_id)
    if answer.verdict is OperatorVerdict.CONFLICT:
        raise InvalidStateError(command_id, answer.status or CommandStatus.PENDING)
    return answer


def undo(job: JobRow, operator: str) -> Outcome:
    """Take back the retries of *job* that have not begun, and record it as an action of its own."""
    chosen = job.chosen or ()
    outcome = Outcome()
    order = Order(action=Action.UNDO_RETRY, operator=operator, chosen=chosen)
    _at_once(order, chosen, outcome, undone=job.summary.job_id)
    return outcome


def _keys_of(command_ids: Sequence[UUID], outcome: Outcome) -> list[CommandKey]:
    """The keys of the commands with these ids; the others are skipped in *outcome*."""
    domains = domains_of_many(command_ids)
    keys: list[CommandKey] = []
    for command_id in dict.fromkeys(command_ids):
        match domains.get(command_id, []):
            case [domain]:
                keys.append((domain, command_id))
            case []:
                outcome.skip("", command_id, NOT_FOUND)
            case _:
                outcome.skip("", command_id, AMBIGUOUS)
    return keys


def _start_job(order: Order, expected: Total) -> UUID:
    runner, bus, job_id = current_runner(), current_bus(), uuid7()

    async def begin() -> None:
        async with bus.transaction() as conn:
            await create_job(conn, job_id, order, None, expected, runner.id)

    call(begin)
    runner.start(job_id)
    return job_id


def _at_once(
    order: Order, chosen: Sequence[CommandKey], outcome: Outcome, *, undone: UUID | None = None
) -> UUID:
    """Act on *chosen* and record it, in one transaction; *undone* is the job that it takes back."""
    runner, bus, tsq, job_id = current_runner(), current_bus(), current_tsq(), uuid7()
    expected = Total(len(chosen) + sum(outcome.changed.values()), is_exact=True)

    async def at_once() -> None:
        async with bus.transaction() as conn:
            await create_job(conn, job_id, order, chosen, expected, runner.id)
            await act(tsq, conn, order, chosen, outcome)
            await record(conn, job_id, outcome, None)
            if undone is not None and outcome.done:
                await job_store.mark_undone(conn, undone, order.operator)

    call(at_once)
    return job_id
