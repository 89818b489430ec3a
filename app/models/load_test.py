"""How far a load-test run is, in the terms of its report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.models.statistics import RunProgress
from commandbus.models import CommandStatus, Percentiles


@dataclass(frozen=True, slots=True)
class LoadTest:
    """The progress of a run; *pending* includes what is running, *failed* what was cancelled."""

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


NO_RUN = LoadTest(None, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, None, Percentiles(None, None, None), None)


def load_test_of(run: RunProgress | None) -> LoadTest:
    """The report of *run*; zeros where there is none.

    A finished run has taken the time until its last command ended. What remains is estimated from
    the rate so far, and unknown before the first command has ended.
    """
    if run is None:
        return NO_RUN
    counts = run.counts
    total = sum(counts.values())
    pending = counts[CommandStatus.PENDING] + counts[CommandStatus.IN_PROGRESS]
    done = total - pending
    finished = pending == 0 and run.last_processed_at is not None
    end = run.last_processed_at if finished and run.last_processed_at is not None else run.now
    # Statistics know whole seconds; a run that ended within one took about one.
    elapsed = max((end - run.started_at).total_seconds(), 1.0 if done else 0.0)
    rate = done / elapsed if elapsed > 0 else 0.0
    remaining = 0.0 if pending == 0 else (round(pending / rate, 1) if rate > 0 else None)
    return LoadTest(
        run_id=run.run_id,
        total_commands=total,
        completed=counts[CommandStatus.COMPLETED],
        failed=counts[CommandStatus.FAILED] + counts[CommandStatus.CANCELLED],
        in_tsq=counts[CommandStatus.IN_TSQ],
        pending=pending,
        progress_percent=100 * done // total if total else 0,
        elapsed_seconds=round(elapsed, 1),
        estimated_remaining_seconds=remaining,
        throughput_per_second=round(rate, 1),
        avg_processing_time_ms=run.avg_run_ms,
        latency=run.run,
        started_at=run.started_at,
    )
