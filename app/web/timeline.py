"""An audit trail as pages show it: grouped by attempt, with the time between its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.models import EventRow, WorkerRow, WorkerState, get_worker
from app.models.trail import Attempt, AttemptOutcome, milliseconds
from commandbus.models import AuditEventType

OUTCOMES = {
    AttemptOutcome.RUNNING: ("Running", "progress"),
    AttemptOutcome.COMPLETED: ("Completed", "completed"),
    AttemptOutcome.FAILED: ("Failed", "failed"),
    AttemptOutcome.LEASE_EXPIRED: ("Lease expired", "tsq"),
    AttemptOutcome.RELEASED: ("Released", "neutral"),
    AttemptOutcome.CANCELLED: ("Cancelled", "cancelled"),
}
"""Label and tone of how an attempt ended."""
NOT_HEARD_OF = ("Not heard from", "tsq")
"""An unfinished attempt whose worker is late, gone, stopped or unknown."""


def outcomes_of(
    attempts: Sequence[Attempt], find_worker: Callable[[int], WorkerRow | None] = get_worker
) -> dict[AttemptOutcome, tuple[str, str]]:
    """OUTCOMES; the last attempt counts as running only while its worker responds."""
    last = attempts[-1] if attempts else None
    if last is None or last.outcome is not AttemptOutcome.RUNNING:
        return OUTCOMES
    worker = None if last.worker_id is None else find_worker(last.worker_id)
    if worker is not None and worker.state is WorkerState.ALIVE:
        return OUTCOMES
    return {**OUTCOMES, AttemptOutcome.RUNNING: NOT_HEARD_OF}


_OPERATOR_EVENTS = (
    AuditEventType.OPERATOR_RETRY,
    AuditEventType.OPERATOR_RETRY_UNDONE,
    AuditEventType.OPERATOR_CANCEL,
    AuditEventType.OPERATOR_COMPLETE,
)

_WORKER_EVENTS = (
    AuditEventType.RECEIVED,
    AuditEventType.LEASE_EXPIRED,
    AuditEventType.LATE_RESULT,
    AuditEventType.RELEASED,
)
"""Events that are about a worker; in the others the worker is the one that received the command."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in its place."""

    event: EventRow
    since_previous_ms: float | None
    summary: list[str]
    """What its details say, in a few words each."""


@dataclass(slots=True)
class Section:
    """Events that belong together."""

    title: str
    attempt: Attempt | None = None
    entries: list[Entry] = field(default_factory=list)


def sections_of(events: Sequence[EventRow], attempts: Sequence[Attempt]) -> list[Section]:
    """The trail in sections: the sending, each attempt, each action of an operator."""
    by_start = {attempt.started_at: attempt for attempt in attempts}
    sections: list[Section] = []
    previous: EventRow | None = None
    for event in events:
        if event.event_type is AuditEventType.RECEIVED:
            attempt = by_start.get(event.timestamp)
            sections.append(Section(_attempt_title(event, attempt), attempt))
        elif event.event_type in _OPERATOR_EVENTS:
            sections.append(Section("Operator"))
        elif not sections:
            sections.append(Section("Sent"))
        since = None if previous is None else milliseconds(previous.timestamp, event.timestamp)
        sections[-1].entries.append(Entry(event, since, summary_of(event)))
        previous = event
    return sections


def total_ms(events: Sequence[EventRow]) -> float | None:
    """From the first event to the last; None without events."""
    return milliseconds(events[0].timestamp, events[-1].timestamp) if events else None


def summary_of(event: EventRow) -> list[str]:
    """What an event's details say, in a few words each."""
    details = event.details
    words: list[str] = []
    if operator := details.get("operator"):
        words.append(f"by {operator}")
    worker = details.get("worker_id")
    if worker and event.event_type in _WORKER_EVENTS:
        words.append(f"worker w-{worker}")
    if event.event_type is AuditEventType.RETRY_SCHEDULED and "delay_ms" in details:
        words.append(f"after {details['delay_ms']} ms")
    if event.event_type is AuditEventType.OPERATOR_RETRY and "delay_seconds" in details:
        words.append(f"after {_plain(details['delay_seconds'])} s")
    if error_code := details.get("error_code"):
        words.append(_joined(error_code, details.get("error_message")))
    if reason := details.get("reason"):
        text = str(reason)
        is_word = event.event_type in (AuditEventType.MOVED_TO_TSQ, AuditEventType.RELEASED)
        words.append(text.replace("_", " ").lower() if is_word else text)
    if waited_for := details.get("waited_for"):
        words.append(f"was put aside: {str(waited_for).replace('_', ' ').lower()}")
    if notes := details.get("notes"):
        words.append(str(notes))
    return words


def _attempt_title(event: EventRow, attempt: Attempt | None) -> str:
    number = event.details.get("attempt")
    title = "Attempt" if number is None else f"Attempt {number}"
    if attempt is not None and attempt.cycle > 1:
        again = attempt.cycle - 1
        retries = "an operator's retry" if again == 1 else f"{again} retries by operators"
        return f"{title}, after {retries}"
    return title


def _joined(code: Any, message: Any) -> str:
    return f"{code}: {message}" if message else str(code)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
