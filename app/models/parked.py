"""Commands that are due and wait beside the queue, because no worker may take them now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from app.models.base import db
from app.models.tables import Command, Pause
from commandbus.models import CommandStatus

COUNTED = 10_000
"""A count is exact up to this."""


@dataclass(frozen=True, slots=True)
class Unhandled:
    """Commands of one type that no running worker has a handler for."""

    domain: str
    command_type: str
    waiting: int
    waiting_is_exact: bool
    since: datetime
    """When the first of them that still waits was met."""


def unhandled(domain: str | None = None) -> list[Unhandled]:
    """What waits because no running worker has a handler for it, by domain and type."""
    rows = db.session.execute(
        sa.text("select * from command_bus.waiting_for_a_handler(:domain, :most)"),
        {"domain": domain, "most": COUNTED + 1},
    )
    return [
        Unhandled(
            row.domain,
            row.command_type,
            min(row.waiting, COUNTED),
            row.waiting <= COUNTED,
            row.since,
        )
        for row in rows
        if row.waiting
    ]


@dataclass(frozen=True, slots=True)
class PauseRow:
    """A pause of a domain, or of one command type of it."""

    pause_id: int
    domain: str
    command_type: str | None
    reason: str
    paused_by: str
    paused_at: datetime
    ends_at: datetime | None
    ended_at: datetime | None
    ended_by: str | None
    waiting: int
    """Pending commands of the domain; of a type, those put aside. Counted up to COUNTED."""

    @property
    def waiting_is_exact(self) -> bool:
        """Whether there are no more."""
        return self.waiting < COUNTED

    @property
    def name(self) -> str:
        """What is paused, for people."""
        return self.command_type or f"domain {self.domain}"


_CURRENT = sa.text(
    """
    select p.pause_id, p.domain, p.command_type, p.reason, p.paused_by, p.paused_at, p.ends_at,
        p.ended_at, p.ended_by,
        case
            when p.command_type is null then (
                select least(greatest(k.pending, 0), :most)
                from command_bus.count_by_status(p.domain) as k)
            else (
                select count(*) from (
                    select from public.command_bus_parked as k
                    where k.domain = p.domain and k.kind = 'PAUSED'
                        and k.command_type = p.command_type
                    limit :most) as n)
        end
    from public.command_bus_pause as p
    where p.ended_at is null and coalesce(p.ends_at, 'infinity') > clock_timestamp()
        and (cast(:domain as text) is null or p.domain = :domain)
    order by p.pause_id desc
    """
)
_ENDED = sa.text(
    """
    select p.pause_id, p.domain, p.command_type, p.reason, p.paused_by, p.paused_at, p.ends_at,
        coalesce(p.ended_at, p.ends_at), p.ended_by, 0
    from public.command_bus_pause as p
    where p.ended_at is not null or p.ends_at <= clock_timestamp()
    order by p.pause_id desc
    limit :limit
    """
)


def pauses(domain: str | None = None) -> list[PauseRow]:
    """The pauses in force, the latest first."""
    found = db.session.execute(_CURRENT, {"domain": domain, "most": COUNTED})
    return [PauseRow(*row) for row in found]


def ended_pauses(limit: int) -> list[PauseRow]:
    """The pauses that are over, the latest begun first."""
    return [PauseRow(*row) for row in db.session.execute(_ENDED, {"limit": limit})]


@dataclass(frozen=True, slots=True)
class CurrentPause:
    """The pause that keeps a command from starting."""

    paused_by: str
    reason: str
    ends_at: datetime | None
    command_type: str | None
    """None: the whole domain is paused."""


def pause_in_force() -> sa.sql.selectable.LateralFromClause:
    """The columns of CurrentPause for each PENDING command, the domain's pause first."""
    is_over = sa.func.coalesce(Pause.ends_at, sa.text("'infinity'")) <= sa.func.clock_timestamp()
    return (
        sa.select(Pause.paused_by, Pause.reason, Pause.ends_at, Pause.command_type)
        .where(
            Pause.domain == Command.domain,
            sa.func.coalesce(Pause.command_type, Command.command_type) == Command.command_type,
            Pause.ended_at.is_(None),
            sa.not_(is_over),
            Command.status == CommandStatus.PENDING,
        )
        .order_by(Pause.command_type.nulls_first())
        .limit(1)
        .lateral("pause")
    )
