"""Attempts and timing, read out of a trail."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from app.models.trail import AttemptOutcome, attempts_of, timing_of
from commandbus.models import AuditEventType

START = datetime(2026, 1, 31, 14, 0, 0, tzinfo=UTC)


@dataclass
class Event:
    event_type: AuditEventType
    timestamp: datetime
    details: dict[str, Any] = field(default_factory=dict)


def trail(*steps: tuple[str, int, dict[str, Any]]) -> list[Event]:
    """Events from (type, milliseconds after the start, details)."""
    return [
        Event(AuditEventType(kind), START + timedelta(milliseconds=at), details)
        for kind, at, details in steps
    ]


def test_each_attempt_has_its_end_and_each_cycle_its_number() -> None:
    events = trail(
        ("SENT", 0, {}),
        ("RECEIVED", 10, {"attempt": 1, "worker_id": 7}),
        ("FAILED", 30, {"error_code": "BUSY", "error_type": "TRANSIENT"}),
        ("RETRY_SCHEDULED", 30, {}),
        ("RECEIVED", 50, {"attempt": 2, "worker_id": 8}),
        ("LEASE_EXPIRED", 150, {}),
        ("RETRY_EXHAUSTED", 150, {}),
        ("MOVED_TO_TSQ", 150, {}),
        ("OPERATOR_RETRY", 200, {}),
        ("RECEIVED", 210, {"attempt": 1, "worker_id": 8}),
        ("LATE_RESULT", 215, {}),
    )

    attempts = attempts_of(events)

    assert [(a.cycle, a.number, a.outcome, a.duration_ms) for a in attempts] == [
        (1, 1, AttemptOutcome.FAILED, 20),
        (1, 2, AttemptOutcome.LEASE_EXPIRED, 100),
        (2, 1, AttemptOutcome.RUNNING, None),
    ]
    assert attempts[0].error_code == "BUSY"


def test_a_retry_that_was_undone_makes_no_new_cycle() -> None:
    attempts = attempts_of(
        trail(
            ("RECEIVED", 10, {"attempt": 1}),
            ("FAILED", 30, {}),
            ("MOVED_TO_TSQ", 30, {}),
            ("OPERATOR_RETRY", 40, {}),
            ("OPERATOR_RETRY_UNDONE", 50, {}),
            ("OPERATOR_RETRY", 60, {}),
            ("RECEIVED", 70, {"attempt": 1}),
            ("COMPLETED", 80, {}),
        )
    )

    assert [attempt.cycle for attempt in attempts] == [1, 2]


def test_waiting_and_running_add_up_to_the_total() -> None:
    attempts = attempts_of(
        trail(
            ("RECEIVED", 10, {"attempt": 1}),
            ("FAILED", 30, {}),
            ("RECEIVED", 50, {"attempt": 2}),
            ("COMPLETED", 100, {}),
        )
    )

    timing = timing_of(START, START + timedelta(milliseconds=100), attempts)

    assert (timing.waiting_ms, timing.running_ms, timing.total_ms) == (30, 70, 100)


def test_a_command_that_never_ran_has_only_waited() -> None:
    timing = timing_of(START, None, [])

    assert (timing.waiting_ms, timing.running_ms, timing.total_ms) == (None, None, None)
