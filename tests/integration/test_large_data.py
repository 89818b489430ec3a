"""Data of any size and shape: too large is refused, and the caller's transaction goes on."""

from __future__ import annotations

import sys
from typing import Any
from uuid import uuid4

import pytest

from commandbus import InvalidCommandError, NewCommand
from tests.facts import queued, rows


def new(data: Any) -> NewCommand:
    return NewCommand(command_type="DoIt", command_id=uuid4(), data=data)


def shared_parts() -> list[Any]:
    """A billion numbers as JSON, in four kilobytes of memory."""
    made: list[Any] = [1] * 1000
    for _ in range(2):
        made = [made] * 1000
    return made


def shared_text() -> dict[str, Any]:
    return {"a": ["x" * 1_000_000] * 100_000}


def shared_keys() -> list[Any]:
    return [{"x" * 1_000_000: 1}] * 100_000


def many_numbers() -> list[int]:
    return [1] * 24_000_000


TOO_LARGE = [shared_parts, shared_text, shared_keys, many_numbers]


@pytest.mark.parametrize("made", TOO_LARGE)
async def test_what_is_too_large_is_refused_and_the_transaction_goes_on(bus, pool, made):
    data = made()
    async with bus.transaction() as conn:
        with pytest.raises(InvalidCommandError, match="data cannot be stored as JSON"):
            await bus.send("test", "DoIt", uuid4(), data, conn=conn)
        with pytest.raises(InvalidCommandError, match="data cannot be stored as JSON"):
            await bus.send_many("test", [new(data)], conn=conn)
        await bus.send("test", "DoIt", uuid4(), {}, conn=conn)

    assert await queued(pool) == 1


@pytest.fixture(name="any_digits")
def _any_digits():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


async def test_a_number_that_nobody_could_read_is_refused(bus, pool, any_digits):
    async with bus.transaction() as conn:
        with pytest.raises(InvalidCommandError, match="more digits"):
            await bus.send("test", "DoIt", uuid4(), {"n": 10**140_000}, conn=conn)
        await bus.send("test", "DoIt", uuid4(), {}, conn=conn)
    assert await queued(pool) == 1


async def test_large_data_that_the_server_refuses_leaves_the_transaction_usable(bus, pool):
    """As it does where all of it takes more than the server holds, which is slow to try."""
    await rows(pool, "create table my_order (id int primary key)")
    await rows(
        pool,
        "create function refuse() returns trigger language plpgsql as $$ begin"
        " raise exception 'too large' using errcode = 'program_limit_exceeded'; end $$",
    )
    await rows(
        pool,
        "create trigger refuse before insert on command_bus_command for each row"
        " when (new.command_type = 'DoIt') execute function refuse()",
    )
    async with bus.transaction() as conn:
        await conn.execute("insert into my_order values (1)")
        with pytest.raises(InvalidCommandError, match="too large"):
            await bus.send("test", "DoIt", uuid4(), "x" * 200_000, conn=conn)
        with pytest.raises(InvalidCommandError, match="too large"):
            await bus.send_many("test", [new("x" * 200_000)], conn=conn)
        await bus.send("test", "Other", uuid4(), {}, conn=conn)

    assert await queued(pool) == 1
    assert await rows(pool, "select id from my_order") == [(1,)]
