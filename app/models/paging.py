"""Lists by key: cursors, totals that are exact up to a bound, and scans that end.

A list is ordered by a time and an id, newest first. A filter that an index cannot serve is
"rare": rows are looked at for it, SCAN_LIMIT at a time, until the page is full or SEARCH_SECONDS
are over; the answer is what was found and a cursor that goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeAlias, TypeVar
from uuid import UUID

import sqlalchemy as sa
from flask import current_app
from sqlalchemy.orm import InstrumentedAttribute

from app.models.base import db
from commandbus.cursors import decode_cursor, encode_cursor

TOTAL_LIMIT = 10_000
LARGEST_ID = 2**63 - 1  # of those that PostgreSQL counts up
SCAN_LIMIT = 20_000
SEARCH_SECONDS = 0.5
"""Flask's configuration may hold another number under this name."""
COUNTED_AT_ONCE = 100_000
_BACKWARD = "~"

RowT = TypeVar("RowT")
Condition = sa.ColumnElement[bool]
T = TypeVar("T")
Column: TypeAlias = InstrumentedAttribute[T] | sa.ColumnElement[T]


class CursorError(ValueError):
    """The cursor is not a next_cursor that this application made."""


@dataclass(frozen=True, slots=True)
class Key:
    """Where a row stands in its list."""

    at: datetime
    command_id: UUID
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Go on after *key*; backward: towards the newer rows."""

    key: Key
    backward: bool = False

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor of *text*; raises CursorError unless it is a next_cursor, unchanged."""
        backward = text.startswith(_BACKWARD)
        encoded = text.removeprefix(_BACKWARD)
        try:
            decoded = decode_cursor(encoded)
        except ValueError as exc:
            raise CursorError("invalid cursor: pass next_cursor unchanged") from exc
        # Base64 ignores foreign characters; a cursor must be unchanged.
        if decoded is None or encode_cursor(*decoded) != encoded:
            raise CursorError("invalid cursor: pass next_cursor unchanged")
        return cls(Key(*decoded), backward)

    def __str__(self) -> str:
        text = encode_cursor(self.key.at, self.key.command_id)
        return f"{_BACKWARD}{text}" if self.backward else text


@dataclass(frozen=True, slots=True)
class Total:
    """How many rows match: exactly, or at least."""

    count: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Unseen:
    """A search that ended before its list did."""

    looked_at: int
    """How many rows it looked at."""
    back_to: datetime
    """When the last one of these was."""


@dataclass(frozen=True, slots=True)
class Listing(Generic[RowT]):
    """One page of a list."""

    rows: list[RowT]
    total: int
    total_is_exact: bool
    next_cursor: str | None
    """For the rows after these (older ones); None where there are none."""
    previous_cursor: str | None
    """For the rows before these; None on a first page."""
    unseen: Unseen | None = None
    """Set where rows behind these were not looked at, so that the page may be short of some."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a list is wanted."""

    limit: int
    offset: int = 0
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The keys of one page, newest first."""

    keys: list[Key]
    next_cursor: str | None
    previous_cursor: str | None
    is_first: bool = False
    unseen: Unseen | None = None

    @property
    def total(self) -> Total | None:
        """How many rows match, where this page holds all of them."""
        if not self.is_first or self.next_cursor is not None:
            return None
        return Total(len(self.keys), is_exact=True)

    def listing(self, rows: list[RowT], total: Total) -> Listing[RowT]:
        """The page with the rows of its keys."""
        if self.is_first and total.is_exact and total.count <= len(self.keys):
            # Nothing is left for which one could look further.
            return Listing(rows, total.count, True, None, self.previous_cursor)
        count = total.count if total.is_exact else max(total.count, len(self.keys))
        return Listing(
            rows, count, total.is_exact, self.next_cursor, self.previous_cursor, self.unseen
        )


@dataclass(frozen=True, slots=True)
class Source:
    """A list that can be scanned: its order, what an index serves, and what it does not."""

    at: Column[datetime]
    command_id: Column[UUID]
    domain: Column[str]
    indexed: Sequence[Condition] = ()
    rare: Sequence[Condition] = ()
    scan_limit: int = SCAN_LIMIT
    is_cut: bool = False
    """Whether more may match than the list holds."""

    def scan(self, window: Window) -> Found:
        """The keys in *window*."""
        cursor = window.cursor
        backward = cursor is not None and cursor.backward
        keys, end, looked_at = self._found(cursor, backward, window.offset + window.limit + 1)
        del keys[: window.offset]
        more = len(keys) > window.limit
        del keys[window.limit :]
        unseen = None if end is None or more else Unseen(looked_at, end.at)
        end = keys[-1] if more else end
        if backward:
            keys.reverse()
            return Found(
                keys,
                next_cursor=_text(keys[-1] if keys else cursor.key if cursor else None),
                previous_cursor=_text(end, backward=True),
            )
        moved = cursor is not None or window.offset > 0
        return Found(
            keys,
            next_cursor=_text(end),
            previous_cursor=_text(keys[0], backward=True) if moved and keys else None,
            is_first=not moved,
            unseen=unseen,
        )

    def _found(
        self, cursor: Cursor | None, backward: bool, wanted: int
    ) -> tuple[list[Key], Key | None, int]:
        """Up to *wanted* keys; the last row that was looked at where others were not; how many
        were looked at.
        """
        deadline = time.monotonic() + search_seconds()
        keys: list[Key] = []
        looked_at = 0
        while True:
            page = self._ordered(cursor, backward)
            if self.rare:
                inner = page.limit(self.scan_limit).subquery()
                page = (
                    sa.select(inner.c.at, inner.c.command_id, inner.c.domain)
                    .where(inner.c.matches)
                    .order_by(*_order(inner.c.at, inner.c.command_id, backward))
                )
            page = page.limit(wanted - len(keys))
            keys += [Key(*row[:3]) for row in db.session.execute(page)]
            if not self.rare or len(keys) >= wanted:
                return keys, None, looked_at
            end = self._row_at(self.scan_limit - 1, cursor, backward)
            looked_at += self.scan_limit
            if end is None or time.monotonic() > deadline:
                return keys, end, looked_at
            cursor = Cursor(end, backward)

    def count(self) -> Total:
        """How many rows match, exactly up to TOTAL_LIMIT and to the end of one scan.

        What is not exact is a number that there are at least.
        """
        if not self.rare:
            counted = self._ordered().limit(TOTAL_LIMIT + 1)
            found = db.session.scalar(sa.select(sa.func.count()).select_from(counted.subquery()))
            return Total(min(found or 0, TOTAL_LIMIT), (found or 0) <= TOTAL_LIMIT)
        inner = self._ordered().limit(self.scan_limit + 1).subquery()
        counts = sa.select(sa.func.count().filter(inner.c.matches), sa.func.count())
        matching, scanned = db.session.execute(counts.select_from(inner)).one()
        exact = scanned <= self.scan_limit and matching <= TOTAL_LIMIT
        return Total(min(matching, TOTAL_LIMIT, self.scan_limit), exact)

    def count_all(self, seconds: float) -> Total:
        """How many rows match, however many there are; as many as were counted in *seconds*."""
        deadline = time.monotonic() + seconds
        cursor: Cursor | None = None
        matching = 0
        while True:
            part = self._ordered(cursor).limit(COUNTED_AT_ONCE).subquery()
            counts = sa.select(sa.func.count().filter(part.c.matches)).select_from(part)
            matching += db.session.scalar(counts) or 0
            end = self._row_at(COUNTED_AT_ONCE - 1, cursor)
            if end is None:
                return Total(matching, is_exact=True)
            if time.monotonic() > deadline:
                return Total(matching, is_exact=False)
            cursor = Cursor(end)

    def _ordered(
        self, cursor: Cursor | None = None, backward: bool = False
    ) -> sa.Select[*tuple[Any, ...]]:
        matches = sa.and_(sa.true(), *self.rare).label("matches")
        query = sa.select(
            self.at.label("at"), self.command_id.label("command_id"), self.domain.label("domain"),
            matches,
        ).where(*self.indexed)  # fmt: skip
        if cursor is not None:
            here = sa.tuple_(self.at, self.command_id)
            there = sa.tuple_(
                sa.literal(cursor.key.at, sa.DateTime(timezone=True)),
                sa.literal(cursor.key.command_id, sa.Uuid()),
            )
            query = query.where(here > there if backward else here < there)
        return query.order_by(*_order(self.at, self.command_id, backward))

    def _row_at(
        self, offset: int, cursor: Cursor | None = None, backward: bool = False
    ) -> Key | None:
        """The row that many places behind the cursor; None unless others follow it."""
        inner = self._ordered(cursor, backward).offset(offset).limit(2).subquery()
        rows = db.session.execute(
            sa.select(inner.c.at, inner.c.command_id, inner.c.domain).order_by(
                *_order(inner.c.at, inner.c.command_id, backward)
            )
        ).all()
        return Key(*rows[0]) if len(rows) > 1 else None


def search_seconds() -> float:
    """How long one request looks for what no index serves."""
    return float(current_app.config.get("SEARCH_SECONDS", SEARCH_SECONDS))


def _order(at: Any, command_id: Any, backward: bool) -> tuple[Any, Any]:
    return (at.asc(), command_id.asc()) if backward else (at.desc(), command_id.desc())


def _text(key: Key | None, *, backward: bool = False) -> str | None:
    return None if key is None else str(Cursor(key, backward))
