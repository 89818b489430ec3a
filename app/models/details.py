"""Everything about one command, and why it is where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.audit import EventRow, get_trail
from app.models.base import db
from app.models.explanations import Facts, Heartbeat, Holder, explain
from app.models.tables import Command, Suspect, Waiting
from app.models.test_command import TestCommand
from app.models.trail import Attempt, Timing, attempts_of, last_budget_of, timing_of, troubled_of
from app.models.workers import WorkerRow, count_active, count_late, get_worker, setting_now
from app.testcommand.handlers import COMMAND_TYPE
from commandbus.models import AuditEventType, CommandStatus

_OPERATOR_ENDS = (AuditEventType.OPERATOR_COMPLETE, AuditEventType.OPERATOR_CANCEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandDetail:
    """A command with all that belongs to it."""

    command_id: UUID
    domain: str
    command_type: str
    status: CommandStatus
    attempts: int
    max_attempts: int | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    lease_until: datetime | None
    due_at: datetime | None
    """When a waiting command enters the queue."""
    waits_for: str | None
    """SCHEDULED, RETRY or OPERATOR_RETRY while it waits for its time."""
    budget: int | None
    """How many attempts it could have when it was last claimed; while it is PENDING, how many it
    would have now; None: not known."""
    msg_id: int | None
    worker_id: int | None
    worker: WorkerRow | None
    """The worker that holds it, or held it last."""
    batch_id: UUID | None
    correlation_id: UUID | None
    reply_to: str | None
    last_error_type: str | None
    last_error_code: str | None
    last_error_message: str | None
    payload: Any
    behavior: Any
    """None for a command that is no test command."""
    result: Any
    timing: Timing
    attempt_list: list[Attempt]
    events: list[EventRow]
    explanation: str

    @property
    def last_error_details(self) -> Any:
        """The details of the last error, where they were recorded with it."""
        failed = [each for each in self.attempt_list if each.error_code is not None]
        if not failed or failed[-1].error_code != self.last_error_code:
            return None
        return failed[-1].error_details


def get_command_detail(
    command_id: UUID, domain: str, *, default_max_attempts: int
) -> CommandDetail | None:
    """The command as it stands, or None.

    *default_max_attempts* is the configured budget: what a waiting command without its own is
    likely to get. The past is told from what was recorded then.
    """
    query = (
        sa.select(Command, Waiting.due_at, Waiting.kind, Suspect.command_id,
                  sa.func.clock_timestamp())
        .outerjoin(Waiting, _same(Waiting))
        .outerjoin(Suspect, _same(Suspect))
        .where(Command.command_id == command_id, Command.domain == domain)
        .execution_options(populate_existing=True)
    )  # fmt: skip
    row = db.session.execute(query).one_or_none()
    if row is None:
        return None
    command, due_at, waits_for, suspect, now = row
    events = get_trail(command_id, domain)
    attempts = attempts_of(events)
    worker = None if command.worker_id is None else get_worker(command.worker_id)
    test_command = TestCommand.get(command_id)
    last = _last_operator_event(events)
    if command.status is CommandStatus.PENDING:
        budget = command.max_attempts or setting_now(domain, "max_attempts", default_max_attempts)
    else:
        budget = command.budget or command.max_attempts or last_budget_of(events)
    facts = Facts(
        now=now,
        domain=domain,
        command_type=command.command_type,
        status=command.status,
        attempts=command.attempts,
        budget=budget,
        troubled=troubled_of(events),
        started_at=command.started_at,
        finished_at=command.finished_at,
        lease_until=command.lease_until,
        due_at=due_at,
        waits_for=waits_for,
        is_suspect=suspect is not None,
        holder=None if worker is None else _holder(worker, command),
        workers_alive=count_active(domain),
        workers_late=count_late(domain),
        handled_types=[COMMAND_TYPE],
        error_code=command.last_error_code,
        error_message=command.last_error_message,
        operator=None if last is None else last.details.get("operator"),
        reason=None if last is None else last.details.get("reason"),
    )
    return CommandDetail(
        **{
            name: getattr(command, name)
            for name in CommandDetail.__slots__
            if name in Command.__table__.columns
        },
        budget=budget,
        due_at=due_at,
        waits_for=waits_for,
        worker=worker,
        payload=command.data,
        behavior=None if test_command is None else test_command.behavior,
        timing=timing_of(command.created_at, command.finished_at, attempts),
        attempt_list=attempts,
        events=events,
        explanation=explain(facts),
    )


def _same(table: type[Waiting] | type[Suspect]) -> sa.ColumnElement[bool]:
    return sa.and_(table.command_id == Command.command_id, table.domain == Command.domain)


def _holder(worker: WorkerRow, command: Command) -> Holder:
    state = Heartbeat(worker.state.value)
    return Holder(worker.name, state, worker.heartbeat_age_seconds, _runs(worker, command))


def _runs(worker: WorkerRow, command: Command) -> bool | None:
    """Whether the worker ran the command at its last heartbeat, as far as that told."""
    named = {str(each.get("command_id")) for each in worker.running if isinstance(each, dict)}
    if str(command.command_id) in named:
        return True
    is_older = command.started_at is None or worker.heartbeat_at <= command.started_at
    return None if is_older or worker.running_count > len(worker.running) else False


def _last_operator_event(events: Sequence[EventRow]) -> EventRow | None:
    return next((event for event in reversed(events) if event.event_type in _OPERATOR_ENDS), None)
