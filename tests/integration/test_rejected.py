"""Messages and data that somebody wrote with SQL of his own spoil nothing but themselves."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from commandbus import CommandBus, CommandStatus
from tests.facts import (
    QUEUE,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    count,
    queued,
    register,
    rows,
    send,
    status,
    value,
)
from tests.waiting import eventually

GARBAGE = [
    "[]",
    "null",
    "5",
    '"text"',
    "{}",
    '{"command_id": null}',
    '{"command_id": 5}',
    '{"command_id": "no id"}',
    '{"command_id": []}',
    json.dumps({"command_id": "0" * 37}),
    json.dumps({"other": 1}),
    "[" * 3000 + "]" * 3000,
    '{"n": ' + "9" * 5000 + "}",
]


async def write(pool: Pool, message: str) -> int:
    return int(await value(pool, f"select pgmq.send('{QUEUE}', %s::jsonb)", message))


@pytest.mark.parametrize("message", GARBAGE, ids=lambda text: text[:25])
async def test_a_message_that_names_no_command_is_archived_and_listed(pool, message):
    msg_id = await write(pool, message)
    [good] = await send(pool)

    claimed = await claim_one(pool, await register(pool))

    assert claimed.command.command_id == good
    [[rejected, domain, queue, reason]] = await rows(
        pool, "select msg_id, domain, queue, reason from command_bus_rejected"
    )
    assert (rejected, domain, queue) == (msg_id, "test", QUEUE)
    assert reason == "The message names no command_id"
    assert await value(pool, f"select count(*) from pgmq.a_{QUEUE} where msg_id = %s", msg_id) == 1
    assert await queued(pool) == 1


async def test_a_message_of_an_unknown_command_is_archived_and_listed(pool):
    command_id = uuid4()
    await write(pool, json.dumps({"command_id": str(command_id)}))

    assert await claim(pool, await register(pool)) == []

    assert await rows(pool, "select command_id, reason from command_bus_rejected") == [
        (command_id, "No such command")
    ]
    assert await queued(pool) == 0


async def test_garbage_among_good_commands_delays_none_of_them(pool):
    for message in GARBAGE:
        await write(pool, message)
        await send(pool)

    claimed = await claim(pool, await register(pool), limit=2 * len(GARBAGE))

    assert len(claimed) == len(GARBAGE)
    assert await value(pool, "select count(*) from command_bus_rejected") == len(GARBAGE)
    await assert_books_balance(pool)


UNREADABLE = {
    "deep": "[" * 3000 + "]" * 3000,
    "long": '{"n": ' + "9" * 5000 + "}",
}


async def spoil(pool: Pool, command_id, data: str) -> None:
    await rows(
        pool,
        "update command_bus_command set data = %s::jsonb where command_id = %s",
        data,
        command_id,
    )


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
async def test_data_that_cannot_be_read_spoils_only_its_own_command(
    pool, registry, start_worker, data
):
    @registry.handler("test", "DoIt")
    async def handle(command, context):
        return command.data

    good = await send(pool, 5)
    [bad] = await send(pool)
    await spoil(pool, bad, data)
    await start_worker()

    async def ended():
        return [await status(pool, each) for each in (*good, bad)]

    await eventually(ended, lambda seen: seen == ["COMPLETED"] * 5 + ["IN_TSQ"])
    assert await count(pool, "command_bus_rejected", bad) == 1
    assert await value(pool, f"select count(*) from pgmq.a_{QUEUE}") == 1
    await assert_books_balance(pool)


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
async def test_data_that_cannot_be_read_is_shown_as_a_note(bus: CommandBus, pool, data):
    [good, bad] = await send(pool, 2)
    await spoil(pool, bad, data)

    command = await bus.get_command("test", bad)
    page = await bus.query_commands()

    assert command is not None
    assert set(command.data) == {"_undecodable", "start"}
    assert {each.command_id for each in page.commands} == {good, bad}


@pytest.mark.parametrize("data", ["[1]", "null", "5"])
async def test_data_of_any_json_shape_reaches_the_handler(pool, registry, start_worker, data):
    seen = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        seen.append(command.data)

    [command_id] = await send(pool)
    await spoil(pool, command_id, data)
    await start_worker()

    await eventually(lambda: status(pool, command_id), lambda s: s is CommandStatus.COMPLETED)
    assert seen == [json.loads(data)]
