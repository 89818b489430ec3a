"""The tables as SQLAlchemy knows them. Only reading goes through these classes.

The tables of the bus are written by the functions of schema command_bus, those of the application
by the stores.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base
from commandbus.models import AuditEventType, CommandStatus

Status = sa.Enum(CommandStatus, name="command_status", schema="command_bus", create_type=False)
EventType = sa.Enum(AuditEventType, name="audit_event", schema="command_bus", create_type=False)
Time = sa.DateTime(timezone=True)


class Command(Base):
    """A command as it stands."""

    __tablename__ = "command_bus_command"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    command_type: Mapped[str]
    status: Mapped[CommandStatus] = mapped_column(Status)
    attempts: Mapped[int]
    max_attempts: Mapped[int | None]
    budget: Mapped[int | None] = mapped_column("claimed_budget")
    created_at: Mapped[datetime] = mapped_column(Time)
    updated_at: Mapped[datetime] = mapped_column(Time)
    started_at: Mapped[datetime | None] = mapped_column(Time)
    finished_at: Mapped[datetime | None] = mapped_column(Time)
    lease_until: Mapped[datetime | None] = mapped_column(Time)
    msg_id: Mapped[int | None]
    worker_id: Mapped[int | None]
    batch_id: Mapped[UUID | None]
    correlation_id: Mapped[UUID | None]
    causation_id: Mapped[UUID | None]
    headers: Mapped[Any] = mapped_column(JSONB)
    reply_to: Mapped[str | None]
    lane: Mapped[str | None]
    data: Mapped[Any] = mapped_column(JSONB)
    result: Mapped[Any] = mapped_column(JSONB)
    last_error_type: Mapped[str | None]
    last_error_code: Mapped[str | None]
    last_error_message: Mapped[str | None]


class AuditEntry(Base):
    """One step in the life of a command."""

    __tablename__ = "command_bus_audit"

    audit_id: Mapped[int] = mapped_column(primary_key=True)
    command_id: Mapped[UUID]
    domain: Mapped[str]
    event_type: Mapped[AuditEventType] = mapped_column(EventType)
    created_at: Mapped[datetime] = mapped_column(Time)
    msg_id: Mapped[int | None]
    worker_id: Mapped[int | None]
    attempt: Mapped[int | None]
    details: Mapped[Any] = mapped_column(JSONB)


class Waiting(Base):
    """A command whose time has not come."""

    __tablename__ = "command_bus_waiting"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    due_at: Mapped[datetime] = mapped_column(Time)
    kind: Mapped[str]


class Laned(Base):
    """A command that waits for its turn in its lane."""

    __tablename__ = "command_bus_lane"

    domain: Mapped[str] = mapped_column(primary_key=True)
    lane_group: Mapped[str] = mapped_column(primary_key=True)
    lane: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    command_id: Mapped[UUID]


class Suspect(Base):
    """A command that may have killed its worker and is run alone."""

    __tablename__ = "command_bus_suspect"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    parked_at: Mapped[datetime] = mapped_column(Time)


class Parked(Base):
    """A command that is due and that no worker may take now."""

    __tablename__ = "command_bus_parked"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    command_type: Mapped[str]
    kind: Mapped[str]
    parked_at: Mapped[datetime] = mapped_column(Time)


class Pause(Base):
    """A pause of a domain, or of one command type of it."""

    __tablename__ = "command_bus_pause"

    pause_id: Mapped[int] = mapped_column(primary_key=True)
    domain: Mapped[str]
    command_type: Mapped[str | None]
    reason: Mapped[str]
    paused_by: Mapped[str]
    ends_at: Mapped[datetime | None] = mapped_column(Time)
    ended_at: Mapped[datetime | None] = mapped_column(Time)


class CancelRequest(Base):
    """An operator asks to cancel what runs."""

    __tablename__ = "command_bus_cancel_request"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime] = mapped_column(Time)
    requested_by: Mapped[str]


class Troubled(Base):
    """A command in the troubleshooting queue."""

    __tablename__ = "command_bus_tsq"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    command_type: Mapped[str]
    entered_at: Mapped[datetime] = mapped_column(Time)
    created_at: Mapped[datetime] = mapped_column(Time)
    first_failed_at: Mapped[datetime] = mapped_column(Time)
    last_failed_at: Mapped[datetime] = mapped_column(Time)
    group_id: Mapped[UUID]
    batch_id: Mapped[UUID | None]
    correlation_id: Mapped[UUID | None]
    attempts: Mapped[int]
    error_type: Mapped[str]
    error_code: Mapped[str]
    error_message: Mapped[str]


class TroubledGroup(Base):
    """Failures that look alike; not yet folded changes are in TroubledDelta."""

    __tablename__ = "command_bus_tsq_group"

    group_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str]
    error_type: Mapped[str]
    error_code: Mapped[str]
    message: Mapped[str]
    in_tsq: Mapped[int]
    entered: Mapped[int]
    first_seen_at: Mapped[datetime] = mapped_column(Time)
    last_seen_at: Mapped[datetime] = mapped_column(Time)


class TroubledTrend(Base):
    """How many commands entered a group in an hour, without what is not folded yet."""

    __tablename__ = "command_bus_tsq_trend"

    group_id: Mapped[UUID] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(Time, primary_key=True)
    entered: Mapped[int]


troubled_delta = sa.table(
    "command_bus_tsq_delta",
    sa.column("group_id", sa.Uuid()),
    sa.column("at", Time),
    sa.column("in_tsq", sa.Integer()),
    sa.column("entered", sa.Integer()),
    schema="public",
)


class Unsuccessful(Base):
    """A command that ended FAILED or CANCELLED."""

    __tablename__ = "command_bus_unsuccessful"

    command_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    command_type: Mapped[str]
    status: Mapped[CommandStatus] = mapped_column(Status)
    created_at: Mapped[datetime] = mapped_column(Time)
    ended_at: Mapped[datetime] = mapped_column(Time)
    error_code: Mapped[str | None]


class Rejected(Base):
    """A message that no command explains."""

    __tablename__ = "command_bus_rejected"

    rejected_id: Mapped[int] = mapped_column(primary_key=True)
    domain: Mapped[str]
    queue: Mapped[str]
    msg_id: Mapped[int]
    command_id: Mapped[UUID | None]
    reason: Mapped[str]
    message: Mapped[str | None]
    rejected_at: Mapped[datetime] = mapped_column(Time)


class WorkerProcess(Base):
    """A worker process, as its last heartbeat describes it."""

    __tablename__ = "command_bus_worker"

    worker_id: Mapped[int] = mapped_column(primary_key=True)
    domain: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    concurrency: Mapped[int]
    settings: Mapped[Any] = mapped_column(JSONB)
    running: Mapped[Any] = mapped_column(JSONB)
    running_count: Mapped[int]
    rate_per_second: Mapped[float]
    started_at: Mapped[datetime] = mapped_column(Time)
    heartbeat_at: Mapped[datetime] = mapped_column(Time)
    heartbeat_seconds: Mapped[float]
    stop_requested_at: Mapped[datetime | None] = mapped_column(Time)
    stop_requested_by: Mapped[str | None]
    stopped_at: Mapped[datetime | None] = mapped_column(Time)
    replaced_by: Mapped[int | None]
    end_reason: Mapped[str | None]
    completed: Mapped[int]
    failed: Mapped[int]
    retried: Mapped[int]
    moved_to_tsq: Mapped[int]
    app_version: Mapped[str | None]
    command_types: Mapped[list[str] | None] = mapped_column(ARRAY(sa.Text))


class Domain(Base):
    """A domain with its queues."""

    __tablename__ = "command_bus_domain"

    domain: Mapped[str] = mapped_column(primary_key=True)
    command_queue: Mapped[str]
    reply_queue: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(Time)


def queue_table(name: str) -> sa.TableClause:
    """The table of a PGMQ queue."""
    return sa.table(
        f"q_{name}",
        sa.column("msg_id", sa.BigInteger()),
        sa.column("read_ct", sa.Integer()),
        sa.column("enqueued_at", Time),
        sa.column("vt", Time),
        sa.column("message", JSONB()),
        schema="pgmq",
    )
