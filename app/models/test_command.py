"""TestCommand: what a test command does, and its life together with its command."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, db
from app.models.tables import Time
from app.server.portal import call, current_bus
from app.testcommand import store
from app.testcommand.behaviors import DEFAULT_BEHAVIOR, Behavior
from app.testcommand.handlers import COMMAND_TYPE
from commandbus import CommandBus, DuplicateCommandError, SendResult, uuid7

DOMAIN = "test"


class TestCommand(Base):
    """A test command as it is stored.

    `create` writes it and sends its command in one transaction, so neither exists without the
    other. All writing goes through app.testcommand.store; an instance only reads.
    """

    __test__ = False  # its name would make pytest collect it
    __tablename__ = "test_command"

    id: Mapped[int] = mapped_column(primary_key=True)
    command_id: Mapped[UUID] = mapped_column(unique=True)
    payload: Mapped[Any] = mapped_column(JSONB)
    behavior: Mapped[Any] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(Time)
    processed_at: Mapped[datetime | None] = mapped_column(Time)
    attempts: Mapped[int]
    result: Mapped[Any] = mapped_column(JSONB)

    @classmethod
    def create(
        cls,
        behavior: Behavior | Mapping[str, Any] = DEFAULT_BEHAVIOR,
        payload: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> SendResult:
        """Write a test command and send its command, both or neither.

        *options* are those of `send_test_command`.
        """
        if not isinstance(behavior, Behavior):
            behavior = Behavior.model_validate(behavior)
        return call(send_test_command, current_bus(), behavior, dict(payload or {}), **options)

    @classmethod
    def get(cls, command_id: UUID) -> Self | None:
        """The test command with this id, or None."""
        found: Self | None = db.session.scalar(
            sa.select(cls)
            .where(cls.command_id == command_id)
            .execution_options(populate_existing=True)
        )
        return found

    def update(
        self,
        *,
        behavior: Behavior | Mapping[str, Any] | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> None:
        """Change what its next attempt does; what was sent stays as it is."""
        row: dict[str, Any] = {"command_id": self.command_id}
        if behavior is not None:
            if not isinstance(behavior, Behavior):
                behavior = Behavior.model_validate(behavior)
            row["behavior"] = behavior.to_json()
        if payload is not None:
            row["payload"] = dict(payload)
        call(_in_transaction, current_bus(), store.update_test_commands, [row])
        db.session.expire(self)

    def delete(self) -> None:
        """Delete the test command; its command stays, and an attempt without a behaviour fails."""
        call(_in_transaction, current_bus(), store.delete_test_commands, [self.command_id])
        db.session.expunge(self)


async def send_test_command(
    bus: CommandBus,
    behavior: Behavior,
    payload: dict[str, Any],
    *,
    command_id: UUID | None = None,
    correlation_id: UUID | None = None,
    reply_to: str | None = None,
    max_attempts: int | None = None,
    headers: Mapping[str, Any] | None = None,
    lane: str | None = None,
) -> SendResult:
    """Write a test command and send its command in one transaction.

    A known *command_id* with the same content is answered, not sent again. Raises
    DuplicateCommandError where the content differs, of which the behaviour is a part.
    """
    command_id = command_id or uuid7()
    async with bus.transaction() as conn:
        row = (command_id, behavior.to_json(), payload)
        written = await store.create_test_command(conn, *row)
        if not written:
            # A later statement than the insert, so that a concurrent winner's row is seen.
            known = (await store.get_test_commands(conn, [command_id])).get(command_id)
            if known is None or not Behavior.model_validate(known.behavior).same_as(behavior):
                raise DuplicateCommandError(f"command {command_id} exists with another behavior")
        result = await bus.send(
            DOMAIN,
            COMMAND_TYPE,
            command_id,
            payload,
            correlation_id=correlation_id,
            reply_to=reply_to,
            max_attempts=max_attempts,
            headers=headers,
            lane=lane,
            conn=conn,
        )
        if written and not result.created:
            raise DuplicateCommandError(f"command {command_id} exists without a behavior")
        if result.created and not written:
            # Both were there a moment ago, and pruned since; the command has just been sent anew.
            await store.create_test_command(conn, *row)
        return result


async def _in_transaction(bus: CommandBus, write: Any, rows: Any) -> None:
    async with bus.transaction() as conn:
        await write(conn, rows)
