"""How far a load-test run is, in the terms of its report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.models.load_test_runs import RunRow, get_run
from app.models.statistics import RunProgress, latest_run, run_progress
from app.runs import RunState
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


NO_RUN = LoadTest(None, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, None, Percentiles(None, None, None), None)


def latest_load_test() -> LoadTest:
    """The progress of the latest run; zeros where there is none."""
    run_id = latest_run()
    return (None if run_id is None else find_load_test(run_id)) or NO_RUN


def find_load_test(run_id: UUID) -> LoadTest | None:
    """The progress of a run, or None where there is no such run."""
    recorded, progress = get_run(run_id), run_progress(run_id)
    if recorded is None:
        return None if progress is None else _report(progress, 0, None)
    ordered = recorded.count if recorded.state == RunState.GENERATING else 0
    return _report(progress or _unsent(recorded), ordered, recorded.outcome)


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


def _report(run: RunProgress, ordered: int, outcome: dict[str, Any] | None) -> LoadTest:
    """What there is to say of *run*, of which *ordered* commands are to come at least.

    A finished run has taken the time until its last command ended: that of its recorded *outcome*,
    if any. What remains is estimated from the rate so far, and unknown before the first command
    has ended.
    """
    counts = run.counts
    sent = sum(counts.values())
    done = sent - counts[CommandStatus.PENDING] - counts[CommandStatus.IN_PROGRESS]
    total = max(sent, ordered)
    pending = total - done
    end = (run.last_processed_at or run.started_at) if pending == 0 else run.now
    # Statistics know whole seconds; a run that ended within one took about one.
    elapsed = max((end - run.started_at).total_seconds(), 1.0 if done else 0.0)
    if pending == 0 and outcome is not None:
        elapsed = float(outcome["elapsed_seconds"])
    remaining = 0.0 if pending == 0 else (round(pending * elapsed / done, 1) if done else None)
    return LoadTest(
        run_id=run.run_id,
        total_commands=total,
        completed=counts[CommandStatus.COMPLETED],
        failed=counts[CommandStatus.FAILED] + counts[CommandStatus.CANCELLED],
        in_tsq=counts[CommandStatus.IN_TSQ],
        pending=pending,
        progress_percent=100 * done // total if total else 0,
        elapsed_seconds=round(elapsed, 3 if pending == 0 else 1),
        estimated_remaining_seconds=remaining,
        throughput_per_second=round(run.processed / elapsed, 1) if elapsed > 0 else 0.0,
        avg_processing_time_ms=run.avg_run_ms,
        latency=run.run,
        started_at=run.started_at,
        sent=sent,
    )
