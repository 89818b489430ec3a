"""Counts, rates and latencies."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.actions import load_tests
from app.actions.inputs import WHOLE, DomainName, Id, Query
from app.api import bp
from app.api.answers import CommandItem
from app.api.routing import Answer
from app.models import count_active, count_by_status, statistics
from app.models.load_test import find_load_test, latest_load_test
from app.models.parked import unhandled
from app.server import access
from app.server.clock import now
from app.server.errors import Problem
from app.server.portal import current_portal
from commandbus.models import Percentiles

MAX_WINDOW_SECONDS = 86_400
MAX_POINTS = 1_000


class WindowQuery(Query):
    """A window that ends now."""

    window_seconds: Annotated[int, Field(ge=1, le=MAX_WINDOW_SECONDS), WHOLE] = 60
    domain: DomainName | None = None


class HistoryQuery(Query):
    """A window that ends now, in steps."""

    window_seconds: Annotated[int, Field(ge=1, le=MAX_WINDOW_SECONDS), WHOLE] = 300
    step_seconds: Annotated[int, Field(ge=1, le=MAX_WINDOW_SECONDS), WHOLE] = 5
    domain: DomainName | None = None

    @model_validator(mode="after")
    def _bounded(self) -> HistoryQuery:
        if self.window_seconds > self.step_seconds * MAX_POINTS:
            raise PydanticCustomError(
                "too_many_steps", "At most {most} steps fit in one answer", {"most": MAX_POINTS}
            )
        return self


class RunQuery(Query):
    """Which run; without, the latest."""

    run_id: Id | None = None


class MetricsItem(Answer):
    """How the bus is doing now."""

    processing_rate_per_minute: int
    avg_processing_time_ms: float | None
    queue_depth: int
    oldest_pending_seconds: float | None
    active_workers: int


class UnhandledItem(Answer):
    """Commands of one type that wait, because no running worker has a handler for it."""

    domain: str
    command_type: str
    waiting: int
    waiting_is_exact: bool = Field(description="false: there are more")
    since: datetime


class Stats(Answer):
    """The bus at a glance."""

    counts: dict[str, int]
    recent_created: list[CommandItem]
    recent_completed: list[CommandItem]
    metrics: MetricsItem
    without_handler: list[UnhandledItem]
    last_updated: datetime


class Latency(Answer):
    """Durations in milliseconds, within 2 %; null where nothing was measured."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class AveragedLatency(Latency):
    """Durations in milliseconds, the average exact; null where nothing was measured."""

    avg_ms: float | None


class ThroughputItem(Answer):
    """What was processed in a window that ends now; the latencies are those of the handlers."""

    window_seconds: int
    commands_processed: int
    throughput_per_second: float
    avg_processing_time_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    active_workers: int
    queue_depth: int
    wait: AveragedLatency = Field(description="Everything before the last attempt")
    run: AveragedLatency = Field(description="The last attempt")
    total: AveragedLatency = Field(description="From sent to the end of the last attempt")


class HistoryItem(Answer):
    """One step of the series."""

    at: datetime
    sent: int
    processed: int
    completed: int
    retried: int
    throughput_per_second: float
    run: Latency
    total: Latency


class History(Answer):
    """The series of a chart, oldest first, empty steps included."""

    window_seconds: int
    step_seconds: int
    points: list[HistoryItem]


class LoadTestItem(Answer):
    """How far a run is."""

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
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    started_at: datetime | None


@bp.get("/stats", responses={200: Stats})
@access.viewer
def stats() -> Any:
    """Counts by status, the latest commands, and how the bus is doing."""
    current_portal().fold_soon()
    return Stats(
        counts={status.value: count for status, count in count_by_status().items()},
        recent_created=_items(statistics.recent_created()),
        recent_completed=_items(statistics.recent_completed()),
        metrics=MetricsItem.model_validate(statistics.metrics()),
        without_handler=[UnhandledItem.model_validate(each) for each in unhandled()],
        last_updated=now(),
    )


@bp.get("/stats/throughput", responses={200: ThroughputItem})
@access.viewer
def throughput(query: WindowQuery) -> Any:
    """The rate and the latencies of a window that ends now."""
    current_portal().fold_soon()
    found = statistics.throughput(query.window_seconds, query.domain)
    run = _averaged(found.run, found.avg_run_ms)
    return ThroughputItem(
        window_seconds=found.window_seconds,
        commands_processed=found.commands_processed,
        throughput_per_second=round(found.per_second, 2),
        avg_processing_time_ms=found.avg_run_ms,
        p50_ms=run.p50_ms,
        p95_ms=run.p95_ms,
        p99_ms=run.p99_ms,
        active_workers=count_active(query.domain),
        queue_depth=statistics.queue_depth(query.domain),
        wait=_averaged(found.wait, found.avg_wait_ms),
        run=run,
        total=_averaged(found.total, found.avg_total_ms),
    )


@bp.get("/stats/history", responses={200: History})
@access.viewer
def history(query: HistoryQuery) -> Any:
    """What happened in each step of a window that ends now."""
    points = statistics.history(query.window_seconds, query.step_seconds, query.domain)
    return History(
        window_seconds=query.window_seconds,
        step_seconds=query.step_seconds,
        points=[
            HistoryItem(
                at=point.at,
                sent=point.sent,
                processed=point.processed,
                completed=point.completed,
                retried=point.retried,
                throughput_per_second=round(point.processed / query.step_seconds, 2),
                run=_latency(point.run),
                total=_latency(point.total),
            )
            for point in points
        ],
    )


@bp.get("/stats/load-test", responses={200: LoadTestItem})
@access.viewer
def load_test(query: RunQuery) -> Any:
    """The progress of a run; without run_id of the latest one, zeros where there is none."""
    load_tests.settle()
    report = latest_load_test() if query.run_id is None else find_load_test(query.run_id)
    if report is None:
        raise Problem(404, "unknown_run", f"There is no run {query.run_id}.")
    return LoadTestItem(
        **{
            name: getattr(report, name)
            for name in LoadTestItem.model_fields
            if hasattr(report, name)
        },
        p50_ms=_rounded(report.latency.p50),
        p95_ms=_rounded(report.latency.p95),
        p99_ms=_rounded(report.latency.p99),
    )


def _items(rows: Any) -> list[CommandItem]:
    return [CommandItem.model_validate(row) for row in rows]


def _averaged(percentiles: Percentiles, average: float | None) -> AveragedLatency:
    return AveragedLatency(avg_ms=average, **_latency(percentiles).model_dump())


def _latency(percentiles: Percentiles) -> Latency:
    return Latency(
        p50_ms=_rounded(percentiles.p50),
        p95_ms=_rounded(percentiles.p95),
        p99_ms=_rounded(percentiles.p99),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
