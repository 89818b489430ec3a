"""Commands as the SQL functions of sending take them: checked, and JSON already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from commandbus.checks import MAX_SECONDS, is_number
from commandbus.errors import InvalidCommandError
from commandbus.models import NewCommand
from commandbus.names import MAX_LANE, MAX_TYPE, check_storable, check_text, uuid_of
from commandbus.payload import checked_headers, sized_json
from commandbus.store import dumps
from commandbus.texts import shown

SEND_CHUNK = 1000
SEND_CHUNK_BYTES = 64_000_000
VALUE_BYTES = 16
"""What the database needs for a value beside its JSON."""
MAX_ATTEMPTS_LIMIT = 1_000


class CommandRow(NamedTuple):
    """A command on its way to the database."""

    command_id: str
    text: str
    """All of it as JSON."""
    weight: int
    """About so many bytes the database needs to read it."""
    is_laned: bool = False

    def placed(self, member: str, number: int) -> CommandRow:
        """The same with its place among those of its lane."""
        return self._replace(text=f'{self.text[:-1]},"{member}":{number}}}')


def command_row(command: NewCommand) -> CommandRow:
    """The command as the SQL functions take it; raises InvalidCommandError for bad values."""
    if not isinstance(command, NewCommand):
        raise TypeError(f"commands are NewCommands, not {shown(command)}")
    check_text("command_type", command.command_type, 1, MAX_TYPE)
    command_id = str(uuid_of("command_id", command.command_id))
    data = sized_json("data", {} if command.data is None else command.data)
    text = (
        f'{{"command_id":"{command_id}","command_type":{dumps(command.command_type)}'
        f',"data":{data.text}'
    )
    fields: dict[str, Any] = {}
    if command.correlation_id is not None:
        fields["correlation_id"] = str(uuid_of("correlation_id", command.correlation_id))
    if command.reply_to is not None:
        check_storable("reply_to", command.reply_to)
        fields["reply_to"] = command.reply_to
    if command.max_attempts is not None:
        if (
            type(command.max_attempts) is not int
            or not 1 <= command.max_attempts <= MAX_ATTEMPTS_LIMIT
        ):
            raise InvalidCommandError(f"max_attempts must be between 1 and {MAX_ATTEMPTS_LIMIT}")
        fields["max_attempts"] = command.max_attempts
    if command.delay is not None:
        fields["delay_seconds"] = delay_in_seconds("delay", command.delay)
    if command.headers is not None and (headers := checked_headers(command.headers)):
        fields["headers"] = headers
    if command.lane is not None:
        check_text("lane", command.lane, 1, MAX_LANE)
        fields["lane"] = command.lane
    text = f"{text},{dumps(fields)[1:]}" if fields else f"{text}}}"
    weight = len(text) + VALUE_BYTES * data.values
    return CommandRow(command_id, text, weight, command.lane is not None)


def delay_in_seconds(name: str, delay: object) -> float:
    """*delay* in seconds; raises InvalidCommandError where it is none."""
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if not is_number(seconds) or not 0 <= seconds <= MAX_SECONDS:
        raise InvalidCommandError(
            f"{name} must be seconds or a timedelta from 0 to ten years, not {shown(delay)}"
        )
    return seconds


def chunked(rows: Iterable[CommandRow]) -> Iterator[str]:
    """Sets that the database takes at once, each as a JSON array."""
    chunk: list[str] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) == SEND_CHUNK or size + row.weight > SEND_CHUNK_BYTES):
            yield f"[{','.join(chunk)}]"
            chunk, size = [], 0
        chunk.append(row.text)
        size += row.weight
    if chunk:
        yield f"[{','.join(chunk)}]"
