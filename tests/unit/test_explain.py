"""The sentence that says why a command is where it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from app.models.explanations import Facts, Heartbeat, Holder, explain
from app.models.trail import Troubled
from commandbus import CommandStatus

NOW = datetime(2026, 1, 31, 14, 0, 0, tzinfo=UTC)
FACTS = Facts(
    now=NOW,
    domain="test",
    command_type="TestCommand",
    status=CommandStatus.PENDING,
    attempts=1,
    budget=3,
    workers_alive=2,
    is_known=True,
    error_code="BUSY",
    error_message="Try later.",
)
RUNNING = replace(
    FACTS,
    status=CommandStatus.IN_PROGRESS,
    started_at=NOW - timedelta(seconds=3),
    lease_until=NOW + timedelta(seconds=27),
    holder=Holder("w-7", Heartbeat.ALIVE, 1.0),
)
SPENT = Troubled(is_exhausted=True, budget=5)
SOON = NOW + timedelta(seconds=130)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            replace(FACTS, due_at=SOON, waits_for="RETRY"),
            "Attempt 1 failed: BUSY (Try later). Attempt 2 of 3 is due at 14:02:10 UTC.",
        ),
        (
            replace(FACTS, due_at=SOON.astimezone(ZoneInfo("Asia/Tokyo")), waits_for="SCHEDULED"),
            "It is scheduled for 14:02:10 UTC.",
        ),
        (
            replace(FACTS, due_at=SOON, waits_for="SCHEDULED"),
            "It is scheduled for 14:02:10 UTC.",
        ),
        (
            replace(FACTS, due_at=NOW + timedelta(days=40), waits_for="SCHEDULED"),
            "It is scheduled for 2026-03-12 14:00:00 UTC.",
        ),
        (
            replace(FACTS, due_at=SOON, waits_for="RETRY", error_message="No. " * 500),
            f"Attempt 1 failed: BUSY ({('No. ' * 75)[:-1]}…)."
            " Attempt 2 of 3 is due at 14:02:10 UTC.",
        ),
        (
            replace(FACTS, due_at=SOON, waits_for="OPERATOR_RETRY"),
            "An operator retried it; this can be undone until 14:02:10 UTC.",
        ),
        (
            replace(FACTS, workers_alive=0),
            "Attempt 2 of 3 has not started: no worker is running for domain test.",
        ),
        (
            replace(FACTS, command_type="Other", is_known=False, versions=["1.4", "1.5"]),
            "No running worker knows Other; workers of version 1.4 and 1.5 run."
            " It waits for one that does, for attempt 2 of 3.",
        ),
        (
            replace(FACTS, is_known=False, versions=[f"1.{n}" for n in range(9)]),
            "No running worker knows TestCommand; workers of version 1.0, 1.1, 1.2 and 6 others"
            " run. It waits for one that does, for attempt 2 of 3.",
        ),
        (
            replace(FACTS, parked="NO_HANDLER", is_known=False),
            "No running worker knows TestCommand; 2 workers run. It waits for one that does, for"
            " attempt 2 of 3.",
        ),
        (
            replace(FACTS, parked="NO_HANDLER"),
            "It waits for a free worker that knows TestCommand, for attempt 2 of 3.",
        ),
        (
            replace(FACTS, is_suspect=True),
            "Its worker stopped responding while it ran, so attempt 2 of 3 will run alone, on a"
            " worker that runs nothing else.",
        ),
        (
            replace(FACTS, due_at=NOW - timedelta(seconds=1), waits_for="RETRY"),
            "It is queued for attempt 2 of 3; 2 workers for domain test are running.",
        ),
        (
            replace(FACTS, workers_alive=0, workers_late=1),
            "Not started: 1 worker for domain test was running a moment ago, but its heartbeat is"
            " overdue. It waits for attempt 2 of 3.",
        ),
        (
            replace(RUNNING, holder=Holder("w-7", Heartbeat.ALIVE, 1.0, runs_it=False)),
            "Worker w-7 has held attempt 1 of 3 for 3 s and had not started it at its last"
            " heartbeat.",
        ),
        (RUNNING, "Worker w-7 has been running attempt 1 of 3 for 3 s."),
        (
            replace(RUNNING, holder=Holder("w-7", Heartbeat.GONE, 75.0)),
            "Worker w-7 stopped responding 1 min 15 s ago, during attempt 1 of 3."
            " Its lease ends at 14:00:27 UTC, and the next claim after that delivers it again.",
        ),
        (
            replace(RUNNING, holder=Holder("w-7", Heartbeat.GONE, 75.0), is_last_attempt=True),
            "Worker w-7 stopped responding 1 min 15 s ago, during attempt 1 of 3."
            " Its lease ends at 14:00:27 UTC, and the next claim after that moves it to the"
            " troubleshooting queue.",
        ),
        (
            replace(RUNNING, holder=None, lease_until=NOW, is_last_attempt=True),
            "A worker that is no longer known runs attempt 1 of 3. Its lease has ended, so the next"
            " claim moves it to the troubleshooting queue.",
        ),
        (
            replace(RUNNING, lease_until=NOW, is_last_attempt=True),
            "Worker w-7 has been running attempt 1 of 3 for 3 s, longer than its lease; the next"
            " claim moves it to the troubleshooting queue unless its outcome is recorded first.",
        ),
        (
            replace(RUNNING, lease_until=NOW),
            "Worker w-7 has been running attempt 1 of 3 for 3 s, longer than its lease;"
            " the next claim delivers it again unless its outcome is recorded first.",
        ),
        (
            replace(FACTS, status=CommandStatus.COMPLETED, finished_at=NOW),
            "Completed on attempt 1 at 14:00:00 UTC.",
        ),
        (
            replace(FACTS, status=CommandStatus.COMPLETED, operator="ann"),
            "Completed manually by ann.",
        ),
        (
            replace(FACTS, status=CommandStatus.FAILED),
            "A business rule refused it: BUSY (Try later). This is final.",
        ),
        (
            replace(FACTS, status=CommandStatus.IN_TSQ),
            "Attempt 1 failed with a permanent error: BUSY (Try later). It needs an operator.",
        ),
        (
            replace(FACTS, status=CommandStatus.IN_TSQ, attempts=3),
            "All 3 attempts failed: BUSY (Try later). It needs an operator.",
        ),
        (
            replace(FACTS, status=CommandStatus.IN_TSQ, attempts=1, budget=1),
            "Its only attempt failed: BUSY (Try later). It needs an operator.",
        ),
        (
            replace(FACTS, status=CommandStatus.IN_TSQ, attempts=5, budget=5, troubled=SPENT),
            "All 5 attempts failed: BUSY (Try later). It needs an operator.",
        ),
        (
            replace(FACTS, status=CommandStatus.IN_TSQ, budget=1, troubled=Troubled(True, 1)),
            "Its only attempt failed: BUSY (Try later). It needs an operator.",
        ),
        (
            replace(FACTS, status=CommandStatus.IN_TSQ, budget=1, troubled=Troubled(False, 1)),
            "Attempt 1 failed with a permanent error: BUSY (Try later). It needs an operator.",
        ),
        (
            replace(FACTS, status=CommandStatus.IN_TSQ, attempts=2, troubled=Troubled(True, 1)),
            "2 attempts failed, and its budget was 1 by then: BUSY (Try later)."
            " It needs an operator.",
        ),
        (
            replace(FACTS, attempts=2, budget=1, due_at=SOON, waits_for="RETRY"),
            "It has had 2 attempts, and its budget is now 1: the next worker that takes it moves it"
            " to the troubleshooting queue after 14:02:10 UTC. Last error: BUSY (Try later).",
        ),
        (
            replace(FACTS, attempts=1, budget=1),
            "It has had 1 attempt, and its budget is now 1: the next worker that takes it moves it"
            " to the troubleshooting queue.",
        ),
        (
            replace(FACTS, budget=None),
            "It is queued for attempt 2; 2 workers for domain test are running.",
        ),
        (replace(RUNNING, budget=None), "Worker w-7 has been running attempt 1 for 3 s."),
        (
            replace(FACTS, status=CommandStatus.CANCELLED, operator="ann", reason="obsolete"),
            "ann cancelled it: obsolete.",
        ),
    ],
)
def test_each_situation_has_its_sentence(facts: Facts, sentence: str) -> None:
    assert explain(facts) == sentence
