"""What an audit trail tells of a command: its attempts one by one, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from commandbus.models import AuditEventType


class Event(Protocol):
    """One step of a trail."""

    @property
    def event_type(self) -> AuditEventType: ...
    @property
    def timestamp(self) -> datetime: ...
    @property
    def details(self) -> dict[str, Any]: ...


class AttemptOutcome(StrEnum):
    """How an attempt ended; RUNNING: it did not yet."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    LEASE_EXPIRED = "lease_expired"
    RELEASED = "released"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a command's handler."""

    number: int
    """Counted from 1, and again from 1 after each operator's retry."""
    cycle: int
    """1 for the attempts before any operator's retry, 2 after the first, ...

    A retry that was undone does not count.
    """
    worker_id: int | None
    started_at: datetime
    ended_at: datetime | None
    outcome: AttemptOutcome
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    error_details: Any = None
    """What the handler's error gave, or where it came from."""

    @property
    def duration_ms(self) -> float | None:
        """How long it took; None while it runs."""
        return None if self.ended_at is None else milliseconds(self.started_at, self.ended_at)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a command's time went, in milliseconds; None: not known yet."""

    waiting_ms: float | None
    running_ms: float | None
    total_ms: float | None


_ENDINGS = {
    AuditEventType.COMPLETED: AttemptOutcome.COMPLETED,
    AuditEventType.FAILED: AttemptOutcome.FAILED,
    AuditEventType.LEASE_EXPIRED: AttemptOutcome.LEASE_EXPIRED,
    AuditEventType.RELEASED: AttemptOutcome.RELEASED,
    AuditEventType.OPERATOR_CANCEL: AttemptOutcome.CANCELLED,
}


def milliseconds(start: datetime, end: datetime) -> float:
    """The time between, to the microsecond."""
    return round((end - start).total_seconds() * 1000, 3)


def attempts_of(events: Sequence[Event]) -> list[Attempt]:
    """The attempts in a trail, oldest first."""
    attempts: list[Attempt] = []
    running: Event | None = None
    cycle = 1
    for event in events:
        if event.event_type is AuditEventType.RECEIVED:
            running = event
        elif event.event_type is AuditEventType.OPERATOR_RETRY:
            cycle += 1
        elif event.event_type is AuditEventType.OPERATOR_RETRY_UNDONE:
            cycle -= 1
        elif running is not None and event.event_type in _ENDINGS:
            attempts.append(_attempt(running, event, cycle))
            running = None
    if running is not None:
        attempts.append(_attempt(running, None, cycle))
    return attempts


def timing_of(
    created_at: datetime, finished_at: datetime | None, attempts: Sequence[Attempt]
) -> Timing:
    """How long a command has waited and run so far, and in total once it has ended."""
    ended = [attempt.duration_ms for attempt in attempts if attempt.duration_ms is not None]
    running = round(sum(ended), 3) if ended else None
    total = None if finished_at is None else milliseconds(created_at, finished_at)
    if total is not None:
        return Timing(max(round(total - (running or 0.0), 3), 0.0), running, total)
    first = milliseconds(created_at, attempts[0].started_at) if attempts else None
    return Timing(first, running, None)


def _attempt(received: Event, end: Event | None, cycle: int) -> Attempt:
    number, worker_id = received.details.get("attempt"), received.details.get("worker_id")
    errors = end.details if end is not None else {}
    return Attempt(
        number=number if isinstance(number, int) else 0,
        cycle=cycle,
        worker_id=worker_id if isinstance(worker_id, int) else None,
        started_at=received.timestamp,
        ended_at=None if end is None else end.timestamp,
        outcome=AttemptOutcome.RUNNING if end is None else _ENDINGS[end.event_type],
        error_type=errors.get("error_type"),
        error_code=errors.get("error_code"),
        error_message=errors.get("error_message"),
        error_details=errors.get("error_details"),
    )


@dataclass(frozen=True, slots=True)
class Troubled:
    """Why a command was moved to the troubleshooting queue, as it was recorded then."""

    is_exhausted: bool
    """Its budget was spent; otherwise its error was permanent."""
    budget: int | None
    is_unhandled: bool = False
    """No running worker had a handler for it in time."""


def troubled_of(events: Sequence[Event]) -> Troubled | None:
    """The last move to the troubleshooting queue; None: there is none that says why."""
    budget: int | None = None
    found: Troubled | None = None
    for event in events:
        if event.event_type in (AuditEventType.FAILED, AuditEventType.RETRY_EXHAUSTED):
            given = event.details.get("max_attempts")
            budget = given if isinstance(given, int) else None
        elif event.event_type is AuditEventType.MOVED_TO_TSQ and "reason" in event.details:
            reason = event.details["reason"]
            found = Troubled(reason == "RETRY_EXHAUSTED", budget, reason == "NO_HANDLER")
    return found


def last_budget_of(events: Sequence[Event]) -> int | None:
    """The budget of the last attempt that failed, where that was recorded."""
    for event in reversed(events):
        if event.event_type is AuditEventType.FAILED:
            given = event.details.get("max_attempts")
            return given if isinstance(given, int) else None
    return None
