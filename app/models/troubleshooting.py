"""The troubleshooting queue as it is read: the list, groups of like failures, rejected messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.commands import count_by_status
from app.models.lanes import waiting_behind
from app.models.paging import Condition, Cursor, Key, Listing, Source, Total, Window
from app.models.search import contains, is_id
from app.models.search_texts import id_text, trimmed
from app.models.tables import (
    Command,
    Rejected,
    Time,
    Troubled,
    TroubledGroup,
    TroubledTrend,
    troubled_delta,
)
from commandbus.models import CommandStatus

TREND_HOURS = 24
COUNT_SECONDS = 3.0
"""How long the commands that match are counted, before an action on all of them."""


@dataclass(frozen=True, slots=True)
class TroubledFilters:
    """What the commands of a list have in common; None: anything."""

    domain: str | None = None
    command_type: str | None = None
    error_code: str | None = None
    group_id: UUID | None = None
    q: str | None = None
    """An id or its beginning, a correlation id, or a part of the error code or message."""
    entered_until: datetime | None = None
    """Those that had come into the queue by then."""

    @classmethod
    def from_texts(
        cls, given: Mapping[str, str], entered_until: datetime | None = None
    ) -> TroubledFilters:
        """The filters that *given* names. Raises ValueError for a group that is no id."""
        group_id = UUID(given["group_id"]) if "group_id" in given else None
        texts = {name: text for name, text in given.items() if name != "group_id"}
        return cls(**texts, group_id=group_id, entered_until=entered_until)

    def texts(self) -> dict[str, str]:
        """The filters that are set, without their moment, as `from_texts` reads them."""
        values = {name: getattr(self, name) for name in TROUBLED_FILTER_NAMES}
        return {name: str(value) for name, value in values.items() if value is not None}


TROUBLED_FILTER_NAMES = tuple(name for name in TroubledFilters.__slots__ if name != "entered_until")
"""What a list of troubled commands can be filtered by."""


@dataclass(frozen=True, slots=True)
class TroubledRow:
    """A command in the troubleshooting queue with its payload."""

    command_id: UUID
    domain: str
    command_type: str
    correlation_id: UUID | None
    batch_id: UUID | None
    group_id: UUID
    attempts: int
    max_attempts: int | None
    budget: int | None
    """How many attempts it could have when it was last claimed."""
    created_at: datetime
    updated_at: datetime
    entered_at: datetime
    first_failed_at: datetime
    last_failed_at: datetime
    last_error_type: str
    last_error_code: str
    last_error_message: str
    payload: Any
    lane: str | None = None
    holds_lane: bool = False
    waiting_behind: int = 0
    """How many wait in its lane while it holds that, of 1,000 counted at most."""

    @property
    def status(self) -> CommandStatus:
        """What every command in the queue has."""
        return CommandStatus.IN_TSQ


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Failures with the same domain, error code and normalised message."""

    group_id: UUID
    domain: str
    error_type: str
    error_code: str
    message: str
    in_tsq: int
    entered: int
    first_seen_at: datetime
    last_seen_at: datetime
    trend: list[int]
    """How many entered in each of the last TREND_HOURS hours, the current one last."""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A message that no command explains."""

    rejected_id: int
    domain: str
    queue: str
    msg_id: int
    command_id: UUID | None
    reason: str
    message: str | None
    rejected_at: datetime


_COLUMNS = (
    Troubled.command_id,
    Troubled.domain,
    Troubled.command_type,
    Troubled.correlation_id,
    Troubled.batch_id,
    Troubled.group_id,
    Troubled.attempts,
    Command.max_attempts,
    sa.func.coalesce(Command.budget, Command.max_attempts),
    Troubled.created_at,
    Command.updated_at,
    Troubled.entered_at,
    Troubled.first_failed_at,
    Troubled.last_failed_at,
    Troubled.error_type,
    Troubled.error_code,
    Troubled.error_message,
    Command.data,
)


def list_troubled(
    filters: TroubledFilters, window: Window, *, total: Total | None = None
) -> Listing[TroubledRow]:
    """The commands in the queue that match every filter, the latest arrivals first.

    *total* says how many match, where the caller knows it already.
    """
    source = _source(filters)
    found = source.scan(window)
    total = total or _known_total(filters) or found.total or source.count()
    return found.listing(_rows(found.keys), total)


def count_troubled(filters: TroubledFilters) -> Total:
    """How many commands in the queue match: counted, however many, for COUNT_SECONDS at most."""
    return _known_total(filters) or _source(filters).count_all(COUNT_SECONDS)


def queue_moment() -> datetime:
    """The time by the clock that says when a command came into the queue."""
    moment: datetime = db.session.execute(
        sa.select(sa.type_coerce(sa.func.clock_timestamp(), Time))
    ).scalar_one()
    return moment


def troubled_keys(
    filters: TroubledFilters, limit: int, cursor: str | None = None
) -> tuple[list[Key], str | None]:
    """The keys of up to *limit* commands that match, and the cursor for those after them."""
    window = Window(limit, cursor=None if cursor is None else Cursor.parse(cursor))
    found = _source(filters).scan(window)
    return found.keys, found.next_cursor


@dataclass(frozen=True, slots=True)
class GroupName:
    """What the failures of a group have in common."""

    error_code: str
    message: str


def get_group_name(group_id: UUID) -> GroupName | None:
    """What a group is called, also when none of it is left in the queue; None: there is none."""
    query = sa.select(TroubledGroup.error_code, TroubledGroup.message).where(
        TroubledGroup.group_id == group_id
    )
    row = db.session.execute(query).one_or_none()
    return None if row is None else GroupName(*row)


def list_groups(domain: str | None = None, limit: int = 50) -> tuple[list[GroupRow], int]:
    """The largest groups with commands in the queue, and how many there are; exact at this moment.

    The largest comes first.
    """
    delta = (
        sa.select(
            troubled_delta.c.group_id,
            sa.func.sum(troubled_delta.c.in_tsq).label("in_tsq"),
            sa.func.sum(troubled_delta.c.entered).label("entered"),
            sa.func.max(troubled_delta.c.at)
            .filter(troubled_delta.c.entered > 0)
            .label("last_entered_at"),
        )
        .group_by(troubled_delta.c.group_id)
        .subquery()
    )
    in_tsq = TroubledGroup.in_tsq + sa.func.coalesce(delta.c.in_tsq, 0)
    query = (
        sa.select(
            TroubledGroup.group_id,
            TroubledGroup.domain,
            TroubledGroup.error_type,
            TroubledGroup.error_code,
            TroubledGroup.message,
            sa.cast(in_tsq, sa.BigInteger()).label("in_tsq"),
            sa.cast(
                TroubledGroup.entered + sa.func.coalesce(delta.c.entered, 0), sa.BigInteger()
            ).label("entered"),
            TroubledGroup.first_seen_at,
            sa.func.greatest(TroubledGroup.last_seen_at, delta.c.last_entered_at).label(
                "last_seen_at"
            ),
            sa.func.count().over().label("total"),
        )
        .outerjoin(delta, delta.c.group_id == TroubledGroup.group_id)
        .where(in_tsq > 0)
        .order_by(in_tsq.desc(), TroubledGroup.group_id)
        .limit(limit)
    )
    if domain is not None:
        query = query.where(TroubledGroup.domain == domain)
    groups = [dict[str, Any](row) for row in db.session.execute(query).mappings()]
    total = max((group.pop("total") for group in groups), default=0)
    trends = _trends([group["group_id"] for group in groups])
    return [GroupRow(**group, trend=trends[group["group_id"]]) for group in groups], total


def error_codes(limit: int = 100) -> list[str]:
    """The error codes in the queue, those of the largest groups first; for a filter's choices."""
    query = (
        sa.select(TroubledGroup.error_code)
        .group_by(TroubledGroup.error_code)
        .order_by(sa.func.sum(TroubledGroup.in_tsq).desc(), TroubledGroup.error_code)
        .limit(limit)
    )
    return list(db.session.scalars(query))


def list_rejected(limit: int = 20, before: int | None = None) -> list[RejectedRow]:
    """Messages that no command explains, the latest first; *before* is a rejected_id."""
    columns = [getattr(Rejected, name) for name in RejectedRow.__slots__]
    query = sa.select(*columns).order_by(Rejected.rejected_id.desc()).limit(limit)
    if before is not None:
        query = query.where(Rejected.rejected_id < before)
    return [RejectedRow(*row) for row in db.session.execute(query)]


def _source(filters: TroubledFilters) -> Source:
    indexed: list[Condition] = []
    rare: list[Condition] = []
    if filters.error_code is not None:
        indexed.append(Troubled.error_code == filters.error_code)
    if filters.group_id is not None:
        indexed.append(Troubled.group_id == filters.group_id)
    if filters.entered_until is not None:
        indexed.append(Troubled.entered_at <= filters.entered_until)
    if filters.domain is not None:
        rare.append(Troubled.domain == filters.domain)
    if filters.command_type is not None:
        rare.append(Troubled.command_type == filters.command_type)
    if filters.q:
        ids, text = id_text(filters.q), trimmed(filters.q)
        named: list[Condition] = []
        if ids is not None:
            named = [is_id(Troubled.command_id, ids), is_id(Troubled.correlation_id, ids)]
        if ids is not None and ids.names_one and _is_any(sa.or_(*named)):
            indexed.append(sa.or_(*named))
        else:
            said = [contains(Troubled.error_code, text), contains(Troubled.error_message, text)]
            rare.append(sa.or_(*said, *named))
    return Source(Troubled.entered_at, Troubled.command_id, Troubled.domain, indexed, rare)


def _is_any(meant: Condition) -> bool:
    return db.session.execute(sa.select(sa.true()).where(meant).limit(1)).first() is not None


def _known_total(filters: TroubledFilters) -> Total | None:
    """The total where the counters know it: by domain, error code, group, or several of these."""
    domain, code, group_id = filters.domain, filters.error_code, filters.group_id
    if filters != TroubledFilters(domain=domain, error_code=code, group_id=group_id):
        return None
    if code is None and group_id is None:
        return Total(count_by_status(domain)[CommandStatus.IN_TSQ], is_exact=True)
    wanted = sa.select(TroubledGroup.group_id, TroubledGroup.in_tsq)
    for column, value in (
        (TroubledGroup.domain, domain),
        (TroubledGroup.error_code, code),
        (TroubledGroup.group_id, group_id),
    ):
        if value is not None:
            wanted = wanted.where(column == value)
    groups = wanted.cte("groups")
    unfolded = sa.select(sa.func.sum(troubled_delta.c.in_tsq)).where(
        troubled_delta.c.group_id.in_(sa.select(groups.c.group_id))
    )
    folded = sa.select(sa.func.sum(groups.c.in_tsq)).scalar_subquery()
    parts = [sa.func.coalesce(part, 0) for part in (folded, unfolded.scalar_subquery())]
    return Total(int(db.session.scalar(sa.select(parts[0] + parts[1])) or 0), is_exact=True)


def _rows(keys: Sequence[Key]) -> list[TroubledRow]:
    if not keys:
        return []
    wanted = [(key.command_id, key.domain) for key in keys]
    query = (
        sa.select(*_COLUMNS)
        .join(
            Command,
            sa.and_(Command.command_id == Troubled.command_id, Command.domain == Troubled.domain),
        )
        .where(sa.tuple_(Troubled.command_id, Troubled.domain).in_(wanted))
    )
    by_id = {(row[0], row[1]): TroubledRow(*row) for row in db.session.execute(query)}
    for key, behind in waiting_behind(keys).items():
        if (row := by_id.get((key.command_id, key.domain))) is not None:
            by_id[key.command_id, key.domain] = replace(
                row,
                lane=behind.lane,
                holds_lane=behind.is_held,
                waiting_behind=behind.waiting if behind.is_held else 0,
            )
    return [by_id[key] for key in wanted if key in by_id]


def _trends(group_ids: Sequence[UUID]) -> dict[UUID, list[int]]:
    this_hour = sa.type_coerce(sa.func.date_trunc("hour", sa.func.now(), "UTC"), Time)
    since = db.session.execute(sa.select(this_hour)).scalar_one() - timedelta(hours=TREND_HOURS - 1)
    folded = sa.select(TroubledTrend.group_id, TroubledTrend.hour, TroubledTrend.entered).where(
        TroubledTrend.group_id.in_(group_ids), TroubledTrend.hour >= since
    )
    unfolded = sa.select(
        troubled_delta.c.group_id,
        sa.func.date_trunc("hour", troubled_delta.c.at, "UTC"),
        troubled_delta.c.entered,
    ).where(troubled_delta.c.group_id.in_(group_ids), troubled_delta.c.at >= since)
    trends = {group_id: [0] * TREND_HOURS for group_id in group_ids}
    for group_id, hour, entered in db.session.execute(sa.union_all(folded, unfolded)):
        position = int((hour - since).total_seconds() // 3600)
        if 0 <= position < TREND_HOURS:
            trends[group_id][position] += entered
    return trends
