"""Counts, rates and latencies, for the dashboard and for load tests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.commands import (
    CommandFilters,
    CommandRow,
    command_queues,
    command_rows,
    count_by_status,
)
from app.models.commands import list_commands as _list_commands
from app.models.paging import Key, Window
from app.models.tables import Waiting
from app.models.workers import count_active, count_late
from commandbus.models import CommandStatus, Percentiles

DEPTH_LIMIT = 10_000
RATE_WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Metrics:
    """How the bus is doing now."""

    processing_rate_per_minute: int
    avg_processing_time_ms: float | None
    """Of the handlers' runs in the last minute; None where there were none."""
    queue_depth: int
    oldest_pending_seconds: float | None
    """How long the oldest command in the queues has waited for a worker; None: none waits."""
    active_workers: int
    late_workers: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was processed in a window that ends now."""

    window_seconds: int
    commands_processed: int
    completed: int
    retried: int
    sent: int
    avg_wait_ms: float | None
    avg_run_ms: float | None
    wait: Percentiles
    run: Percentiles
    total: Percentiles

    @property
    def avg_total_ms(self) -> float | None:
        """Waiting and running together: both are averages over the same commands."""
        if self.avg_wait_ms is None or self.avg_run_ms is None:
            return None
        return round(self.avg_wait_ms + self.avg_run_ms, 3)

    @property
    def per_second(self) -> float:
        """Commands processed in a second, on average over the window."""
        return self.commands_processed / self.window_seconds


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One step of a chart; *at* is when it begins."""

    at: datetime
    sent: int
    processed: int
    completed: int
    retried: int
    run: Percentiles
    total: Percentiles


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far the commands of one run are."""

    run_id: UUID
    started_at: datetime
    first_processed_at: datetime | None
    last_processed_at: datetime | None
    now: datetime
    counts: dict[CommandStatus, int]
    sent: int
    processed: int
    retried: int
    avg_wait_ms: float | None
    avg_run_ms: float | None
    wait: Percentiles
    run: Percentiles
    total: Percentiles

    @property
    def open(self) -> int:
        """How many of its commands have not ended."""
        return self.counts[CommandStatus.PENDING] + self.counts[CommandStatus.IN_PROGRESS]


def recent_created(limit: int = 5) -> list[CommandRow]:
    """The commands created last, newest first."""
    return _list_commands(CommandFilters(), Window(limit)).rows


def recent_completed(limit: int = 5) -> list[CommandRow]:
    """The commands completed last, the latest first, also where other events came since."""
    query = sa.text(
        "select completed_at, command_id, domain from command_bus.last_completed(:limit)"
    )
    return command_rows([Key(*row) for row in db.session.execute(query, {"limit": limit})])


def metrics() -> Metrics:
    """How the bus is doing now."""
    last_minute = throughput(RATE_WINDOW_SECONDS)
    return Metrics(
        processing_rate_per_minute=last_minute.commands_processed,
        avg_processing_time_ms=last_minute.avg_run_ms,
        queue_depth=queue_depth(),
        oldest_pending_seconds=oldest_pending_seconds(),
        active_workers=count_active(),
        late_workers=count_late(),
    )


def queue_depth(domain: str | None = None) -> int:
    """How many commands wait in the queues for a worker now.

    Counted up to DEPTH_LIMIT for each queue. Beyond, it is the number of pending commands without
    those that wait for their time.
    """
    depth = 0
    for name, queue in command_queues(domain):
        waiting = sa.select(queue.c.msg_id).where(queue.c.vt <= sa.func.clock_timestamp())
        counted = sa.select(sa.func.count()).select_from(waiting.limit(DEPTH_LIMIT + 1).subquery())
        found = db.session.scalar(counted) or 0
        if found > DEPTH_LIMIT:
            found = max(found, count_by_status(name)[CommandStatus.PENDING] - _not_due(name))
        depth += found
    return depth


def _not_due(domain: str) -> int:
    waiting = sa.select(sa.func.count()).where(
        Waiting.domain == domain, Waiting.due_at > sa.func.clock_timestamp()
    )
    return db.session.scalar(waiting) or 0


def oldest_pending_seconds() -> float | None:
    """How long the oldest message that a worker could take has been in its queue."""
    ages = [
        db.session.scalar(
            sa.select(
                sa.cast(
                    sa.func.extract("epoch", sa.func.clock_timestamp() - queue.c.enqueued_at),
                    sa.Float,
                )
            )
            .where(queue.c.vt <= sa.func.clock_timestamp())
            .order_by(queue.c.msg_id)
            .limit(1)
        )
        for _, queue in command_queues()
    ]
    return max((max(age, 0.0) for age in ages if age is not None), default=None)


def throughput(window_seconds: int, domain: str | None = None) -> Throughput:
    """The rate and the latencies of the last *window_seconds*."""
    row = db.session.execute(
        sa.text("select * from command_bus.throughput(:domain, :window)"),
        {"domain": domain, "window": window_seconds},
    ).one()
    return Throughput(
        window_seconds=window_seconds,
        commands_processed=row.processed,
        completed=row.completed,
        retried=row.retried,
        sent=row.sent,
        avg_wait_ms=_average_ms(row.wait_us, row.processed),
        avg_run_ms=_average_ms(row.run_us, row.processed),
        wait=Percentiles(*row.wait_ms),
        run=Percentiles(*row.run_ms),
        total=Percentiles(*row.total_ms),
    )


def history(
    window_seconds: int, step_seconds: int, domain: str | None = None
) -> list[HistoryPoint]:
    """What happened in each step of a window that ends now, oldest first, empty steps included."""
    rows = db.session.execute(
        sa.text(
            "select * from command_bus.history("
            ":domain, now() - make_interval(secs => :window), now(), :step)"
        ),
        {"domain": domain, "window": window_seconds, "step": step_seconds},
    )
    return [
        HistoryPoint(
            at=row.at,
            sent=row.sent,
            processed=row.processed,
            completed=row.completed,
            retried=row.retried,
            run=Percentiles(*row.run_ms),
            total=Percentiles(*row.total_ms),
        )
        for row in rows
    ]


def run_progress(run_id: UUID) -> RunProgress | None:
    """How far a run is; None where none of its commands was sent yet."""
    row = db.session.execute(
        # The time from before the counts: what they say is open was open then.
        sa.text("select *, statement_timestamp() as now from command_bus.batch_progress(:run_id)"),
        {"run_id": run_id},
    ).one_or_none()
    if row is None:
        return None
    return RunProgress(
        run_id=run_id,
        started_at=row.created_at,
        first_processed_at=row.first_processed_at,
        last_processed_at=row.last_processed_at,
        now=row.now,
        counts={status: getattr(row, status.lower()) for status in CommandStatus},
        sent=row.sent,
        processed=row.processed,
        retried=row.retried,
        avg_wait_ms=_average_ms(row.wait_us, row.processed),
        avg_run_ms=_average_ms(row.run_us, row.processed),
        wait=Percentiles(*row.wait_ms),
        run=Percentiles(*row.run_ms),
        total=Percentiles(*row.total_ms),
    )


def latest_run() -> UUID | None:
    """The run that began last, or None where there is none."""
    run_id: UUID | None = db.session.scalar(
        sa.text(
            """
            select batch_id
            from (
                select batch_id, created_at from public.command_bus_batch
                union all
                select batch_id, min(at) from public.command_bus_delta
                where batch_id is not null
                    and batch_id not in (select batch_id from public.command_bus_batch)
                group by batch_id
                union all
                select run_id, created_at from public.load_test_run
                where state = 'generating' and finished_at is null
            ) as run
            order by created_at desc, batch_id desc
            limit 1
            """
        )
    )
    return run_id


def _average_ms(microseconds: int, count: int) -> float | None:
    return None if count == 0 else round(microseconds / count / 1000, 3)
