"""What others did to the queue is found, and mended."""

from __future__ import annotations

from tests.facts import (
    DOMAIN,
    QUEUE,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    ended,
    events,
    expire_leases,
    queued,
    register,
    rows,
    send,
    settle,
    status,
)


async def requeue(pool: Pool, limit: int = 100) -> set[tuple[str, str]]:
    """The commands that got a new message, with the status that they had."""
    return {
        (str(command_id), before)
        for command_id, before in await rows(
            pool,
            "select command_id, status::text from command_bus.requeue_lost_commands(%s, %s)",
            DOMAIN,
            limit,
        )
    }


async def test_commands_whose_messages_were_purged_are_found_and_run(pool, recorded, start_worker):
    worker_id = await register(pool)
    [held] = await send(pool)
    await claim_one(pool, worker_id)
    waiting = await send(pool, 3)
    await rows(pool, "select pgmq.purge_queue(%s)", QUEUE)
    await expire_leases(pool, held)
    lost = await rows(pool, "select command_id from command_bus.find_violations()")
    assert {each for (each,) in lost} == {held, *waiting}

    assert await requeue(pool) == {
        (str(held), "IN_PROGRESS"),
        *((str(each), "PENDING") for each in waiting),
    }
    assert await requeue(pool) == set()
    await assert_books_balance(pool)
    await start_worker()
    await ended(pool, held, *waiting)
    assert len(recorded) == 4
    assert await events(pool, held) == [
        *("SENT", "RECEIVED", "LEASE_EXPIRED", "RECEIVED", "COMPLETED")
    ]
    await assert_books_balance(pool)


async def test_what_is_carried_and_what_still_runs_is_left_alone(pool):
    worker_id = await register(pool)
    [parked] = await send(pool)
    await claim_one(pool, worker_id)
    await expire_leases(pool, parked, worker_lives=False)
    assert await claim(pool, await register(pool)) == []  # but parks it
    await send(pool)
    running = await claim_one(pool, worker_id)
    await rows(pool, "select pgmq.delete(%s, %s::bigint)", QUEUE, running.msg_id)
    await send(pool)
    await send(pool, delay=3600)

    assert await requeue(pool) == set()

    await settle(pool, worker_id, completed(running))
    await assert_books_balance(pool)


async def test_a_queue_that_was_dropped_and_made_again_carries_what_it_carried(
    pool, recorded, start_worker
):
    ids = await send(pool, 5)
    await rows(pool, "select pgmq.drop_queue(%s)", QUEUE)
    await rows(pool, "select pgmq.create(%s)", QUEUE)

    assert len(await requeue(pool, limit=3)) == 3
    assert len(await requeue(pool, limit=3)) == 2
    await start_worker()
    await ended(pool, *ids)
    await assert_books_balance(pool)


async def test_an_outcome_that_comes_after_the_repair_is_late(pool):
    worker_id = await register(pool)
    [command_id] = await send(pool)
    claimed = await claim_one(pool, worker_id)
    await rows(pool, "select pgmq.purge_queue(%s)", QUEUE)
    await expire_leases(pool, command_id)
    await requeue(pool)

    [settlement] = await settle(pool, worker_id, completed(claimed))

    assert settlement.verdict == "late"
    assert await status(pool, command_id) == "PENDING"
    assert await queued(pool, command_id) == 1


async def test_what_another_transaction_holds_is_left_for_the_next_call(pool):
    ids = await send(pool, 2)
    await rows(pool, "select pgmq.purge_queue(%s)", QUEUE)
    async with pool.connection() as conn:
        await conn.execute(
            "select from command_bus_command where command_id = %s for update", (ids[0],)
        )
        assert await requeue(pool) == {(str(ids[1]), "PENDING")}
    assert await requeue(pool) == {(str(ids[0]), "PENDING")}
    await assert_books_balance(pool)
