"""Lanes as pages and API show them: groups, what holds them, and the place of a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.paging import Key
from commandbus.models import CommandStatus

MOST_BEFORE = 10_000
"""So many places before a command are counted, at most."""
MOST_BEHIND = 1_000


@dataclass(frozen=True, slots=True)
class LaneGroupRow:
    """A group of lanes as it stands, with the settings that hold for it."""

    domain: str
    lane_group: str
    waiting: int
    in_flight: int
    held: int
    oldest_at: datetime | None
    oldest_is_exact: bool
    rate_per_second: float
    max_in_flight: int | None
    weight: float
    lane_limit: int
    on_trouble: str
    is_own: bool
    changed_at: datetime | None
    changed_by: str | None


@dataclass(frozen=True, slots=True)
class HeldLane:
    """A lane that a command in the troubleshooting queue holds."""

    domain: str
    lane_group: str
    lane: str
    command_id: UUID
    taken_at: datetime
    waiting: int
    """How many wait in the lane, of MOST_BEHIND counted at most."""


@dataclass(frozen=True, slots=True)
class LanePlace:
    """Where a command stands in its lane."""

    lane: str
    waiting_before: int
    """How many wait before it, of MOST_BEFORE counted at most."""
    taken: int
    """How many of its lane are on their way, or hold it."""
    lane_limit: int
    behind: UUID | None
    """The first of those before it."""
    behind_status: CommandStatus | None
    group_in_flight: int
    max_in_flight: int | None


@dataclass(frozen=True, slots=True)
class Behind:
    """What waits behind a command in the troubleshooting queue."""

    lane: str
    is_held: bool
    waiting: int
    """Of MOST_BEHIND counted at most."""


def lane_groups(domain: str | None = None) -> list[LaneGroupRow]:
    """The groups that have something to do, had a short time ago, or have settings."""
    query = sa.text("select * from command_bus.lane_groups(:domain)")
    return [LaneGroupRow(*row) for row in db.session.execute(query, {"domain": domain})]


def held_lanes(domain: str | None = None, *, limit: int = 100) -> list[HeldLane]:
    """The lanes that commands in the troubleshooting queue hold, the first ones first."""
    query = sa.text("select * from command_bus.held_lanes(:domain, :limit)")
    found = db.session.execute(query, {"domain": domain, "limit": limit})
    return [HeldLane(*row) for row in found]


def lane_place(command_id: UUID, domain: str) -> LanePlace | None:
    """Where a command waits in its lane; None where it does not."""
    query = sa.text("select * from command_bus.lane_place(:domain, :id)")
    row: Any = db.session.execute(query, {"domain": domain, "id": command_id}).one_or_none()
    if row is None:
        return None
    lane, before, taken, limit, behind, status, in_flight, most = row
    known = None if status is None else CommandStatus(status)
    return LanePlace(lane, before, taken, limit, behind, known, in_flight, most)


def waiting_behind(keys: Sequence[Key]) -> dict[Key, Behind]:
    """What waits behind commands in the troubleshooting queue that have a lane."""
    if not keys:
        return {}
    query = sa.text(
        "select * from command_bus.waiting_behind(cast(:domains as text[]), cast(:ids as uuid[]))"
    )
    values = {"domains": [key.domain for key in keys], "ids": [key.command_id for key in keys]}
    by_name = {(key.domain, key.command_id): key for key in keys}
    return {
        by_name[domain, command_id]: Behind(lane, is_held, n)
        for domain, command_id, lane, is_held, n in db.session.execute(query, values)
    }
