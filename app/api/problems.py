"""The errors of the bus as answers of the API."""

from __future__ import annotations

from flask import Response

from app.actions.addressed import unknown_command
from app.api import bp
from app.models import CursorError
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


@bp.errorhandler(DuplicateCommandError)
def duplicate(_: DuplicateCommandError) -> Response:
    return answer(
        Problem(
            409, "duplicate_command", "A command with this id was sent before with other content."
        )
    )


@bp.errorhandler(CommandNotFoundError)
def not_found(error: CommandNotFoundError) -> Response:
    return answer(unknown_command(error.command_id))


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
