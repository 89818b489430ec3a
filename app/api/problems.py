"""The errors of the bus as answers of the API."""

from __future__ import annotations

from uuid import UUID

from flask import Response

from app.api import bp
from app.models import CursorError, domains_of
from app.server.errors import Problem, answer
from app.settings.configuration import ConfigVersionError
from app.settings.options import InvalidOptionError
from commandbus.errors import (
    CommandNotFoundError,
    DuplicateCommandError,
    InvalidCommandError,
    InvalidStateError,
    UnknownDomainError,
    UnknownReplyQueueError,
)


def domain_of(command_id: UUID, domain: str | None) -> str:
    """The domain of the command that an address names.

    Raises Problem 404 where there is none, 409 where several domains have one and *domain* does
    not say which is meant.
    """
    found = domains_of(command_id)
    if domain is not None:
        found = [name for name in found if name == domain]
    if not found:
        raise Problem(404, "unknown_command", f"There is no command {command_id}.")
    if len(found) > 1:
        raise Problem(
            409,
            "ambiguous_command",
            f"Several domains have a command {command_id}; say which with ?domain=.",
            domains=found,
        )
    return found[0]


@bp.errorhandler(DuplicateCommandError)
def duplicate(_: DuplicateCommandError) -> Response:
    return answer(
        Problem(
            409, "duplicate_command", "A command with this id was sent before with other content."
        )
    )


@bp.errorhandler(CommandNotFoundError)
def not_found(error: CommandNotFoundError) -> Response:
    return answer(Problem(404, "unknown_command", f"There is no command {error.command_id}."))


@bp.errorhandler(InvalidStateError)
def wrong_state(error: InvalidStateError) -> Response:
    return answer(
        Problem(
            409,
            "invalid_state",
            f"The command is {error.current_status.value} now, which does not allow this.",
            command_id=str(error.command_id),
            current_status=error.current_status.value,
        )
    )


@bp.errorhandler(UnknownReplyQueueError)
def unknown_reply_queue(_: UnknownReplyQueueError) -> Response:
    return answer(
        _refused(
            "reply_to",
            "unknown_reply_queue",
            "There is no such reply queue, and a queue of commands is none",
        )
    )


@bp.errorhandler(UnknownDomainError)
def unknown_domain(_: UnknownDomainError) -> Response:
    return answer(_refused("domain", "unknown_domain", "There is no such domain"))


@bp.errorhandler(InvalidCommandError)
def invalid_command(_: InvalidCommandError) -> Response:
    return answer(_refused("payload", "not_storable", "The database cannot hold this value"))


@bp.errorhandler(CursorError)
def invalid_cursor(_: CursorError) -> Response:
    return answer(
        _refused("cursor", "invalid_cursor", "Invalid cursor: pass next_cursor unchanged")
    )


@bp.errorhandler(InvalidOptionError)
def invalid_option(error: InvalidOptionError) -> Response:
    refused = [
        {"field": name, "code": "invalid_option", "message": message}
        for name, message in error.errors.items()
    ]
    return answer(Problem(422, errors=refused))


@bp.errorhandler(ConfigVersionError)
def old_version(error: ConfigVersionError) -> Response:
    return answer(
        Problem(
            412,
            "version_changed",
            f"The configuration has version {error.current} now.",
            current_version=error.current,
        )
    )


def _refused(field: str, code: str, message: str) -> Problem:
    return Problem(
        422, code, f"{message}.", errors=[{"field": field, "code": code, "message": message}]
    )
