"""Keys of rows as texts, by which clients ask for the page after the one they have."""

from __future__ import annotations

import base64
from datetime import datetime
from uuid import UUID

from commandbus.checks import utc


def encode_cursor(at: datetime, command_id: UUID) -> str:
    """The key of a row as a text that clients pass back without looking into it."""
    return base64.urlsafe_b64encode(f"{at.isoformat()}|{command_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> tuple[datetime, UUID] | None:
    """The key in a cursor; raises ValueError for one that ``encode_cursor`` did not make."""
    if cursor is None:
        return None
    if not isinstance(cursor, str):
        raise ValueError("invalid cursor: pass next_cursor unchanged")
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, _, command_id = text.partition("|")
        when = datetime.fromisoformat(at)
        if when.tzinfo is None:
            raise ValueError("no zone")
        return utc("cursor", when), UUID(command_id)
    except ValueError as exc:
        raise ValueError("invalid cursor: pass next_cursor unchanged") from exc
