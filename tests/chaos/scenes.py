"""What chaos tests share: a mixture of commands, sending it on the record, waiting for its end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from commandbus import CommandBus, NewCommand, uuid7
from commandbus.errors import INFRASTRUCTURE_ERRORS
from tests.chaos.history import History
from tests.chaos.worker_program import COMMAND_TYPE
from tests.facts import DOMAIN, REPLIES, Pool


def command(
    do: str, *, max_attempts: int | None = None, lane: str | None = None, **data: Any
) -> NewCommand:
    """A command that asks for a reply and carries something to compare later."""
    return NewCommand(
        command_type=COMMAND_TYPE,
        command_id=uuid7(),
        data={"do": do, "text": "Zoë 🜁", "number": 12345678901234567890, **data},
        correlation_id=uuid7(),
        reply_to=REPLIES,
        max_attempts=max_attempts,
        lane=lane,
    )


def mixture(count: int, chance: random.Random, *, lease_seconds: float = 1.0) -> list[NewCommand]:
    """70 % success, 15 transient, 5 permanent, 5 business, 4 slower than the lease, 1 deadly."""
    made = []
    for number in range(count):
        ms = chance.choice((0, 0, 1, 5, 20))
        match number % 100:
            case n if n < 70:
                made.append(command("success", ms=ms))
            case n if n < 85:
                made.append(command("transient", ms=ms, failures=chance.choice((1, 2, 2, 3))))
            case n if n < 90:
                made.append(command("permanent", ms=ms))
            case n if n < 95:
                made.append(command("business", ms=ms))
            case n if n < 99:
                made.append(command("slow", seconds=lease_seconds * 1.5))
            case _:
                made.append(command(chance.choice(("exit", "kill", "segv"))))
    chance.shuffle(made)
    return made


def content(new: NewCommand) -> dict[str, Any]:
    """What of a command must be found again as it was sent."""
    return {
        "command_type": new.command_type,
        "data": new.data,
        "correlation_id": str(new.correlation_id) if new.correlation_id else None,
        "reply_to": new.reply_to,
        "max_attempts": new.max_attempts,
        **({} if new.lane is None else {"lane": new.lane}),
    }


async def send_on_record(
    pool: Pool,
    history: History,
    commands: Sequence[NewCommand],
    *,
    chunk: int = 100,
    pause: float = 0.0,
) -> None:
    """Send in chunks, each again with the same ids until it is acknowledged."""
    bus = CommandBus(pool)
    for start in range(0, len(commands), chunk):
        part = commands[start : start + chunk]
        for each in part:
            history.attempted(str(each.command_id), content(each))
        while True:
            try:
                await bus.send_many(DOMAIN, part)
            except INFRASTRUCTURE_ERRORS:
                await asyncio.sleep(0.05)
            else:
                break
        for each in part:
            history.acknowledged(str(each.command_id))
        await asyncio.sleep(pause)


async def all_ended(url: str, *, seconds: float) -> float:
    """Wait until no command is open; how long that took. Fails with what is still open."""
    began = time.monotonic()
    while True:
        try:
            left = await asyncio.to_thread(_open_commands, url)
        except psycopg.OperationalError:
            left = [("the server", "is away")]
        if not left:
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, f"after {seconds} s still open: {left}"
        await asyncio.sleep(0.1)


def _open_commands(url: str) -> list[TupleRow]:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(
            "select status::text, msg_id, attempts, command_id::text, data->>'do',"
            " clock_timestamp() - updated_at"
            " from command_bus_command where status in ('PENDING', 'IN_PROGRESS') limit 20"
        ).fetchall()


def ids(commands: Iterable[NewCommand], *wanted: str) -> list[str]:
    """The ids of the commands that ask for one of these things."""
    return [str(each.command_id) for each in commands if each.data["do"] in wanted]


def uuids(commands: Iterable[NewCommand]) -> list[UUID]:
    """The ids of commands."""
    return [each.command_id for each in commands]
