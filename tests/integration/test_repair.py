"""What others did to the queue is found, and mended."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from app.database.health import Level, look
from commandbus import CommandBus, NewCommand
from commandbus.migrating import connect
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
    failed,
    queued,
    register,
    renew,
    rows,
    send,
    settle,
    status,
)
from tests.integration.test_database_cli import run


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


# Counters and lists that somebody truncated


async def send_in_batch(pool: Pool, count: int, batch_id: UUID) -> None:
    commands = [NewCommand(command_type="DoIt", command_id=uuid4(), data={}) for _ in range(count)]
    await CommandBus(pool).send_many(DOMAIN, commands, batch_id=batch_id)


async def every_status(pool: Pool, *, batch_id: UUID) -> None:
    """Commands in each status, one of them taken by another worker."""
    worker_id = await register(pool)
    await send_in_batch(pool, 4, batch_id)
    first, second, third, _ = await claim(pool, worker_id)
    await settle(
        pool,
        worker_id,
        completed(first),
        failed(second, "permanent"),
        failed(third, "business"),
    )
    await send(pool, 2)
    await send(pool, delay=3600)


@pytest.mark.parametrize(
    "spoil",
    [
        "truncate command_bus_counter, command_bus_delta",
        "truncate command_bus_delta",
        "truncate command_bus_batch; delete from command_bus_delta where batch_id is not null",
        "truncate command_bus_tsq, command_bus_unsuccessful",
        "truncate command_bus_tsq_group, command_bus_tsq_delta",
        "update command_bus_worker set completed = 99, failed = 3",
        "update command_bus_counter set pending = 77, failed = -1",
    ],
)
async def test_a_recount_restores_truncated_counters(pool, tsq, spoil):
    await every_status(pool, batch_id=uuid4())
    await rows(pool, "select command_bus.fold_deltas()")
    await send_in_batch(pool, 1, uuid4())
    await assert_books_balance(pool)
    for statement in spoil.split(";"):
        await rows(pool, statement)
    assert await rows(pool, "select * from command_bus.find_violations()") != []

    assert await rows(pool, "select * from command_bus.recount()") != []
    await assert_books_balance(pool)
    assert await rows(pool, "select * from command_bus.recount()") == []
    [troubled] = await tsq.list(DOMAIN)
    await tsq.operator_retry(DOMAIN, troubled.command_id)
    await assert_books_balance(pool)


async def test_a_recount_under_work_counts_nothing_twice(pool, recorded, start_worker):
    await start_worker(concurrency=8)
    sending = asyncio.create_task(send_some(pool))
    await rows(pool, "truncate command_bus_counter")
    for _ in range(5):
        await rows(pool, "select * from command_bus.recount()")
        await rows(pool, "select command_bus.fold_deltas()")
    await ended(pool, *await sending)

    await rows(pool, "select * from command_bus.recount()")
    await assert_books_balance(pool)


async def send_some(pool: Pool) -> list[UUID]:
    return [command_id for _ in range(20) for command_id in await send(pool, 5)]


def test_the_command_line_recounts(database_url: str):
    with connect(database_url) as conn:
        conn.execute("insert into command_bus_counter (domain, failed) values ('test', 5)")

    assert "counters equal a recount: test" in run("recount", url=database_url)
    assert run("recount", url=database_url) == "Everything was right\n"


# A clock that went back


async def test_what_a_clock_that_went_back_holds_up_is_a_finding_and_let_come(
    pool, registry, recorded, start_worker
):
    worker_id = await register(pool)
    [held] = await send(pool)
    await claim_one(pool, worker_id)
    fresh = await send(pool, 5)
    [retried] = await send(pool, delay=2)
    await rows(
        pool,
        "update command_bus_command set created_at = created_at + interval '1 hour',"
        " updated_at = updated_at + interval '1 hour', started_at = started_at + interval '1 hour',"
        " lease_until = lease_until + interval '1 hour'",
    )
    await rows(pool, f"update pgmq.q_{QUEUE} set vt = vt + interval '1 hour'")
    await rows(pool, "update command_bus_waiting set due_at = due_at + interval '1 hour'")
    [running] = await send(pool)  # on a lease that is long, and now
    await renew(pool, worker_id, await claim_one(pool, worker_id), 7200)
    [scheduled] = await send(pool, delay=7200)

    [check] = [check for check in await look(pool) if check.name == "ahead_of_time"]
    assert (check.level, check.value) == (Level.CRITICAL, 7.0)
    assert "6 messages in test until" in check.detail
    assert "1 waiting in test until" in check.detail
    mended = await rows(pool, "select kind, n from command_bus.mend_clock()")

    assert dict(mended) == {"leases": 1, "messages": 5, "waiting": 1}
    assert await rows(pool, "select * from command_bus.mend_clock()") == []
    await start_worker()
    await ended(pool, *fresh, retried)
    await expire_leases(pool, held)
    await ended(pool, held)
    assert await status(pool, running) == "IN_PROGRESS"
    assert await status(pool, scheduled) == "PENDING"
    assert [check.value for check in await look(pool) if check.name == "ahead_of_time"] == [0.0]


async def test_a_clock_is_mended_once_however_often_it_is_asked_for(pool, tsq):
    worker_id = await register(pool)
    [retried, troubled] = await send(pool, 2)
    claimed = {each.command.command_id: each for each in await claim(pool, worker_id)}
    await settle(
        pool,
        worker_id,
        failed(claimed[retried], retry_delay_ms=3_000_000),
        failed(claimed[troubled], "permanent"),
    )
    await tsq.operator_retry(DOMAIN, troubled, delay_seconds=3000)
    await send(pool, delay=3000)
    await rows(
        pool,
        "update command_bus_command set created_at = created_at + interval '1 hour',"
        " updated_at = updated_at + interval '1 hour', started_at = started_at + interval '1 hour'",
    )
    await rows(pool, "update command_bus_waiting set due_at = due_at + interval '1 hour'")

    mended = await rows(pool, "select kind, n from command_bus.mend_clock()")
    due = await rows(pool, "select command_id, due_at from command_bus_waiting order by 1")
    assert mended == [("waiting", 3)]
    assert await rows(pool, "select * from command_bus.find_ahead_of_time()") == []
    assert await rows(pool, "select * from command_bus.mend_clock()") == []

    assert await rows(pool, "select command_id, due_at from command_bus_waiting order by 1") == due
    waits = "select extract(epoch from due_at - clock_timestamp())::float8 from command_bus_waiting"
    assert all(2900 < seconds <= 3000 for (seconds,) in await rows(pool, waits))
