"""How far a load-test run is, in the terms of its report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from app.loadtest.runs import EXACT_END_LIMIT, RunState
from app.models.base import db
from app.models.load_test_runs import RunRow, get_run, latest_run
from app.models.statistics import RunProgress, run_progress
from commandbus.models import CommandStatus, Percentiles


@dataclass(frozen=True, slots=True)
class LoadTest:
    """The progress of a run; *pending* includes what is running, *failed* what was cancelled.

    While commands are being generated, those to come count as *pending*, too: the total is what
    was ordered from the first moment, and the run is not over when workers have caught up.
    """

    run_id: UUID | None
    total_commands: int
    completed: int
    failed: int
    in_tsq: int
    pending: int
    progress_percent: int
    elapsed_seconds: float
    estimated_remaining_seconds: float | None
    throughput_per_second: float
    avg_processing_time_ms: float | None
    latency: Percentiles
    started_at: datetime | None
    sent: int = 0
    recorded: RunRow | None = None
    """The run as it is recorded; None for a batch that is no load test."""


NO_RUN = LoadTest(None, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, None, Percentiles(None, None, None), None)


def latest_load_test() -> LoadTest:
    """The progress of the latest run; zeros where there is none."""
    latest = latest_run()
    return NO_RUN if latest is None else _progress_of(*latest) or NO_RUN


def find_load_test(run_id: UUID) -> LoadTest | None:
    """The progress of a run, or None where there is no such run."""
    return _progress_of(run_id, get_run(run_id))


def _progress_of(run_id: UUID, recorded: RunRow | None) -> LoadTest | None:
    progress = run_progress(run_id)
    if recorded is None:
        return None if progress is None else _report(progress, None)
    return _report(progress or _unsent(recorded), recorded)


def elapsed_seconds(run: RunRow, progress: RunProgress | None, now: datetime) -> float:
    """How long a run has lasted, or did; this never becomes less.

    From when it was recorded to now, and at its end to that: by the server's clock alone. While it
    is generated only to the last sign of life, as it may turn out to have ended there.
    """
    if run.outcome is not None:
        return float(run.outcome["elapsed_seconds"])
    if run.state == RunState.GENERATING:
        end = min(now, run.heartbeat_at)
    elif progress is None or not progress.open:
        end = _ended_at(run, progress)
    else:
        end = now
    return max((end - run.created_at).total_seconds(), 0.0)


def _ended_at(run: RunRow, progress: RunProgress | None) -> datetime:
    """When the run was over, of which nothing is open and which is not recorded as ended yet."""
    ended_at: datetime = db.session.scalar(
        sa.text(
            "select load_test_ended_at(:run_id, :began_at, :generated_at, :sent,"
            " :last_processed_at, :exact_limit)"
        ),
        {
            "run_id": run.run_id,
            "began_at": run.created_at,
            "generated_at": run.generated_at,
            "sent": 0 if progress is None else progress.sent,
            "last_processed_at": None if progress is None else progress.last_processed_at,
            "exact_limit": EXACT_END_LIMIT,
        },
    )
    return ended_at


def _unsent(run: RunRow) -> RunProgress:
    """The progress of a run of which no command was sent yet."""
    nothing = Percentiles(None, None, None)
    return RunProgress(
        run_id=run.run_id,
        started_at=run.created_at,
        first_processed_at=None,
        last_processed_at=None,
        now=run.created_at,
        counts=dict.fromkeys(CommandStatus, 0),
        sent=0,
        processed=0,
        retried=0,
        avg_wait_ms=None,
        avg_run_ms=None,
        wait=nothing,
        run=nothing,
        total=nothing,
    )


def _report(run: RunProgress, recorded: RunRow | None) -> LoadTest:
    """What there is to say of *run*; of a batch that is no load test, none is *recorded*.

    While it is generated, the commands to come are pending, too. What remains is estimated from the
    rate so far, and unknown before the first command has ended.
    """
    counts = run.counts
    sent = sum(counts.values())
    done = sent - run.open
    total = sent
    if recorded is not None and recorded.state == RunState.GENERATING:
        total = max(sent, recorded.count)
    pending = total - done
    outcome = None if recorded is None else recorded.outcome
    if recorded is not None:
        elapsed = elapsed_seconds(recorded, run, run.now)
    else:
        # Statistics know whole seconds: it ended somewhere in the last of them.
        end = (run.last_processed_at or run.started_at) + timedelta(seconds=1)
        elapsed = ((run.now if pending else min(end, run.now)) - run.started_at).total_seconds()
    if pending and outcome is None:
        elapsed = math.floor(elapsed * 10) / 10
    rate = round(run.processed / elapsed, 1) if elapsed > 0 else 0.0
    remaining = 0.0 if pending == 0 else (round(pending * elapsed / done, 1) if done else None)
    return LoadTest(
        run_id=run.run_id,
        total_commands=total,
        completed=counts[CommandStatus.COMPLETED],
        failed=counts[CommandStatus.FAILED] + counts[CommandStatus.CANCELLED],
        in_tsq=counts[CommandStatus.IN_TSQ],
        pending=pending,
        progress_percent=100 * done // total if total else 0,
        elapsed_seconds=round(elapsed, 3),
        estimated_remaining_seconds=remaining,
        throughput_per_second=rate if outcome is None else float(outcome["throughput_per_second"]),
        avg_processing_time_ms=run.avg_run_ms,
        latency=run.run,
        started_at=run.started_at if recorded is None else recorded.created_at,
        sent=sent,
        recorded=recorded,
    )
