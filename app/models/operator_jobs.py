"""What operators did on the pages, as it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, db
from app.models.tables import Command, Time
from commandbus.models import CommandStatus


class OperatorJob(Base):
    """One action of an operator, on one command or on many."""

    __tablename__ = "operator_job"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    action: Mapped[str]
    operator: Mapped[str]
    arguments: Mapped[Any] = mapped_column(JSONB)
    chosen: Mapped[Any] = mapped_column(JSONB)
    filter: Mapped[Any] = mapped_column(JSONB)
    delay_seconds: Mapped[float]
    expected: Mapped[int]
    expected_is_exact: Mapped[bool]
    entered_until: Mapped[datetime | None] = mapped_column(Time)
    state: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Time)
    finished_at: Mapped[datetime | None] = mapped_column(Time)
    undone_at: Mapped[datetime | None] = mapped_column(Time)
    undone_by: Mapped[str | None]
    runner: Mapped[UUID | None]
    cursor: Mapped[str | None]
    done: Mapped[int]
    changed: Mapped[Any] = mapped_column(JSONB)
    skipped: Mapped[Any] = mapped_column(JSONB)


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job as the list of actions shows it."""

    job_id: UUID
    action: str
    operator: str
    arguments: dict[str, Any]
    filter: dict[str, Any] | None
    delay_seconds: float
    expected: int
    """How many commands it was meant for when it began: exactly, or at least."""
    expected_is_exact: bool
    state: str
    created_at: datetime
    finished_at: datetime | None
    undone_at: datetime | None
    undone_by: str | None
    done: int
    changed: dict[str, int]
    """How many had changed meanwhile, by the status they had."""
    only: tuple[str, str] | None
    """Domain and id where it is about a single command."""

    @property
    def seen(self) -> int:
        """How many commands it has come to."""
        return self.done + sum(self.changed.values())

    @property
    def gone(self) -> int | None:
        """How many of the expected commands it never met; None unless it came to its end.

        A job on a filter looks for its commands chunk by chunk, and no longer finds those that
        others dealt with meanwhile. A lower bound if *expected* is one.
        """
        return max(self.expected - self.seen, 0) if self.state == "finished" else None


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job with everything that its work needs."""

    summary: JobSummary
    chosen: list[tuple[str, UUID]] | None
    entered_until: datetime | None
    """A job on a filter means what had come into the queue by then; None: whatever matches."""
    runner: UUID | None
    """Which process works on it."""
    cursor: str | None
    skipped: list[dict[str, Any]]
    """Of those that had changed, the first hundred: domain, command_id, status."""


_IS_SINGLE = sa.and_(OperatorJob.expected == 1, OperatorJob.chosen.is_not(None))
_DERIVED: dict[str, Any] = {
    # Commands that were named were counted, whichever release recorded the job.
    "expected_is_exact": sa.or_(OperatorJob.expected_is_exact, OperatorJob.chosen.is_not(None)),
    # The list shows where a single action leads, and must not read the ids of the large ones.
    "only": sa.case((_IS_SINGLE, OperatorJob.chosen[0])),
}
_SUMMARY = [
    _DERIVED[name] if name in _DERIVED else getattr(OperatorJob, name)
    for name in JobSummary.__slots__
]


def get_job(job_id: UUID) -> JobRow | None:
    """One job, or None."""
    query = sa.select(
        *_SUMMARY,
        OperatorJob.chosen,
        OperatorJob.entered_until,
        OperatorJob.runner,
        OperatorJob.cursor,
        OperatorJob.skipped,
    ).where(OperatorJob.job_id == job_id)
    row = db.session.execute(query).one_or_none()
    if row is None:
        return None
    *summary, chosen, entered_until, runner, cursor, skipped = row
    keys = None if chosen is None else [(domain, UUID(text)) for domain, text in chosen]
    return JobRow(_summary(summary), keys, entered_until, runner, cursor, skipped)


def list_jobs(limit: int = 50, before: UUID | None = None) -> list[JobSummary]:
    """The jobs, the latest first; *before*: after the one with this id."""
    query = (
        sa.select(*_SUMMARY)
        .order_by(OperatorJob.created_at.desc(), OperatorJob.job_id.desc())
        .limit(limit)
    )
    if before is not None:
        key = sa.select(OperatorJob.created_at).where(OperatorJob.job_id == before)
        last = sa.tuple_(key.scalar_subquery(), sa.literal(before, sa.Uuid()))
        query = query.where(sa.tuple_(OperatorJob.created_at, OperatorJob.job_id) < last)
    return [_summary(list(row)) for row in db.session.execute(query)]


def statuses_of(keys: Sequence[tuple[str, UUID]]) -> Counter[CommandStatus]:
    """How many of the commands, given by domain and id, are in which status now."""
    counts: Counter[CommandStatus] = Counter()
    for wanted in {domain for domain, _ in keys}:
        ids = [command_id for domain, command_id in keys if domain == wanted]
        query = (
            sa.select(Command.status, sa.func.count())
            .where(Command.domain == wanted, Command.command_id.in_(ids))
            .group_by(Command.status)
        )
        for status, count in db.session.execute(query):
            counts[status] += count
    return counts


def _summary(values: list[Any]) -> JobSummary:
    only = values[-1]
    values[-1] = None if only is None else (only[0], only[1])
    return JobSummary(*values)
