"""Pausing and resuming, for pages and API alike."""

from __future__ import annotations

from app.server.errors import Problem
from app.server.portal import call, current_portal
from commandbus import Pause, Pauses


def pause(
    domain: str, command_type: str | None, *, reason: str, operator: str, seconds: float | None
) -> Pause:
    """Pause a domain, or one command type of it. Raises UnknownDomainError."""
    return call(
        Pauses(current_portal().pool).pause,
        domain,
        command_type,
        reason=reason,
        operator=operator,
        seconds=seconds,
    )


def resume(pause_id: int, operator: str) -> None:
    """End a pause; raises Problem 404 where none of this id is in force."""
    if not call(Pauses(current_portal().pool).resume, pause_id, operator=operator):
        raise Problem(404, "unknown_pause", f"No pause {pause_id} is in force.")
