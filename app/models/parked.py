"""Commands that are due and wait beside the queue, because no worker may take them now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from app.models.base import db

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
