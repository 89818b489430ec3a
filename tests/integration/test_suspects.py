"""A command that may have killed its worker is run alone, and exhausts only its own budget."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from operator import ne

from commandbus import CommandStatus, store
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    claim_suspect,
    completed,
    count,
    ended,
    events,
    expire_leases,
    queued,
    register,
    release,
    rows,
    send,
    settle,
    status,
    value,
)
from tests.waiting import eventually, until


async def suspects_wait(pool: Pool) -> bool:
    async with store.autocommit(pool) as conn:
        return (await store.look_ahead(conn, "test"))[1]


async def test_a_whole_batch_of_a_dead_worker_is_parked(pool):
    ids = await send(pool, 10)
    await claim(pool, await register(pool))
    await expire_leases(pool, *ids, worker_lives=False)

    assert await claim(pool, await register(pool)) == []

    for command_id in ids:
        assert await status(pool, command_id) == CommandStatus.PENDING
        assert await events(pool, command_id) == ["SENT", "RECEIVED", "LEASE_EXPIRED"]
    assert await value(pool, "select count(*) from command_bus_suspect") == 10
    assert await queued(pool) == 0
    assert await suspects_wait(pool)
    await assert_books_balance(pool)


async def test_a_slow_handler_of_a_living_worker_is_no_suspect(pool):
    ids = await send(pool, 3)
    await claim(pool, await register(pool))
    await expire_leases(pool, *ids, worker_lives=True)

    assert len(await claim(pool, await register(pool))) == 3
    assert not await suspects_wait(pool)


async def test_a_worker_that_said_goodbye_leaves_no_suspects(pool):
    ids = await send(pool, 3)
    worker_id = await register(pool)
    await claim(pool, worker_id)
    async with store.autocommit(pool) as conn:
        await store.worker_stopped(conn, worker_id)
    await expire_leases(pool, *ids, worker_lives=False)

    assert len(await claim(pool, await register(pool))) == 3
    assert not await suspects_wait(pool)


async def test_one_heartbeat_interval_is_waited_for_before_a_worker_counts_as_dead(pool):
    [command_id] = await send(pool)
    silent = await register(pool, heartbeat_seconds=60)
    await claim_one(pool, silent)
    await rows(
        pool,
        "update command_bus_command set lease_until = clock_timestamp() - interval '1 second'",
    )
    await rows(
        pool,
        "update command_bus_worker set heartbeat_at = clock_timestamp() - interval '9 seconds'",
    )
    await rows(pool, "select pgmq.set_vt('test__commands', msg_id, 0) from pgmq.q_test__commands")

    assert await claim(pool, await register(pool)) == []

    assert await status(pool, command_id) == CommandStatus.IN_PROGRESS
    assert not await suspects_wait(pool)
    seconds = await value(
        pool, "select extract(epoch from vt - clock_timestamp()) from pgmq.q_test__commands"
    )
    assert 50 < seconds < 60

    await rows(pool, "update command_bus_worker set heartbeat_at = clock_timestamp()")
    await rows(pool, "select pgmq.set_vt('test__commands', msg_id, 0) from pgmq.q_test__commands")
    assert (await claim_one(pool, await register(pool))).attempt == 2


async def test_suspects_are_claimed_one_by_one_longest_parked_first(pool):
    ids = await send(pool, 3)
    await claim(pool, await register(pool))
    await expire_leases(pool, *ids, worker_lives=False)
    worker_id = await register(pool)
    await claim(pool, worker_id)

    taken = [await claim_suspect(pool, worker_id) for _ in range(4)]

    assert [len(each) for each in taken] == [1, 1, 1, 0]
    assert {each.command.command_id for [each] in taken[:3]} == set(ids)
    assert {each.attempt for [each] in taken[:3]} == {2}
    for [each] in taken[:3]:
        assert await settle(pool, worker_id, completed(each)) == []
    await assert_books_balance(pool)


async def test_of_many_workers_one_gets_a_suspect(pool):
    [command_id] = await send(pool)
    await claim(pool, await register(pool))
    await expire_leases(pool, command_id, worker_lives=False)
    workers = [await register(pool) for _ in range(6)]
    await claim(pool, workers[0])

    claims = await asyncio.gather(*(claim_suspect(pool, each) for each in workers))

    assert sorted(map(len, claims)) == [0, 0, 0, 0, 0, 1]


async def test_a_command_that_kills_every_worker_exhausts_only_its_own_budget(pool):
    [killer, *innocent] = await send(pool, 5, max_attempts=3)
    await claim(pool, await register(pool))
    await expire_leases(pool, killer, *innocent, worker_lives=False)

    survivor = await register(pool)
    for _ in range(30):
        await claim(pool, survivor)
        claimed = await claim_suspect(pool, survivor)
        if not claimed:
            break
        [suspect] = claimed
        if suspect.command.command_id == killer:
            await expire_leases(pool, killer, worker_lives=False)
            survivor = await register(pool)
        else:
            await settle(pool, survivor, completed(suspect))
    await claim(pool, survivor)

    assert await status(pool, killer) == CommandStatus.IN_TSQ
    assert (await events(pool, killer)).count("RECEIVED") == 3
    assert {await status(pool, each) for each in innocent} == {CommandStatus.COMPLETED}
    await assert_books_balance(pool)


async def test_a_suspect_with_no_budget_left_goes_to_the_tsq_without_running_again(pool):
    [command_id] = await send(pool, max_attempts=1)
    await claim(pool, await register(pool))
    await expire_leases(pool, command_id, worker_lives=False)

    assert await claim(pool, await register(pool)) == []

    assert await status(pool, command_id) == CommandStatus.IN_TSQ
    assert await count(pool, "command_bus_suspect", command_id) == 0


async def test_a_parked_command_can_be_cancelled(pool):
    [command_id] = await send(pool)
    await claim(pool, await register(pool))
    await expire_leases(pool, command_id, worker_lives=False)
    worker_id = await register(pool)
    await claim(pool, worker_id)

    await TroubleshootingQueue(pool).cancel_pending("test", command_id)

    assert await claim_suspect(pool, worker_id) == []
    await assert_books_balance(pool)


async def test_a_suspect_that_is_given_back_is_parked_again(pool):
    [suspect] = await send(pool, max_attempts=2)
    await claim(pool, await register(pool))
    await expire_leases(pool, suspect, worker_lives=False)
    worker_id = await register(pool)
    await claim(pool, worker_id)
    taken = await claim_suspect(pool, worker_id)
    await send(pool)
    taken += await claim(pool, worker_id)

    assert await release(pool, worker_id, taken) == 2

    await assert_books_balance(pool)
    [other] = await claim(pool, worker_id)
    assert other.command.command_id != suspect
    [again] = await claim_suspect(pool, worker_id)
    assert (again.command.command_id, again.attempt) == (suspect, 2)
    assert await settle(pool, worker_id, completed(again)) == []
    await assert_books_balance(pool)


async def test_a_suspect_that_a_stop_meets_while_it_is_claimed_is_not_started(
    bus, pool, recorded, make_worker
):
    [suspect] = await send(pool)
    await claim(pool, await register(pool))
    await expire_leases(pool, suspect, worker_lives=False)
    await claim(pool, await register(pool))
    worker = make_worker()
    asks = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and wait_event_type = 'Lock' and strpos(query, 'claim_suspect') > 0"
    )

    async with bus.transaction() as conn:
        await conn.execute("lock table command_bus_audit in share mode")
        running = asyncio.create_task(worker.run())
        await eventually(lambda: value(pool, asks))
        worker.stop()
    await running

    assert recorded == []
    assert await count(pool, "command_bus_suspect", suspect) == 1
    await assert_books_balance(pool)


async def test_a_worker_runs_suspects_alone_while_others_wait(pool, registry, start_worker):
    alone: list[bool] = []
    running: set[str] = set()

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        running.add(str(command.command_id))
        await asyncio.sleep(0.02)
        if command.data == "suspect":
            alone.append(len(running) == 1)
        running.discard(str(command.command_id))

    suspects = await send(pool, 4, data="suspect")
    await claim(pool, await register(pool))
    await expire_leases(pool, *suspects, worker_lives=False)
    others = await send(pool, 40)
    await start_worker(concurrency=4)

    async def all_ended() -> bool:
        return {await status(pool, each) for each in (*suspects, *others)} == {"COMPLETED"}

    await eventually(all_ended)
    assert alone == [True] * 4
    assert {await value(pool, "select max(attempts) from command_bus_command")} == {2}
    await assert_books_balance(pool)


async def test_a_worker_whose_handler_hangs_goes_on_when_another_takes_the_suspect(
    pool, registry, start_worker
):
    hangs = asyncio.Event()

    @registry.handler("test", "DoIt", auto_renew=True)
    async def handle(command, context):
        if command.data == "hang":
            hangs.set()
            await asyncio.Event().wait()

    [suspect] = await send(pool)
    await claim(pool, await register(pool))
    await send(pool, data="hang")
    worker = await start_worker(concurrency=2)
    await hangs.wait()
    await expire_leases(pool, suspect, worker_lives=False)
    await eventually(lambda: count(pool, "command_bus_suspect", suspect))
    last_beat = "select heartbeat_at from command_bus_worker where worker_id = %s"
    beat = partial(value, pool, last_beat, worker.worker_id)
    for _ in range(2):  # by then it waits for its handler, to run the suspect alone
        await eventually(beat, partial(ne, await beat()))
    [other] = await send(pool)

    another = await register(pool)
    [taken] = await claim_suspect(pool, another)
    await settle(pool, another, completed(taken))

    await ended(pool, other)


async def test_a_worker_whose_handler_hangs_goes_on_when_nobody_takes_the_suspect(
    pool, registry, start_worker
):
    hangs, end = asyncio.Event(), asyncio.Event()

    @registry.handler("test", "DoIt", auto_renew=True)
    async def handle(command, context):
        if command.data == "hang":
            hangs.set()
            await end.wait()

    [suspect] = await send(pool)
    await claim(pool, await register(pool))
    [hanging] = await send(pool, data="hang")
    await start_worker(concurrency=2, visibility_timeout=2)
    await hangs.wait()
    await expire_leases(pool, suspect, worker_lives=False)
    await eventually(lambda: count(pool, "command_bus_suspect", suspect))

    for _ in range(2):
        await ended(pool, *await send(pool, 5))
    assert await count(pool, "command_bus_suspect", suspect) == 1
    end.set()
    await ended(pool, hanging, suspect)


async def test_a_suspect_that_somebody_holds_does_not_make_a_worker_spin(
    bus, pool, recorded, start_worker, monkeypatch
):
    claims = 0
    claim_suspect = store.claim_suspect

    async def counted(*args):
        nonlocal claims
        claims += 1
        return await claim_suspect(*args)

    monkeypatch.setattr(store, "claim_suspect", counted)
    [suspect] = await send(pool)
    await claim(pool, await register(pool))
    await expire_leases(pool, suspect, worker_lives=False)
    await claim(pool, await register(pool))

    async with bus.transaction() as conn:
        await conn.execute("select from command_bus_suspect for update")
        started = time.monotonic()
        await start_worker(visibility_timeout=1)
        await until(lambda: claims >= 2)
        for _ in range(3):
            await ended(pool, *await send(pool, 5))
        assert claims <= 1 + (time.monotonic() - started)
    await ended(pool, suspect)
