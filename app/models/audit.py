"""The audit trail as it is read: of one command, and a search over all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.paging import SCAN_LIMIT, CursorError, Unseen, search_seconds
from app.models.search import find_ids
from app.models.search_texts import id_text
from app.models.tables import AuditEntry
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
    unseen: Unseen | None = None
    """Set where events behind these were not looked at, so that the page may be short of some."""


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
    """The events that match every filter, newest first.

    SCAN_LIMIT of them are looked at, at a time, until the page is full or the time is over.
    """
    deadline = time.monotonic() + search_seconds()
    last_id = parse_event_cursor(cursor)
    newest = None
    if last_id is None and filters.until is not None:
        newest = _first_id_after(filters.until + _JITTER)
    oldest = None if filters.since is None else _first_id_after(filters.since - _JITTER)
    found: list[Sequence[Any]] = []
    looked_at = 0
    while True:
        inner = (
            sa.select(*_COLUMNS, sa.and_(sa.true(), *_conditions(filters)).label("matches"))
            .order_by(AuditEntry.audit_id.desc())
            .limit(SCAN_LIMIT)
        )
        if last_id is not None:
            inner = inner.where(AuditEntry.audit_id < last_id)
        elif newest is not None:
            inner = inner.where(AuditEntry.audit_id <= newest)
        if oldest is not None:
            inner = inner.where(AuditEntry.audit_id >= oldest)
        scanned = inner.subquery()
        found += db.session.execute(
            sa.select(*(column for column in scanned.c if column.name != "matches"))
            .where(scanned.c.matches)
            .order_by(scanned.c.audit_id.desc())
            .limit(limit + 1 - len(found))
        ).all()
        rows = [_row(row) for row in found[:limit]]
        if len(found) > limit:
            return EventListing(rows, str(rows[-1].audit_id))
        ends = inner.with_only_columns(AuditEntry.audit_id, AuditEntry.created_at)
        end = db.session.execute(ends.offset(SCAN_LIMIT - 1).limit(2)).all()
        looked_at += SCAN_LIMIT
        if len(end) < 2:
            return EventListing(rows, None)
        last_id, at = end[0]
        if time.monotonic() > deadline:
            return EventListing(rows, str(last_id), Unseen(looked_at, at))


def find_commands(text: str, limit: int = 10) -> list[CommandKey]:
    """The commands whose id is *text*, or has it as its beginning or its ends; newest ids first."""
    ids = id_text(text)
    if ids is None:
        return []
    return [CommandKey(*row) for row in db.session.execute(find_ids(ids, limit))]


def parse_event_cursor(cursor: str | None) -> int | None:
    """The event after which a page goes on; raises CursorError for an invalid cursor."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18 and cursor[0] != "0"):
        raise CursorError("invalid cursor: pass next_cursor unchanged")
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
