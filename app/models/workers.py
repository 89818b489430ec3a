"""Worker processes as their heartbeats describe them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from app.models.base import db
from app.models.tables import WorkerProcess

LATE_AFTER_HEARTBEATS = 3
GONE_AFTER_HEARTBEATS = 10
LISTED = 1_000


class WorkerState(StrEnum):
    """What the age of the last heartbeat says."""

    ALIVE = "alive"
    LATE = "late"
    GONE = "gone"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process."""

    worker_id: int
    domain: str
    host: str
    pid: int
    version: str
    concurrency: int
    settings: dict[str, Any]
    running: list[Any]
    """What it runs now, as far as its heartbeat tells: a few of running_count."""
    running_count: int
    rate_per_second: float
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_age_seconds: float
    heartbeat_seconds: float
    """How often it sends one."""
    stop_requested_at: datetime | None
    stop_requested_by: str | None
    stopped_at: datetime | None
    replaced_by: int | None
    """The worker that took its place after its process had ended unasked."""
    end_reason: str | None
    """How that process ended, as its supervisor saw it."""
    completed: int
    failed: int
    retried: int
    moved_to_tsq: int
    app_version: str | None
    """The version of the application that it runs; None: it does not say."""
    command_types: list[str] | None
    """What it has handlers for; None: it does not say."""

    @property
    def state(self) -> WorkerState:
        """Alive, late, gone or stopped."""
        if self.stopped_at is not None:
            return WorkerState.STOPPED
        if self.replaced_by is not None:
            return WorkerState.GONE
        return state_at(self.heartbeat_age_seconds, self.heartbeat_seconds)

    @property
    def is_active(self) -> bool:
        """Whether it runs, as far as is known: it is alive, or late."""
        return self.state in (WorkerState.ALIVE, WorkerState.LATE)

    @property
    def name(self) -> str:
        """Its name on pages."""
        return f"w-{self.worker_id}"


_AGE = sa.func.extract("epoch", sa.func.clock_timestamp() - WorkerProcess.heartbeat_at)
_COLUMNS = [
    sa.cast(_AGE, sa.Float) if name == "heartbeat_age_seconds" else getattr(WorkerProcess, name)
    for name in WorkerRow.__slots__
]


def state_at(age_seconds: float, heartbeat_seconds: float) -> WorkerState:
    """The state of a worker that has not stopped, by the age of its last heartbeat.

    One of the future was sent before the server's clock went back, and none was sent since.
    """
    age_seconds = abs(age_seconds)
    if age_seconds <= LATE_AFTER_HEARTBEATS * heartbeat_seconds:
        return WorkerState.ALIVE
    if age_seconds <= GONE_AFTER_HEARTBEATS * heartbeat_seconds:
        return WorkerState.LATE
    return WorkerState.GONE


def list_workers(limit: int = LISTED) -> list[WorkerRow]:
    """The workers, those that run first, then the latest to be heard of."""
    query = (
        sa.select(*_COLUMNS)
        .order_by(
            WorkerProcess.stopped_at.is_not(None),
            WorkerProcess.heartbeat_at.desc(),
            WorkerProcess.worker_id.desc(),
        )
        .limit(limit)
    )
    return [WorkerRow(*row) for row in db.session.execute(query)]


def get_worker(worker_id: int) -> WorkerRow | None:
    """One worker, or None."""
    query = sa.select(*_COLUMNS).where(WorkerProcess.worker_id == worker_id)
    row = db.session.execute(query).one_or_none()
    return None if row is None else WorkerRow(*row)


def setting_now(domain: str, name: str, default: int) -> int | None:
    """The value of a setting in the workers of *domain* that are alive.

    None where they differ; *default*, the stored one, where there is none, or none says. Workers
    without a value of their own follow the stored one within a second, so that is theirs.
    """
    late_after = LATE_AFTER_HEARTBEATS * WorkerProcess.heartbeat_seconds
    setting = WorkerProcess.settings[name]
    follows = setting["source"].astext.in_(("stored", "default"))
    query = (
        sa.select(sa.case((follows, sa.null()), else_=setting["value"]))
        .distinct()
        .where(
            WorkerProcess.domain == domain,
            WorkerProcess.stopped_at.is_(None),
            late_after >= _AGE,
            setting["value"].astext.is_not(None),
        )
        .limit(3)
    )
    found = {default if each is None else each for each in db.session.scalars(query)}
    if not found:
        return default
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """How many worker processes there are."""

    active: int
    """Their heartbeats are on time."""
    late: int
    """Their heartbeats are overdue, and they are not gone yet."""


def count_workers(domain: str | None = None) -> WorkerCounts:
    """How many workers have not stopped, by the age of their last heartbeat."""
    is_on_time = _is_heard_of_within(LATE_AFTER_HEARTBEATS)
    query = sa.select(
        sa.func.count().filter(is_on_time), sa.func.count().filter(sa.not_(is_on_time))
    ).where(
        WorkerProcess.stopped_at.is_(None),
        WorkerProcess.replaced_by.is_(None),
        _is_heard_of_within(GONE_AFTER_HEARTBEATS),
    )
    if domain is not None:
        query = query.where(WorkerProcess.domain == domain)
    return WorkerCounts(*db.session.execute(query).one())


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the running workers of a domain say of a command type."""

    active: int
    late: int
    is_known: bool | None
    """Whether one of them has a handler; None: none says so, and some do not say what they have."""
    versions: list[str]
    """The versions of the application that they run."""


def knowledge_of(domain: str, command_type: str) -> Knowledge:
    """How many workers run, whether one has a handler for the type, and which versions they run."""
    is_on_time = _is_heard_of_within(LATE_AFTER_HEARTBEATS)
    types = WorkerProcess.command_types
    query = sa.select(
        sa.func.count().filter(is_on_time),
        sa.func.count().filter(sa.not_(is_on_time)),
        sa.func.bool_or(sa.literal(command_type) == sa.any_(types)),
        sa.func.bool_or(types.is_(None)),
        sa.func.array_agg(sa.distinct(WorkerProcess.app_version)),
    ).where(
        WorkerProcess.domain == domain,
        WorkerProcess.stopped_at.is_(None),
        WorkerProcess.replaced_by.is_(None),
        _is_heard_of_within(GONE_AFTER_HEARTBEATS),
    )
    active, late, knows, is_silent, versions = db.session.execute(query).one()
    return Knowledge(
        active,
        late,
        True if knows else None if is_silent else False,
        sorted(version for version in versions or () if version is not None),
    )


def count_active(domain: str | None = None) -> int:
    """How many worker processes are alive."""
    return count_workers(domain).active


def _is_heard_of_within(heartbeats: int) -> sa.ColumnElement[bool]:
    """The last heartbeat came within the time of so many, or is of the future (see state_at)."""
    return sa.func.abs(_AGE) <= heartbeats * WorkerProcess.heartbeat_seconds
