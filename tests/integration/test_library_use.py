"""The library in programs of others: their rows are dictionaries, and they make mistakes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from commandbus import (
    CommandBus,
    CommandStatus,
    HandlerRegistry,
    InvalidCommandError,
    NewCommand,
    PermanentCommandError,
    Pruner,
    RetentionRule,
    TroubleshootingQueue,
    UnknownDomainError,
    UnknownReplyQueueError,
    Worker,
    uuid7,
)
from tests.waiting import eventually


async def test_a_pool_whose_rows_are_dictionaries_does_everything(database_url):
    registry = HandlerRegistry()

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        if command.data["bad"]:
            raise PermanentCommandError("BAD", "It is bad")

    async with AsyncConnectionPool(
        database_url, open=False, kwargs={"row_factory": dict_row}
    ) as pool:
        bus, tsq = CommandBus(pool), TroubleshootingQueue(pool)
        good, bad = uuid4(), uuid4()
        async with bus.transaction() as conn:
            row: Any = await (await conn.execute("select 1 as one")).fetchone()
            assert row == {"one": 1}
            await bus.send("test", "DoIt", good, {"bad": False}, conn=conn)
        await bus.send_many(
            "test",
            [NewCommand(command_type="DoIt", command_id=bad, data={"bad": True})],
            batch_id=uuid7(),
        )
        worker = Worker(pool, domain="test", handler_registry=registry)
        running = asyncio.create_task(worker.run())

        async def both_ended() -> bool:
            counts = await bus.count_by_status("test")
            return counts[CommandStatus.COMPLETED] == counts[CommandStatus.IN_TSQ] == 1

        await eventually(both_ended)
        worker.stop()
        await running
        await tsq.operator_cancel("test", bad)
        assert [event.event_type for event in await bus.get_audit_trail(good)] == [
            "SENT",
            "RECEIVED",
            "COMPLETED",
        ]
    async with await AsyncConnection.connect(
        database_url, autocommit=True, row_factory=dict_row
    ) as mine:
        pruner = Pruner(mine, domain="test")
        done = await pruner.prune([RetentionRule(status=CommandStatus.COMPLETED, keep=0)])
        await pruner.prune_history(timedelta(0))
    assert done.commands == {CommandStatus.COMPLETED: 1}


@pytest.mark.parametrize("age", [timedelta.max, timedelta(days=700_000)])
async def test_an_age_before_all_time_prunes_nothing(bus, pool, database_url, age):
    await bus.send("test", "DoIt", uuid4(), {})
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        pruner = Pruner(conn)
        done = await pruner.prune([RetentionRule(status=CommandStatus.FAILED, older_than=age)])

        assert await pruner.prune_history(age) == {}
    assert done.commands.total() == 0


async def test_values_that_cannot_be_looked_for_are_named_in_our_own_error(bus, tsq):
    no_uuid = cast(Any, "x")

    for call in (
        bus.get_command("test", no_uuid),
        bus.get_command("te\0st", uuid4()),
        bus.get_audit_trail(no_uuid),
        bus.query_commands(correlation_id=no_uuid),
        bus.get_batch(no_uuid),
        tsq.list(group_id=no_uuid),
        tsq.count("te\0st"),
    ):
        with pytest.raises(InvalidCommandError, match=r"must be a UUID, not 'x'|NUL"):
            await call


@pytest.mark.parametrize(
    ("text", "said"), [("\0", "cannot be converted to text"), ("\ud800", "surrogate")]
)
async def test_text_that_cannot_be_stored_says_what_is_wrong_with_it(bus, text, said):
    with pytest.raises(InvalidCommandError, match=said):
        await bus.send("test", "DoIt", uuid4(), {"note": text})


async def test_a_domain_tells_its_reply_queue_however_long_its_name_is(bus):
    long = "a" * 40
    await bus.create_domain(long)

    assert await bus.get_reply_queue("test") == "test__replies"
    queue = await bus.get_reply_queue(long)
    assert (await bus.send(long, "DoIt", uuid4(), {}, reply_to=queue)).created
    assert await bus.read_replies(queue) == []
    with pytest.raises(UnknownDomainError, match="nowhere"):
        await bus.get_reply_queue("nowhere")


@pytest.mark.parametrize("queue", ["no'body", "nobody", ""])
async def test_a_queue_that_cannot_be_is_unknown(bus, queue):
    with pytest.raises(UnknownReplyQueueError):
        await bus.read_replies(queue)


async def test_a_worker_runs_once(make_worker):
    worker = make_worker()
    worker.stop()
    await worker.run()

    with pytest.raises(RuntimeError, match="runs once"):
        await worker.run()
