"""Counts, rates and latencies, for the dashboard and for load tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.commands import CommandRow, command_queues, command_rows, latest_commands
from app.models.paging import Key
from app.models.workers import count_workers
from commandbus.models import CommandStatus, Percentiles

DEPTH_LIMIT = 10_000
RATE_WINDOW_SECONDS = 60

_PARKED = sa.table("command_bus_parked", sa.column("domain"), schema="public")
# What waits by the counters is their sum.
_IN_LANES = [
    sa.table(name, sa.column("domain"), sa.column("waiting"), schema="public")
    for name in ("command_bus_lane_counter", "command_bus_lane_delta")
]


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


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is due and no worker has taken."""

    depth: int
    """In the queues, in lanes, and parked: of a paused type, or without a handler."""
    oldest_seconds: float | None
    """How long the oldest one in a queue has been there; None: there is none."""


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
    return latest_commands(limit)


def recent_completed(limit: int = 5) -> list[CommandRow]:
    """The commands completed last, the latest first, also where other events came since."""
    query = sa.text(
        "select completed_at, command_id, domain from command_bus.last_completed(:limit)"
    )
    return command_rows([Key(*row) for row in db.session.execute(query, {"limit": limit})])


def metrics() -> Metrics:
    """How the bus is doing now."""
    last_minute = throughput(RATE_WINDOW_SECONDS)
    waiting = backlog()
    return Metrics(
        processing_rate_per_minute=last_minute.commands_processed,
        avg_processing_time_ms=last_minute.avg_run_ms,
        queue_depth=waiting.depth,
        oldest_pending_seconds=waiting.oldest_seconds,
        active_workers=count_workers().active,
    )


def queue_depth(domain: str | None = None) -> int:
    """How many commands are due and no worker has taken: the depth of `backlog`."""
    return backlog(domain).depth


def backlog(domain: str | None = None) -> Backlog:
    """What is due and no worker has taken, of all domains or of one.

    Counted up to DEPTH_LIMIT for each queue, and parked ones as well. Beyond that, the depth is the
    number of pending commands without those that wait for their time.
    """
    parts = [_waiting_in(name, queue) for name, queue in command_queues(domain)]
    if not parts:
        return Backlog(0, None)
    depths: dict[str, int] = {}
    ages: list[float] = []
    for name, in_queue, in_lanes, parked, age in db.session.execute(sa.union_all(*parts)):
        depths[name] = in_queue + max(in_lanes, 0) + parked
        if age is not None:
            ages.append(max(age, 0.0))
    deep = [name for name, depth in depths.items() if depth > DEPTH_LIMIT]
    for name, pending in _pending_and_due(deep):
        depths[name] = max(depths[name], pending)
    return Backlog(sum(depths.values()), max(ages, default=None))


def _waiting_in(domain: str, queue: sa.TableClause) -> sa.Select[*tuple[Any, ...]]:
    """The domain, how much is due in its queue, waits in lanes, and is parked, and the age of the
    oldest in the queue.
    """
    is_due = queue.c.vt <= sa.func.clock_timestamp()
    due = sa.select(queue.c.msg_id).where(is_due).limit(DEPTH_LIMIT + 1).subquery()
    parked = sa.select(_PARKED.c.domain).where(_PARKED.c.domain == domain)
    age = sa.func.extract("epoch", sa.func.clock_timestamp() - queue.c.enqueued_at)
    oldest = sa.select(sa.cast(age, sa.Float)).where(is_due).order_by(queue.c.msg_id).limit(1)
    in_lanes = [
        sa.select(sa.func.coalesce(sa.func.sum(table.c.waiting), 0))
        .where(table.c.domain == domain)
        .scalar_subquery()
        for table in _IN_LANES
    ]
    return sa.select(
        sa.literal(domain),
        sa.select(sa.func.count()).select_from(due).scalar_subquery(),
        sa.cast(in_lanes[0] + in_lanes[1], sa.BigInteger),
        sa.select(sa.func.count())
        .select_from(parked.limit(DEPTH_LIMIT + 1).subquery())
        .scalar_subquery(),
        oldest.scalar_subquery(),
    )


def _pending_and_due(domains: Sequence[str]) -> list[tuple[str, int]]:
    """Each domain with its number of pending commands whose time has come, by the counters."""
    if not domains:
        return []
    query = sa.text(
        """
        select given.domain, counted.pending - (
            select count(*)
            from public.command_bus_waiting as waiting
            where waiting.domain = given.domain and waiting.due_at > clock_timestamp()
        )
        from unnest(cast(:domains as text[])) as given (domain),
            command_bus.count_by_status(given.domain) as counted
        """
    )
    return [(name, due) for name, due in db.session.execute(query, {"domains": list(domains)})]


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
    return run_progresses([run_id]).get(run_id)


def run_progresses(run_ids: Sequence[UUID]) -> dict[UUID, RunProgress]:
    """How far several runs are; without those of which no command was sent yet."""
    if not run_ids:
        return {}
    rows = db.session.execute(
        # The time from before the counts: a command that they count as open was open then.
        sa.text(
            """
            select given.run_id, progress.*, statement_timestamp() as now
            from unnest(cast(:run_ids as uuid[])) as given (run_id),
                command_bus.batch_progress(given.run_id) as progress
            """
        ),
        {"run_ids": list(run_ids)},
    )
    return {row.run_id: _progress(row) for row in rows}


def _progress(row: sa.Row[Any]) -> RunProgress:
    return RunProgress(
        run_id=row.run_id,
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


def _average_ms(microseconds: int, count: int) -> float | None:
    return None if count == 0 else round(microseconds / count / 1000, 3)
