"""The audit trail as it is read: of one command, and a search over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.paging import SCAN_LIMIT, CursorError
from app.models.search import id_range
from app.models.tables import AuditEntry, Command
from commandbus.models import AuditEventType

TRAIL_LIMIT = 10_000
# Concurrent transactions write their events in an order that differs from their times by as much
# as their commits take; ids are searched with this margin.
_JITTER = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class EventRow:
    """One step in the life of a command; *details* hold attempt, worker_id, msg_id and the rest."""

    audit_id: int
    command_id: UUID
    domain: str
    event_type: AuditEventType
    timestamp: datetime
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventFilters:
    """What the events of a search have in common; None: anything."""

    event_type: AuditEventType | None = None
    domain: str | None = None
    since: datetime | None = None
    """Inclusive."""
    until: datetime | None = None
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class EventListing:
    """One page of a search, newest first."""

    rows: list[EventRow]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class CommandKey:
    """A command that a search by id found."""

    command_id: UUID
    domain: str
    created_at: datetime


_COLUMNS = (
    AuditEntry.audit_id,
    AuditEntry.command_id,
    AuditEntry.domain,
    AuditEntry.event_type,
    AuditEntry.created_at,
    AuditEntry.details,
    AuditEntry.attempt,
    AuditEntry.msg_id,
    AuditEntry.worker_id,
)


def get_trail(command_id: UUID, domain: str) -> list[EventRow]:
    """Everything that happened to a command, oldest first; empty for an unknown one."""
    query = (
        sa.select(*_COLUMNS)
        .where(AuditEntry.command_id == command_id, AuditEntry.domain == domain)
        .order_by(AuditEntry.audit_id)
        .limit(TRAIL_LIMIT)
    )
    return [_row(row) for row in db.session.execute(query)]


def search_events(filters: EventFilters, limit: int, cursor: str | None = None) -> EventListing:
    """The events that match every filter, newest first."""
    inner = (
        sa.select(*_COLUMNS, sa.and_(sa.true(), *_conditions(filters)).label("matches"))
        .order_by(AuditEntry.audit_id.desc())
        .limit(SCAN_LIMIT)
    )
    last_id = parse_event_cursor(cursor)
    if last_id is not None:
        inner = inner.where(AuditEntry.audit_id < last_id)
    elif filters.until is not None:
        inner = inner.where(AuditEntry.audit_id <= _first_id_after(filters.until + _JITTER))
    if filters.since is not None:
        inner = inner.where(AuditEntry.audit_id >= _first_id_after(filters.since - _JITTER))
    scanned = inner.subquery()
    rows = db.session.execute(
        sa.select(*(column for column in scanned.c if column.name != "matches"))
        .where(scanned.c.matches)
        .order_by(scanned.c.audit_id.desc())
        .limit(limit + 1)
    ).all()
    if len(rows) > limit:
        return EventListing([_row(row) for row in rows[:limit]], str(rows[limit - 1].audit_id))
    end = db.session.scalar(
        inner.with_only_columns(AuditEntry.audit_id).limit(1).offset(SCAN_LIMIT - 1)
    )
    return EventListing([_row(row) for row in rows], None if end is None else str(end))


def find_commands(text: str, limit: int = 10) -> list[CommandKey]:
    """The commands whose id is or begins with *text*, newest ids first."""
    ids = id_range(text)
    if ids is None:
        return []
    query = (
        sa.select(Command.command_id, Command.domain, Command.created_at)
        .where(Command.command_id.between(*ids))
        .order_by(Command.command_id.desc())
        .limit(limit)
    )
    return [CommandKey(*row) for row in db.session.execute(query)]


def parse_event_cursor(cursor: str | None) -> int | None:
    """The event after which a page goes on; raises CursorError for what no page gave."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18 and cursor[0] != "0"):
        raise CursorError("the cursor is not one that a page gave")
    return int(cursor)


def _conditions(filters: EventFilters) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if filters.event_type is not None:
        conditions.append(AuditEntry.event_type == filters.event_type)
    if filters.domain is not None:
        conditions.append(AuditEntry.domain == filters.domain)
    if filters.since is not None:
        conditions.append(AuditEntry.created_at >= filters.since)
    if filters.until is not None:
        conditions.append(AuditEntry.created_at < filters.until)
    return conditions


def _first_id_after(moment: datetime) -> int:
    """The first event at or after *moment*, found by halving: ids and times grow together.

    So a search in the past needs no index on the time, which every event would pay for.
    """
    low = db.session.scalar(sa.select(sa.func.min(AuditEntry.audit_id))) or 0
    high = (db.session.scalar(sa.select(sa.func.max(AuditEntry.audit_id))) or 0) + 1
    while low < high:
        middle = (low + high) // 2
        probe = (
            sa.select(AuditEntry.created_at)
            .where(AuditEntry.audit_id >= middle)
            .order_by(AuditEntry.audit_id)
            .limit(1)
        )
        at = db.session.scalar(probe)
        if at is not None and at < moment:
            low = middle + 1
        else:
            high = middle
    return low


def _row(row: Sequence[Any]) -> EventRow:
    audit_id, command_id, domain, event_type, created_at, details, attempt, msg_id, worker_id = row
    own = {"attempt": attempt, "msg_id": msg_id, "worker_id": worker_id}
    named = {name: value for name, value in own.items() if value is not None}
    extra = details if isinstance(details, dict) else {}
    return EventRow(audit_id, command_id, domain, event_type, created_at, {**named, **extra})
