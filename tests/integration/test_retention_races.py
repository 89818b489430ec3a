"""Pruning while workers, senders and operators are at work."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import timedelta
from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.errors import SerializationFailure

from commandbus import (
    BusinessRuleError,
    CommandStatus,
    NewCommand,
    PermanentCommandError,
    Pruner,
    RetentionRule,
    TransientCommandError,
    store,
)
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    DOMAIN,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    events,
    expire_leases,
    failed,
    queued,
    register,
    rows,
    send,
    settle,
    value,
)
from tests.integration.pruning import (
    end,
    left,
    make,
    prune,
)
from tests.waiting import eventually


async def blocked(pool: Pool) -> int:
    """How many sessions of this database wait for an advisory lock."""
    return int(
        await value(
            pool,
            "select count(*) from pg_locks where locktype = 'advisory' and not granted and database"
            " = (select oid from pg_database where datname = current_database())",
        )
    )


async def test_pruning_does_not_wait_for_locked_commands(pool):
    worker_id = await register(pool)
    ids = await make(pool, worker_id, 3)
    async with pool.connection() as conn, conn.transaction():
        await conn.execute(
            "select from command_bus_command where command_id = %s for update", (ids[1],)
        )
        pruned = await prune(pool)

    assert pruned.commands.total() == 2
    assert await left(pool) == {ids[1]}
    assert (await prune(pool)).commands.total() == 1


async def test_a_late_result_leaves_nothing_behind_a_command_that_is_being_pruned(pool):
    worker_id = await register(pool)
    [command_id] = await send(pool)
    first = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id)))

    async with pool.connection() as conn, conn.transaction():
        await conn.execute(
            "select * from command_bus.prune_commands('COMPLETED', clock_timestamp(), 10)"
        )
        late = asyncio.create_task(settle(pool, worker_id, completed(first)))
        await eventually(lambda: blocked(pool))
    await late

    assert await left(pool) == set()
    assert await value(pool, "select count(*) from command_bus_audit") == 0
    await assert_books_balance(pool)


async def test_nor_where_the_late_worker_sees_an_older_snapshot(pool):
    """Where the role has REPEATABLE READ as its default, each call sees what was before it."""
    worker_id = await register(pool)
    [command_id] = await send(pool)
    first = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id)))

    async with pool.connection() as late:
        await late.execute("set default_transaction_isolation to 'repeatable read'")
        await late.commit()
        await late.set_autocommit(True)
        async with pool.connection() as conn, conn.transaction():
            await conn.execute(
                "select * from command_bus.prune_commands('COMPLETED', clock_timestamp(), 10)"
            )
            settling = asyncio.create_task(
                store.settle_commands(late, DOMAIN, worker_id, json.dumps([completed(first)]), "[]")
            )
            await eventually(lambda: blocked(pool))
        with pytest.raises(SerializationFailure):  # the worker tries again then
            await settling
        [again] = await store.settle_commands(
            late, DOMAIN, worker_id, json.dumps([completed(first)]), "[]"
        )
        await late.execute("reset default_transaction_isolation")
        await late.set_autocommit(False)

    assert again.verdict == "unknown"
    assert await value(pool, "select count(*) from command_bus_audit") == 0
    await assert_books_balance(pool)


async def test_pruning_sees_the_late_result_that_it_waited_for(pool, database_url):
    worker_id = await register(pool)
    [command_id] = await send(pool)
    first = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id)))

    options = "-c default_transaction_isolation=serializable"
    async with (
        pool.connection() as late,
        await AsyncConnection.connect(database_url, autocommit=True, options=options) as conn,
    ):
        await store.settle_commands(late, DOMAIN, worker_id, json.dumps([completed(first)]), "[]")
        rule = RetentionRule(status=CommandStatus.COMPLETED, older_than=timedelta(0))
        pruning = asyncio.create_task(Pruner(conn).prune([rule]))
        await eventually(lambda: blocked(pool))
        await late.commit()
        assert (await pruning).commands.total() == 1
        await Pruner(conn).prune_history(timedelta(0))

    assert await value(pool, "select count(*) from command_bus_audit") == 0
    await assert_books_balance(pool)


async def test_history_is_pruned_while_a_failure_and_a_late_result_are_recorded(pool):
    """Both take two locks, which they must take in the same order."""
    worker_id = await register(pool)
    await send(pool, 2)
    late, failing = await claim(pool, worker_id)
    await expire_leases(pool, late.command.command_id)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id)))

    async with pool.connection() as conn, pool.connection() as pruning:
        # The failure first, and then the late result: what one call would do, with time between.
        await store.settle_commands(
            conn, DOMAIN, worker_id, "[]", json.dumps([failed(failing, "permanent")])
        )
        history = asyncio.create_task(
            pruning.execute("select command_bus.prune_history(clock_timestamp(), 10)")
        )
        await eventually(lambda: blocked(pool))
        await store.settle_commands(conn, DOMAIN, worker_id, json.dumps([completed(late)]), "[]")
        await conn.commit()
        await history

    assert (await events(pool, late.command.command_id))[-1] == "LATE_RESULT"
    await assert_books_balance(pool)


async def test_a_send_that_meets_a_command_just_before_it_is_pruned_sends_it_anew(pool, bus):
    """The insert finds the old command; when the content is compared, it is gone."""
    worker_id = await register(pool)
    old, new = sorted([uuid4(), uuid4()])
    await bus.send(DOMAIN, "DoIt", old, {})
    await end(pool, worker_id, [old], "COMPLETED")
    # Hold the send between its two halves: the rows are inserted in the order of their ids.
    await rows(
        pool,
        f"""
        create function wait_here() returns trigger language plpgsql as $$
        begin
            if new.command_id = '{new}' then perform pg_advisory_xact_lock(4711); end if;
            return new;
        end $$
        """,
    )
    await rows(
        pool,
        "create trigger wait_here before insert on command_bus_command"
        " for each row execute function wait_here()",
    )
    commands = [NewCommand(command_type="DoIt", command_id=each, data={}) for each in (old, new)]
    async with pool.connection() as conn, conn.transaction():
        await conn.execute("select pg_advisory_xact_lock(4711)")
        sending = asyncio.create_task(bus.send_many(DOMAIN, commands))
        await eventually(lambda: blocked(pool))
        assert (await prune(pool)).commands.total() == 1
    sent = await sending

    assert [(each.command_id, each.created) for each in sent] == [(old, True), (new, True)]
    assert await events(pool, old) == ["SENT"]
    assert await queued(pool) == 2
    await assert_books_balance(pool)


async def test_workers_operators_and_pruning_at_once(pool, bus, registry, start_worker):
    """Nothing that is open is lost, and every snapshot on the way is consistent."""
    chance = random.Random(4)

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        kind = command.data["kind"]
        if kind == "permanent":
            raise PermanentCommandError("P", "never")
        if kind == "business":
            raise BusinessRuleError("B", "no")
        if kind == "transient" and context.attempt == 1:
            raise TransientCommandError("T", "later")

    kinds = ["success", "success", "transient", "business", "permanent"]
    commands = [
        NewCommand(command_type="DoIt", command_id=uuid4(), data={"kind": chance.choice(kinds)})
        for _ in range(400)
    ]
    tsq = TroubleshootingQueue(pool)
    workers = [await start_worker(concurrency=8, batch_size=8) for _ in range(2)]
    over = asyncio.Event()

    async def keep_pruning() -> int:
        total = 0
        while not over.is_set():
            total += (await prune(pool, batch_size=7)).commands.total()
        return total

    async def keep_operating() -> None:
        while not over.is_set():
            for each in await tsq.list(DOMAIN, limit=5):
                await tsq.operator_cancel(DOMAIN, each.command_id)
            await asyncio.sleep(0.01)

    async def keep_looking() -> None:
        while not over.is_set():
            async with pool.connection() as conn, conn.transaction():
                await conn.execute("set transaction isolation level repeatable read, read only")
                cur = await conn.execute("select * from command_bus.find_violations()")
                assert await cur.fetchall() == []

    side = [
        asyncio.create_task(work) for work in (keep_pruning(), keep_operating(), keep_looking())
    ]
    for start in range(0, len(commands), 50):
        await bus.send_many(DOMAIN, commands[start : start + 50])
    try:
        await eventually(lambda: left(pool), lambda seen: seen == set(), seconds=60)
    finally:
        over.set()
        pruned, *_ = await asyncio.gather(*side)

    assert pruned == 400
    assert sum(worker.outcomes_recorded for worker in workers) >= 400
    assert await value(pool, "select count(*) from command_bus_rejected") == 0
    assert await value(pool, "select count(*) from command_bus_audit") == 0
    await assert_books_balance(pool)
