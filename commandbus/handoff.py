"""What a handler sends and publishes: kept until its success is recorded, and written with it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

from commandbus.errors import InvalidCommandError
from commandbus.models import Command, NewCommand
from commandbus.names import MAX_TYPE, check_domain, check_text, uuid_of
from commandbus.payload import checked_headers, json_text
from commandbus.rows import command_row
from commandbus.store import dumps

MAX_FOLLOW_UPS = 10_000
"""Of one attempt."""
MAX_FOLLOW_UP_BYTES = 64_000_000
"""Of one attempt, as JSON."""
MAX_KEY = 200


class FollowUpId(UUID):
    """The id of what a handler sends or publishes. Awaiting it gives it at once."""

    def __await__(self) -> Generator[None, None, FollowUpId]:
        yield from ()
        return self


class FollowUps:
    """What one attempt of *command* sends and publishes, in order."""

    __slots__ = ("_command", "_events", "_sends", "_size")

    def __init__(self, command: Command | None) -> None:
        self._command = command
        self._sends: list[str] = []
        self._events: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._sends) + len(self._events)

    def send(
        self,
        domain: str,
        command_type: str,
        command_id: UUID | None,
        data: Any,
        correlation_id: UUID | None,
        reply_to: str | None,
        max_attempts: int | None,
        delay: float | timedelta | None,
        batch_id: UUID | None,
        headers: Mapping[str, Any] | None,
        lane: str | None,
    ) -> FollowUpId:
        """Keep a command; returns its id."""
        check_domain(domain)
        parent = self._command
        if command_id is None:
            command_id = self._id(str(len(self._sends)))
        if correlation_id is None and parent is not None:
            correlation_id = parent.correlation_id
        if headers is None and parent is not None:
            headers = parent.headers
        row = command_row(
            NewCommand(
                command_type=command_type,
                command_id=command_id,
                data=data,
                correlation_id=correlation_id,
                reply_to=reply_to,
                max_attempts=max_attempts,
                delay=delay,
                headers=headers,
                lane=lane,
            )
        )
        batch = "null" if batch_id is None else f'"{uuid_of("batch_id", batch_id)}"'
        self._keep(self._sends, f'{{"domain":"{domain}","batch_id":{batch},"command":{row.text}}}')
        return FollowUpId(row.command_id)

    def publish(
        self, event_type: str, data: Any, key: str | None, headers: Mapping[str, Any] | None
    ) -> FollowUpId:
        """Keep an event; returns its id."""
        event_id = self._id(f"event {len(self._events)}")
        if headers is None and self._command is not None:
            headers = self._command.headers
        self._keep(self._events, event_row(event_id, event_type, data, key, headers))
        return FollowUpId(str(event_id))

    def _id(self, name: str) -> UUID:
        return uuid4() if self._command is None else uuid5(self._command.command_id, name)

    def _keep(self, kept: list[str], text: str) -> None:
        if len(self) >= MAX_FOLLOW_UPS:
            raise InvalidCommandError(f"one attempt sends and publishes {MAX_FOLLOW_UPS:,} at most")
        self._size += len(text)
        if self._size > MAX_FOLLOW_UP_BYTES:
            raise InvalidCommandError(
                f"what one attempt sends and publishes takes {MAX_FOLLOW_UP_BYTES:,} bytes at most"
            )
        kept.append(text)

    def json(self) -> str:
        """The members of an outcome as settle_commands_v3 takes it."""
        return f'"sends":[{",".join(self._sends)}],"events":[{",".join(self._events)}]'


def event_row(
    event_id: UUID, event_type: str, data: Any, key: str | None, headers: Mapping[str, Any] | None
) -> str:
    """An event as publish_events takes it.

    Raises InvalidCommandError for values that cannot be stored.
    """
    check_text("event_type", event_type, 1, MAX_TYPE)
    fields: dict[str, Any] = {"event_id": str(event_id), "event_type": event_type}
    if key is not None:
        check_text("key", key, 1, MAX_KEY)
        fields["key"] = key
    if headers is not None and (given := checked_headers(headers)):
        fields["headers"] = given
    return f'{dumps(fields)[:-1]},"data":{json_text("data", data)}}}'
