"""Everything about one command, and why it is where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa

from app.models.audit import EventRow, get_trail
from app.models.base import db
from app.models.explanations import Facts, Heartbeat, Holder, explain
from app.models.lanes import LanePlace, lane_place
from app.models.parked import CurrentPause, pause_in_force
from app.models.relations import Effects, Related, causes_of, effects_of
from app.models.tables import CancelRequest, Command, Parked, Suspect, Waiting
from app.models.test_command import TestCommand
from app.models.trail import Attempt, Timing, attempts_of, last_budget_of, timing_of, troubled_of
from app.models.workers import (
    WorkerRow,
    WorkerState,
    get_worker,
    knowledge_of,
    setting_now,
)
from commandbus.models import AuditEventType, CommandStatus

_OPERATOR_ENDS = (AuditEventType.OPERATOR_COMPLETE, AuditEventType.OPERATOR_CANCEL)


@dataclass(frozen=True, kw_only=True)
class CommandDetail:
    """A command with all that belongs to it.

    The fields are of one moment. Everything else is read when it is first used, and once.
    """

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
    recorded_budget: int | None
    """How many attempts it could have when it was last claimed; None: not recorded."""
    parked: str | None
    """NO_HANDLER while it waits for a worker that has a handler, PAUSED for the end of a pause."""
    parked_at: datetime | None
    pause: CurrentPause | None
    """What keeps it from starting, if its domain or its type is paused."""
    cancel_requested_by: str | None
    """Who asks to cancel it while it runs."""
    is_suspect: bool
    """Its worker vanished while it ran, so it will run alone."""
    msg_id: int | None
    worker_id: int | None
    batch_id: UUID | None
    correlation_id: UUID | None
    causation_id: UUID | None
    """The command whose handler sent it; None: somebody else did."""
    headers: Any
    """None: it has none."""
    reply_to: str | None
    lane: str | None
    last_error_type: str | None
    last_error_code: str | None
    last_error_message: str | None
    payload: Any
    result: Any
    events: list[EventRow]
    read_at: datetime
    default_max_attempts: Callable[[], int]

    def complete(self) -> Self:
        """Read everything now; returns itself."""
        for name in ("behavior", "explanation", "budget", "worker", "effects"):
            getattr(self, name)
        return self

    @cached_property
    def behavior(self) -> Any:
        """None for a command that is no test command."""
        test_command = TestCommand.get(self.command_id)
        return None if test_command is None else test_command.behavior

    @cached_property
    def worker(self) -> WorkerRow | None:
        """The worker that holds it, or held it last."""
        return None if self.worker_id is None else get_worker(self.worker_id)

    @cached_property
    def budget(self) -> int | None:
        """How many attempts it could have when it was last claimed; None: not known.

        While it is PENDING, how many it would have now.
        """
        if self.status is not CommandStatus.PENDING:
            return self.recorded_budget or self.max_attempts or last_budget_of(self.events)
        return self._next_budget

    @cached_property
    def _next_budget(self) -> int | None:
        """How many attempts a claim would allow it now; None: not known."""
        if self.max_attempts is not None:
            return self.max_attempts
        return setting_now(self.domain, "max_attempts", self.default_max_attempts())

    @property
    def _is_last_attempt(self) -> bool:
        """Whether the next claim would find no attempt left; asked only where one may come."""
        if self.status is not CommandStatus.IN_PROGRESS or self._is_safely_held:
            return False
        return self._next_budget is not None and self.attempts >= self._next_budget

    @property
    def _is_safely_held(self) -> bool:
        """Whether its worker responds and its lease goes on."""
        responds = self.worker is not None and self.worker.state is WorkerState.ALIVE
        return responds and self.lease_until is not None and self.lease_until > self.read_at

    @cached_property
    def causes(self) -> list[Related]:
        """The command whose handler sent it; none where nobody's did, or it is pruned.

        Where its id is known in several domains, those of all.
        """
        return [] if self.causation_id is None else causes_of(self.causation_id)

    @cached_property
    def effects(self) -> Effects:
        """What its handler sent."""
        return effects_of(self.command_id)

    @cached_property
    def attempt_list(self) -> list[Attempt]:
        """Its attempts, oldest first."""
        return attempts_of(self.events)

    @property
    def timing(self) -> Timing:
        """How long it waited and ran."""
        return timing_of(self.created_at, self.finished_at, self.attempt_list)

    @property
    def last_error_details(self) -> Any:
        """The details of the last error, where they were recorded with it."""
        failed = [each for each in self.attempt_list if each.error_code is not None]
        if not failed or failed[-1].error_code != self.last_error_code:
            return None
        return failed[-1].error_details

    @cached_property
    def place(self) -> LanePlace | None:
        """Where it waits in its lane; None where it does not."""
        if self.lane is None or self.status is not CommandStatus.PENDING:
            return None
        return lane_place(self.command_id, self.domain)

    @cached_property
    def explanation(self) -> str:
        """Why it is where it is, in a sentence."""
        last = _last_operator_event(self.events)
        workers = knowledge_of(self.domain, self.command_type)
        pause = self.pause
        return explain(
            Facts(
                now=self.read_at,
                domain=self.domain,
                command_type=self.command_type,
                status=self.status,
                attempts=self.attempts,
                budget=self.budget,
                is_last_attempt=self._is_last_attempt,
                troubled=troubled_of(self.events),
                cancel_requested_by=self.cancel_requested_by,
                started_at=self.started_at,
                finished_at=self.finished_at,
                lease_until=self.lease_until,
                due_at=self.due_at,
                waits_for=self.waits_for,
                is_suspect=self.is_suspect,
                place=self.place,
                holder=None if self.worker is None else _holder(self.worker, self),
                workers_alive=workers.active,
                workers_late=workers.late,
                parked=self.parked,
                paused_by=None if pause is None else pause.paused_by,
                pause_reason="" if pause is None else pause.reason,
                pause_ends_at=None if pause is None else pause.ends_at,
                is_domain_paused=pause is not None and pause.command_type is None,
                is_known=workers.is_known,
                versions=workers.versions,
                error_code=self.last_error_code,
                error_message=self.last_error_message,
                operator=None if last is None else last.details.get("operator"),
                reason=None if last is None else last.details.get("reason"),
            )
        )


def get_command_detail(
    command_id: UUID, domain: str, *, default_max_attempts: Callable[[], int]
) -> CommandDetail | None:
    """The command as it stands, or None.

    *default_max_attempts* is the configured budget: what a waiting command without its own is
    likely to get. The past is told from what was recorded then.
    """
    pause = pause_in_force()
    query = (
        sa.select(Command, Waiting.due_at, Waiting.kind, Suspect.command_id, Parked.kind,
                  Parked.parked_at, CancelRequest.requested_by, *pause.c,
                  sa.func.clock_timestamp())
        .outerjoin(Waiting, _same(Waiting))
        .outerjoin(Suspect, _same(Suspect))
        .outerjoin(Parked, _same(Parked))
        .outerjoin(CancelRequest, _same(CancelRequest))
        .outerjoin(pause, sa.true())
        .where(Command.command_id == command_id, Command.domain == domain)
        .execution_options(populate_existing=True)
    )  # fmt: skip
    row = db.session.execute(query).one_or_none()
    if row is None:
        return None
    command, due_at, waits_for, suspect, parked, parked_at, requested_by, *paused, now = row
    return CommandDetail(
        **{
            field.name: getattr(command, field.name)
            for field in fields(CommandDetail)
            if field.name in Command.__table__.columns
        },
        due_at=due_at,
        waits_for=waits_for,
        recorded_budget=command.budget,
        parked=parked,
        parked_at=parked_at,
        cancel_requested_by=requested_by,
        pause=None if paused[0] is None else CurrentPause(*paused),
        is_suspect=suspect is not None,
        payload=command.data,
        events=get_trail(command_id, domain),
        read_at=now,
        default_max_attempts=default_max_attempts,
    )


def _same(
    table: type[Waiting] | type[Suspect] | type[Parked] | type[CancelRequest],
) -> sa.ColumnElement[bool]:
    return sa.and_(table.command_id == Command.command_id, table.domain == Command.domain)


def _holder(worker: WorkerRow, command: CommandDetail) -> Holder:
    state = Heartbeat(worker.state.value)
    return Holder(worker.name, state, worker.heartbeat_age_seconds, _runs(worker, command))


def _runs(worker: WorkerRow, command: CommandDetail) -> bool | None:
    """Whether the worker ran the command at its last heartbeat, as far as that told."""
    named = {str(each.get("command_id")) for each in worker.running if isinstance(each, dict)}
    if str(command.command_id) in named:
        return True
    is_older = command.started_at is None or worker.heartbeat_at <= command.started_at
    return None if is_older or worker.running_count > len(worker.running) else False


def _last_operator_event(events: Sequence[EventRow]) -> EventRow | None:
    return next((event for event in reversed(events) if event.event_type in _OPERATOR_ENDS), None)
