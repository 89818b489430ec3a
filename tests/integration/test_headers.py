"""Headers go along with a command, and are no part of its content."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from commandbus import NewCommand, TroubleshootingQueue
from commandbus.errors import InvalidCommandError
from commandbus.payload import MAX_HEADERS_BYTES
from tests.facts import (
    DOMAIN,
    REPLIES,
    claim_one,
    completed,
    failed,
    register,
    release,
    rows,
    send,
    settle,
)
from tests.waiting import until

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tenant": 7}


async def test_the_handler_sees_the_headers_of_its_command(bus, start_worker, registry):
    seen: dict[str, Any] = {}

    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        seen[command.data["name"]] = command.headers

    await start_worker()
    await bus.send(DOMAIN, "DoIt", uuid4(), {"name": "one"}, headers=TRACE)
    commands = [
        NewCommand(command_type="DoIt", command_id=uuid4(), data={"name": name}, headers=headers)
        for name, headers in [("many", TRACE), ("none", None), ("empty", {})]
    ]
    await bus.send_many(DOMAIN, commands)

    await until(lambda: len(seen) == 4)
    assert seen == {"one": TRACE, "many": TRACE, "none": {}, "empty": {}}


async def test_headers_are_kept_through_every_attempt(pool, bus):
    [command_id] = await send(pool, headers=TRACE)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await release(pool, worker_id, [claimed])
    await settle(pool, worker_id, failed(await claim_one(pool, worker_id), "transient"))
    await settle(pool, worker_id, failed(await claim_one(pool, worker_id), "permanent"))
    await TroubleshootingQueue(pool).operator_retry(DOMAIN, command_id)

    claimed = await claim_one(pool, worker_id)

    assert claimed.command.headers == TRACE
    assert (await bus.get_command(DOMAIN, command_id)).headers == TRACE


async def test_the_reply_carries_the_headers(pool, bus):
    await send(pool, reply_to=REPLIES, headers=TRACE)
    await send(pool, reply_to=REPLIES)
    worker_id = await register(pool)
    for _ in range(2):
        await settle(pool, worker_id, completed(await claim_one(pool, worker_id, limit=1)))

    assert [reply.headers for reply in await bus.read_replies(REPLIES)] == [TRACE, {}]


async def test_the_same_command_with_other_headers_is_known(bus):
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, headers=TRACE)

    again = await bus.send(DOMAIN, "DoIt", command_id, {}, headers={"traceparent": "another"})
    [in_a_set] = await bus.send_many(
        DOMAIN, [NewCommand(command_type="DoIt", command_id=command_id)]
    )

    assert not again.created
    assert not in_a_set.created
    assert (await bus.get_command(DOMAIN, command_id)).headers == TRACE


@pytest.mark.parametrize(
    "headers",
    [
        {"long": "x" * MAX_HEADERS_BYTES},
        {"nul": "\0"},
        {"nan": float("nan")},
        {"object": object()},
        {1: "a number as key"},
        [("a", "list")],
        "text",
        0,
    ],
    ids=["long", "nul", "nan", "object", "number as key", "list", "text", "zero"],
)
async def test_headers_that_cannot_be_stored_are_refused(pool, bus, headers):
    with pytest.raises(InvalidCommandError, match="headers"):
        await bus.send(DOMAIN, "DoIt", uuid4(), {}, headers=headers)
    assert await rows(pool, "select from command_bus_command") == []


async def test_headers_of_the_greatest_length_are_stored(bus):
    headers = {"long": "x" * (MAX_HEADERS_BYTES - len('{"long":""}'))}
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, headers=headers)

    assert (await bus.get_command(DOMAIN, command_id)).headers == headers
