"""Which command an address means: an id can exist in several domains."""

from __future__ import annotations

from uuid import UUID

from app.models import domains_of
from app.server.errors import Problem


def domains_named(command_id: UUID, domain: str | None) -> list[str]:
    """The domains that have this command, at least one; only *domain* where that is given.

    Raises Problem 404 where there is no such command.
    """
    found = domains_of(command_id)
    if domain is not None:
        found = [name for name in found if name == domain]
    if not found:
        raise unknown_command(command_id)
    return found


def domain_of(command_id: UUID, domain: str | None) -> str:
    """The domain of the command that an address names.

    Raises Problem 404 where there is none, and 409 where several domains have one and *domain* does
    not say which is meant.
    """
    found = domains_named(command_id, domain)
    if len(found) > 1:
        raise Problem(
            409,
            "ambiguous_command",
            f"Several domains have a command {command_id}; say which with ?domain=.",
            domains=found,
        )
    return found[0]


def unknown_command(command_id: UUID) -> Problem:
    """The answer where an id is no command's."""
    return Problem(404, "unknown_command", f"There is no command {command_id}.")
