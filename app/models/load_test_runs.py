"""Load-test runs as they are read. Writing them is in app.loadtest.runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.loadtest.runs import SERIES_POINTS, SILENT_SECONDS, RunState
from app.models.base import Base, db
from app.models.paging import Listing, Source, Window
from app.models.tables import Time


class LoadTestRun(Base):
    """One run of a load test."""

    __tablename__ = "load_test_run"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    origin: Mapped[str]
    started_by: Mapped[str]
    settings: Mapped[Any] = mapped_column(JSONB)
    versions: Mapped[Any] = mapped_column(JSONB)
    state: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Time)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(Time)
    cancel_requested_by: Mapped[str | None]
    generated_count: Mapped[int]
    generation_ms: Mapped[int]
    queue_ms: Mapped[int]
    generated_at: Mapped[datetime | None] = mapped_column(Time)
    heartbeat_at: Mapped[datetime] = mapped_column(Time)
    finished_at: Mapped[datetime | None] = mapped_column(Time)
    outcome: Mapped[Any] = mapped_column(JSONB)
    series: Mapped[Any] = mapped_column(JSONB, deferred=True)


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as it is recorded."""

    run_id: UUID
    name: str | None
    origin: str
    """Where it was started: cli, api or page."""
    started_by: str
    settings: dict[str, Any]
    versions: dict[str, Any]
    state: str
    """generating, running, finished, cancelled or failed."""
    created_at: datetime
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    generated_count: int
    generation_ms: int
    queue_ms: int
    generated_at: datetime | None
    heartbeat_at: datetime
    """The last sign of life of the process that generates it."""
    finished_at: datetime | None
    outcome: dict[str, Any] | None
    """Counts, rates and percentiles, once every command has ended."""

    @property
    def count(self) -> int:
        """How many commands were ordered."""
        return int(self.settings["count"])

    @property
    def conditions(self) -> dict[str, Any]:
        """What two runs must share to be comparable: settings, and versions."""
        return {**self.settings, "versions": self.versions}

    @property
    def is_open(self) -> bool:
        """Whether commands are being generated, or are on their way."""
        return self.finished_at is None

    def is_silent(self, moment: datetime) -> bool:
        """Whether the process that generates it gave no sign of life for too long."""
        silence = moment - self.heartbeat_at
        return self.state == RunState.GENERATING and silence.total_seconds() > SILENT_SECONDS


_COLUMNS = [getattr(LoadTestRun, name) for name in RunRow.__slots__]


def get_run(run_id: UUID) -> RunRow | None:
    """One run, or None."""
    query = sa.select(*_COLUMNS).where(LoadTestRun.run_id == run_id)
    row = db.session.execute(query).one_or_none()
    return None if row is None else RunRow(*row)


def latest_run() -> tuple[UUID, RunRow | None] | None:
    """The batch that began last, with its run if it is a load test; None where there is none."""
    latest = _LATEST.subquery("latest")
    query = sa.select(latest.c.batch_id, *_COLUMNS).outerjoin(
        LoadTestRun, LoadTestRun.run_id == latest.c.batch_id
    )
    row = db.session.execute(query).one_or_none()
    if row is None:
        return None
    batch_id, *columns = row
    return batch_id, None if columns[0] is None else RunRow(*columns)


def list_runs(window: Window) -> Listing[RunRow]:
    """The runs, the latest first."""
    source = Source(LoadTestRun.created_at, LoadTestRun.run_id, sa.literal(""))
    found = source.scan(window)
    ids = [key.command_id for key in found.keys]
    query = sa.select(*_COLUMNS).where(LoadTestRun.run_id.in_(ids))
    rows = {row.run_id: RunRow(*row) for row in db.session.execute(query)}
    total = found.total or source.count()
    return found.listing([rows[run_id] for run_id in ids if run_id in rows], total)


def series_of(run: RunRow) -> dict[str, Any]:
    """What the run's domain did second by second while the run lasted, as columns for a chart.

    Recorded when the run ended; until then read from the bus's counters.
    """
    if run.finished_at is not None:
        recorded = db.session.scalar(
            sa.select(LoadTestRun.series).where(LoadTestRun.run_id == run.run_id)
        )
        if recorded is not None:
            return dict(recorded)
    series: dict[str, Any] = db.session.scalar(
        sa.text(
            "select public.load_test_series(:domain, :began, coalesce(:ended, now()), :points)"
        ),
        {
            "domain": run.settings["domain"],
            "began": run.created_at,
            "ended": run.finished_at,
            "points": SERIES_POINTS,
        },
    )
    return series


_LATEST = sa.text(
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
).columns(sa.column("batch_id", sa.Uuid()))
