"""What waits for its time stands beside the queue, and enters it when due."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from commandbus import CommandStatus, NewCommand, store
from tests.facts import (
    assert_books_balance,
    claim,
    claim_one,
    count,
    events,
    failed,
    make_due,
    queued,
    register,
    send,
    settle,
    status,
    value,
)


async def test_a_failed_attempt_waits_for_its_backoff(pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    first = await claim_one(pool, worker_id)

    await settle(pool, worker_id, failed(first, retry_delay_ms=60_000))

    assert await status(pool, command_id) == CommandStatus.PENDING
    assert await queued(pool) == 0
    assert await claim(pool, worker_id) == []
    seconds = await value(
        pool, "select extract(epoch from due_at - now()) from command_bus_waiting"
    )
    assert 55 < seconds <= 60

    await make_due(pool, command_id)
    second = await claim_one(pool, worker_id)
    assert (second.attempt, second.claim_no) == (2, 2)
    assert second.msg_id != first.msg_id
    assert await count(pool, "command_bus_waiting", command_id) == 0
    assert await events(pool, command_id) == [
        "SENT",
        "RECEIVED",
        "FAILED",
        "RETRY_SCHEDULED",
        "RECEIVED",
    ]
    await assert_books_balance(pool)


async def test_what_waits_costs_a_claim_nothing(bus, pool):
    await bus.send_many(
        "test",
        [NewCommand(command_type="DoIt", command_id=uuid4(), delay=3600) for _ in range(3000)],
    )
    worker_id = await register(pool)
    query = (
        "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables"
        " where relname = 'command_bus_waiting'"
    )
    async with pool.connection() as conn, conn.transaction():
        assert await store.claim_commands(conn, "test", worker_id, 100, 30, 3) == []
        read = await (await conn.execute(query)).fetchone()

    assert read[0] < 10


async def test_the_trail_says_when_the_retry_is_due(bus, pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    await settle(pool, worker_id, failed(await claim_one(pool, worker_id), retry_delay_ms=1500))

    [scheduled] = [
        event
        for event in await bus.get_audit_trail(command_id)
        if event.event_type == "RETRY_SCHEDULED"
    ]
    assert scheduled.details["delay_ms"] == 1500
    assert scheduled.details["due_at"]


async def test_what_is_due_is_claimed_in_the_order_of_its_time(pool):
    ids = [command_id for _ in range(3) for command_id in await send(pool, delay=60)]
    await make_due(pool, ids[2])

    assert (await claim_one(pool, await register(pool))).command.command_id == ids[2]
    assert await count(pool, "command_bus_waiting", ids[0]) == 1


async def test_an_idle_worker_learns_when_to_look_again(pool):
    async def look_ahead():
        async with store.autocommit(pool) as conn:
            return await store.look_ahead(conn, "test")

    nothing = await look_ahead()
    assert (nothing.due, nothing.suspects, nothing.parked_types) == (None, False, [])
    await send(pool, delay=50)
    await send(pool, delay=20)
    found = await look_ahead()
    assert found.due == pytest.approx(20, abs=5)
    assert not found.suspects


async def test_of_many_claims_at_once_each_due_command_enters_the_queue_once(pool):
    ids = await send(pool, 100, delay=60)
    await make_due(pool, *ids)
    workers = [await register(pool) for _ in range(4)]

    claims = await asyncio.gather(*(claim(pool, workers[n % 4], limit=20) for n in range(12)))

    taken = [each.command.command_id for part in claims for each in part]
    taken += [each.command.command_id for each in await claim(pool, workers[0])]
    assert sorted(taken) == sorted(ids)
    assert await queued(pool) == 100
    await assert_books_balance(pool)


async def test_a_claim_promotes_a_bounded_number(pool):
    ids = await send(pool, 1500, delay=60)
    await make_due(pool, *ids)

    assert len(await claim(pool, await register(pool), limit=10)) == 10

    assert await queued(pool) == 1000
    assert await value(pool, "select count(*) from command_bus_waiting") == 500


async def test_a_row_that_somebody_locks_is_left_for_the_next_claim(bus, pool):
    [locked, free] = [*await send(pool, delay=60), *await send(pool, delay=60)]
    await make_due(pool, locked, free)
    worker_id = await register(pool)

    async with bus.transaction() as conn, asyncio.timeout(5):
        await conn.execute(
            "select from command_bus_waiting where command_id = %s for update", (locked,)
        )
        assert (await claim_one(pool, worker_id)).command.command_id == free

    assert (await claim_one(pool, worker_id)).command.command_id == locked
