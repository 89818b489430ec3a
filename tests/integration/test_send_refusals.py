"""What cannot be sent is refused with one clear error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import math
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from commandbus import CommandStatus, NewCommand
from commandbus.errors import (
    InvalidCommandError,
    InvalidDomainError,
    UnknownDomainError,
    UnknownReplyQueueError,
)
from tests.facts import (
    claim,
    claim_one,
    completed,
    queued,
    register,
    rows,
    settle,
    value,
)

# Replies and domains


async def test_a_reply_queue_must_exist(bus, pool):
    with pytest.raises(UnknownReplyQueueError, match="nowhere"):
        await bus.send("test", "DoIt", uuid4(), {}, reply_to="nowhere")

    assert await queued(pool) == 0
    assert await value(pool, "select count(*) from command_bus_command") == 0


async def test_any_queue_may_take_replies(bus, pool):
    await rows(pool, "select pgmq.create('mine')")

    assert (await bus.send("test", "DoIt", uuid4(), {}, reply_to="mine")).created


LONG = "x" * 40


@pytest.mark.parametrize("spelt", [str, str.upper])
@pytest.mark.parametrize("domain", ["test", "other", LONG])
async def test_the_queue_of_a_domains_commands_takes_no_replies(bus, pool, domain, spelt):
    if domain != "test":
        await bus.create_domain(domain)
    queue = await value(
        pool, "select command_queue from command_bus_domain where domain = %s", domain
    )
    name = spelt(queue)
    await rows(pool, "select pgmq.create(%s)", name)  # PGMQ knows it in this spelling, too
    command = {"command_id": str(uuid4()), "command_type": "DoIt", "data": {}, "reply_to": name}

    with pytest.raises(UnknownReplyQueueError, match=f'takes the commands of domain "{domain}"'):
        await bus.send("test", "DoIt", uuid4(), {}, reply_to=name)
    with pytest.raises(UnknownReplyQueueError, match="takes the commands"):
        await bus.send_many(
            "test", [NewCommand(command_type="DoIt", command_id=uuid4(), reply_to=name)]
        )
    for query in (
        "select * from command_bus.send_command('test', %s::jsonb)",
        "select * from command_bus.send_commands('test', jsonb_build_array(%s::jsonb))",
    ):
        with pytest.raises(psycopg.Error, match="takes the commands"):
            await rows(pool, query, json.dumps(command))

    assert await queued(pool, queue=queue) == 0
    assert await value(pool, "select count(*) from command_bus_command") == 0


async def test_an_unknown_domain_says_how_to_create_it(bus):
    with pytest.raises(UnknownDomainError, match="create_domain"):
        await bus.send("nowhere", "DoIt", uuid4(), {})


BAD_NAMES = ["", "Test", "1st", "_x", "a-b", "a b", "ä", "x" * 41, 'a"; drop table x', "a\n", "a\0"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_name_that_no_domain_may_have_is_refused(bus, name):
    with pytest.raises(InvalidDomainError, match="must match"):
        await bus.create_domain(name)
    with pytest.raises(InvalidDomainError, match="must match"):
        await bus.send(name, "DoIt", uuid4(), {})


@pytest.mark.parametrize("name", ["a", "x" * 37, "x" * 38, "x" * 40, "a_b_1"])
async def test_a_domain_works_under_a_name_of_any_length(bus, pool, name):
    await bus.create_domain(name)
    await bus.create_domain(name)
    command_id = uuid4()

    await bus.send(name, "DoIt", command_id, {})

    worker_id = await register(pool, name)
    claimed = await claim_one(pool, worker_id, domain=name)
    assert await settle(pool, worker_id, completed(claimed), domain=name) == []
    command = await bus.get_command(name, command_id)
    assert command is not None
    assert command.status is CommandStatus.COMPLETED


async def test_long_names_that_begin_alike_have_queues_of_their_own(bus, pool):
    for end in "ab":
        await bus.create_domain("x" * 39 + end)

    await bus.send("x" * 39 + "a", "DoIt", uuid4(), {})

    worker_id = await register(pool, "x" * 39 + "b")
    async with asyncio.timeout(5):
        assert await claim(pool, worker_id, domain="x" * 39 + "b") == []


async def test_a_domain_may_be_created_by_many_at_once(bus):
    await asyncio.gather(*(bus.create_domain("shared") for _ in range(8)))

    assert (await bus.send("shared", "DoIt", uuid4(), {})).created


# Values


def repr_of(data: object) -> str:
    return type(data).__name__ if type(data) in (int, object) else ascii(data)[:40]


@pytest.mark.parametrize(
    "data",
    [
        {"a": "\0"},
        {"\0": 1},
        "\ud800",
        {"a": math.nan},
        [math.inf],
        {"a": {1, 2}},
        {(1, 2): 3},
        object(),
        10**5000,
        Decimal("12345678901234567.89"),
        {1: "a", "1": "b"},
        [{"deep": ({None: 1, "null": 2},)}],
        {True: 1, "true": 2},
        {1.5: 1, "1.5": 2},
        {1: "a", 1.5: "b", "1.5": "c"},
    ],
    ids=repr_of,
)
async def test_data_that_cannot_be_stored_is_refused(bus, pool, data):
    with pytest.raises(InvalidCommandError):
        await bus.send("test", "DoIt", uuid4(), data)

    assert await queued(pool) == 0


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize("depth", [500, 900, 3000, 50_000])
async def test_data_that_readers_could_not_follow_is_refused(bus, pool, depth):
    with pytest.raises(InvalidCommandError, match=r"nested|recursion|deep"):
        await bus.send("test", "DoIt", uuid4(), nested(depth))

    assert await queued(pool) == 0


async def test_keys_that_are_no_text_become_text(bus):
    command_id = uuid4()
    await bus.send("test", "DoIt", command_id, {1: {None: "a", True: "b"}, 2.5: "c"})

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.data == {"1": {"null": "a", "true": "b"}, "2.5": "c"}


async def test_a_handler_gets_numbers_as_they_are_stored_digit_by_digit(pool):
    await rows(
        pool,
        "select * from command_bus.send_command('test', %s::jsonb)",
        f'{{"command_id": "{uuid4()}", "command_type": "DoIt", "data":'
        " [12345678901234567.89, 0.1, 1e-7, 123456789012345678901234567890]}",
    )

    claimed = await claim_one(pool, await register(pool))

    assert [repr(number) for number in claimed.command.data] == [
        "Decimal('12345678901234567.89')",
        "0.1",
        "1e-07",
        "123456789012345678901234567890",
    ]


@pytest.mark.parametrize("data", [[1, 2], "text", 5, True, 1.5, {"😀": "ä"}, nested(60)], ids=ascii)
async def test_any_other_json_is_data(bus, data):
    command_id = uuid4()
    await bus.send("test", "DoIt", command_id, data)

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.data == data


@pytest.mark.parametrize(
    "fields",
    [
        {"command_type": ""},
        {"command_type": "x" * 201},
        {"command_type": "a\0b"},
        {"command_type": "\ud800"},
        {"command_type": None},
        {"command_type": 5},
        {"command_id": "no id"},
        {"command_id": 5},
        {"correlation_id": "no id"},
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": True},
        {"max_attempts": 2.5},
        {"max_attempts": 2**31},
        {"reply_to": "a\0b"},
    ],
    ids=ascii,
)
async def test_fields_that_make_no_sense_are_refused(bus, pool, fields):
    given = {"command_type": "DoIt", "command_id": uuid4(), "data": {}, **fields}

    with pytest.raises(InvalidCommandError):
        await bus.send("test", **given)

    assert await queued(pool) == 0
    assert await value(pool, "select count(*) from command_bus_command") == 0
