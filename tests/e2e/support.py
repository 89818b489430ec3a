"""What the suites call as plain functions, bound to the database of the running test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from app.testcommand import store
from tests.facts import Pool

_current: list[Pool] = []


@contextmanager
def bound_to(pool: Pool) -> Iterator[None]:
    """The functions of this module act on *pool*."""
    _current.append(pool)
    try:
        yield
    finally:
        _current.pop()


async def create_test_command(
    command_id: UUID, behavior: dict[str, Any], payload: dict[str, Any] | None = None
) -> None:
    """Store what the handler shall do with the command that will be sent with this id."""
    async with _current[-1].connection() as conn:
        await store.create_test_command(conn, command_id, behavior, payload or {})


async def update_test_command(command_id: UUID, behavior: dict[str, Any]) -> None:
    """Store another behaviour for the next attempt."""
    async with _current[-1].connection() as conn:
        await store.update_test_commands(
            conn, [{"command_id": str(command_id), "behavior": behavior}]
        )
