"""Stopping is designed: drain, give back, and leave the rest to the leases."""

from __future__ import annotations

import asyncio
import threading
from uuid import UUID

import pytest

from commandbus import (
    CommandStatus,
    HandlerRegistry,
    Worker,
    store,
)
from tests.facts import (
    Pool,
    assert_books_balance,
    ended,
    events,
    rows,
    send,
    status,
    value,
)
from tests.waiting import eventually, until


async def test_a_stop_lets_running_handlers_finish(pool, gate, start_worker):
    ids = await send(pool, 2)
    worker: Worker = await start_worker(concurrency=2)
    await until(lambda: gate.running == 2)

    worker.stop()
    gate.open.set()

    await ended(pool, *ids)
    assert (
        await value(pool, "select count(*) from command_bus_command where status = 'COMPLETED'")
        == 2
    )


async def test_a_stop_may_come_from_any_thread_and_again(pool, recorded, make_worker):
    worker: Worker = make_worker(poll_interval=60.0)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.worker_id is not None)

    threads = [threading.Thread(target=worker.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async with asyncio.timeout(5):
        await running
    worker.stop()
    worker.stop(force=True)
    assert await value(pool, "select stopped_at is not null from command_bus_worker")


async def test_a_heartbeat_that_a_slow_server_carries_out_later_wakes_nobody_up(
    pool, recorded, make_worker
):
    worker: Worker = make_worker()
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.worker_id is not None)
    worker.stop()
    await running
    known = "select stopped_at, heartbeat_at from command_bus_worker"
    before = await rows(pool, known)

    async with store.autocommit(pool) as conn:
        answer = await store.heartbeat(
            conn,
            worker.registered_id,
            running=[],
            running_count=0,
            rate=0.0,
            concurrency=1,
            settings={},
        )

    assert answer is None
    assert await rows(pool, known) == before


async def test_a_stop_before_the_start_starts_nothing(pool, recorded, make_worker):
    worker: Worker = make_worker()
    worker.stop()
    await send(pool)

    async with asyncio.timeout(5):
        await worker.run()

    assert recorded == []
    assert await value(pool, "select count(*) from command_bus_worker") == 0


async def claim_behind(pool: Pool, block: asyncio.Event, registry: HandlerRegistry) -> list[UUID]:
    """Commands that a worker with one slot holds behind one that waits for *block*.

    Quick commands let it claim ahead.
    """
    blocking = asyncio.Event()

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        assert command.data != "behind" or block.is_set()
        if command.data == "block":
            blocking.set()
            await block.wait()

    await ended(pool, *await send(pool, 30))
    await send(pool, data="block")
    await blocking.wait()
    behind = await send(pool, 10, data="behind", max_attempts=1)
    held = "select count(*) from command_bus_command where status = 'IN_PROGRESS'"
    await eventually(lambda: value(pool, held), lambda number: number > 1)
    return behind


async def assert_given_back(pool: Pool, command_ids: list[UUID]) -> None:
    """The worker has stopped, some of these were released, and none has spent an attempt."""
    assert await value(pool, "select stopped_at is not null from command_bus_worker")
    seen = await rows(
        pool,
        "select distinct status::text, attempts from command_bus_command"
        " where command_id = any (%s)",
        command_ids,
    )
    assert seen == [("PENDING", 0)]
    released = "select count(*) from command_bus_audit where event_type = 'RELEASED'"
    assert await value(pool, released) >= 1
    await assert_books_balance(pool)


async def test_what_never_started_is_given_back_without_spending_an_attempt(
    pool, registry, make_worker, start_worker
):
    worker: Worker = make_worker(concurrency=1, batch_size=10)
    running = asyncio.create_task(worker.run())
    block = asyncio.Event()
    behind = await claim_behind(pool, block, registry)

    worker.stop()
    block.set()
    await running

    await assert_given_back(pool, behind)
    await start_worker()
    await ended(pool, *behind)


async def test_what_never_started_is_given_back_by_a_run_that_is_cancelled(
    pool, registry, make_worker
):
    worker: Worker = make_worker(concurrency=1, batch_size=10)
    running = asyncio.create_task(worker.run())
    behind = await claim_behind(pool, asyncio.Event(), registry)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    await assert_given_back(pool, behind)


async def test_after_the_drain_time_handlers_are_cancelled_and_their_leases_decide(
    pool, gate, make_worker
):
    [command_id] = await send(pool)
    worker: Worker = make_worker(drain_timeout=0.2)
    running = asyncio.create_task(worker.run())
    await until(lambda: gate.running == 1)

    worker.stop()
    async with asyncio.timeout(5):
        await running

    assert gate.cancelled == 1
    assert await status(pool, command_id) == CommandStatus.IN_PROGRESS
    assert await events(pool, command_id) == ["SENT", "RECEIVED"]


async def test_after_a_stop_there_is_time_for_a_slow_database_to_record_what_ended(
    pool, gate, make_worker
):
    [command_id] = await send(pool)
    await rows(
        pool,
        "create function slow() returns trigger language plpgsql as $$"
        " begin perform pg_sleep(1.5); return new; end $$",
    )
    await rows(
        pool,
        "create trigger slow before update on command_bus_command for each row"
        " when (new.status = 'COMPLETED') execute function slow()",
    )
    worker: Worker = make_worker(drain_timeout=30.0)
    running = asyncio.create_task(worker.run())
    await until(lambda: gate.running == 1)

    worker.stop()
    gate.open.set()
    await running

    assert await status(pool, command_id) == CommandStatus.COMPLETED


async def test_a_forced_stop_waits_for_nothing(pool, gate, make_worker):
    await send(pool)
    worker: Worker = make_worker(drain_timeout=600.0)
    running = asyncio.create_task(worker.run())
    await until(lambda: gate.running == 1)

    worker.stop()
    worker.stop(force=True)

    async with asyncio.timeout(5):
        await running
    assert gate.cancelled == 1


async def test_a_cancelled_run_leaves_no_task_behind(pool, gate, make_worker):
    await send(pool)
    before = asyncio.all_tasks()
    worker: Worker = make_worker()
    running = asyncio.create_task(worker.run())
    await until(lambda: gate.running == 1)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    async def left() -> int:
        return len(
            [task for task in asyncio.all_tasks() - before if "pool" not in task.get_name().lower()]
        )

    await eventually(left, lambda number: number == 0)
