"""Somebody holds a row or a table for long: nobody but its own command waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from commandbus import PermanentCommandError, settler, store
from tests.facts import (
    QUEUE,
    REPLIES,
    Pool,
    assert_books_balance,
    claim,
    claim_suspect,
    completed,
    count,
    ended,
    events,
    expire_leases,
    failed,
    make_due,
    queued,
    register,
    release,
    renew,
    replies,
    rows,
    send,
    settle,
    status,
    value,
)
from tests.waiting import eventually, until

LOCK_ROW = "select from command_bus_command where command_id = %s for update"
LEASES = "select count(*) from pgmq.q_test__commands where enqueued_at < now() - interval '3 s'"


@asynccontextmanager
async def held(pool: Pool, query: str, *params: object) -> AsyncIterator[None]:
    """Somebody has carried out *query* in a transaction that stays open."""
    async with pool.connection() as conn:
        await conn.execute(query.encode(), params or None)
        yield
        await conn.rollback()


@pytest.fixture
def slow(registry) -> asyncio.Event:
    """The handler of commands whose data is "slow" waits for this; others end at once."""
    go_on = asyncio.Event()

    @registry.handler("test", "DoIt", auto_renew=True)
    async def handle(command, context):
        if command.data == "slow":
            await go_on.wait()
        return "done"

    return go_on


LOCKS = {
    "the command's row": LOCK_ROW,
    "its message": "select from pgmq.q_test__commands where message ->> 'command_id' = %s::text"
    " for update",
    "its reply queue": "lock table pgmq.q_test__replies",
}


@pytest.mark.parametrize("lock", LOCKS)
async def test_a_lock_that_outlasts_leases_holds_up_its_own_command_only(
    pool, slow, start_worker, lock
):
    [locked] = await send(pool, data="slow", reply_to=REPLIES, max_attempts=1)
    await start_worker(visibility_timeout=1)
    await eventually(lambda: status(pool, locked), lambda seen: seen == "IN_PROGRESS")

    params = (locked,) if "%s" in LOCKS[lock] else ()
    async with held(pool, LOCKS[lock], *params):
        slow.set()
        for _ in range(6):
            await ended(pool, *await send(pool, 5, max_attempts=1))
        if "message" not in lock:  # nobody can make a lease longer whose message is locked
            await eventually(lambda: value(pool, LEASES))
            await ended(pool, *await send(pool, 5, max_attempts=1))
        assert await status(pool, locked) == "IN_PROGRESS" or lock == "its message"

    await ended(pool, locked)
    assert await events(pool, locked) == ["SENT", "RECEIVED", "COMPLETED"]
    assert len(await replies(pool, locked)) == 1
    await eventually(lambda: queued(pool), lambda left: left == 0)
    await assert_books_balance(pool)


async def test_a_worker_whose_own_row_is_locked_goes_on_and_is_counted_later(
    pool, registry, slow, start_worker
):
    @registry.handler("test", "Failing")
    async def fail(command, context):
        raise PermanentCommandError("E", "never")

    worker = await start_worker(visibility_timeout=1)
    async with held(pool, "select from command_bus_worker for update"):
        done = await send(pool, 20, max_attempts=1)
        [failing] = await send(pool, command_type="Failing", max_attempts=1)
        await ended(pool, *done)
        await ended(pool, failing, expected="IN_TSQ")
        await assert_books_balance(pool)

    totals = "select completed, moved_to_tsq from command_bus_worker where worker_id = %s"
    await eventually(lambda: rows(pool, totals, worker.worker_id), lambda found: found == [(20, 1)])
    await assert_books_balance(pool)


@pytest.mark.parametrize("table", ["command_bus_audit", "command_bus_delta"])
async def test_where_nothing_can_be_recorded_nothing_is_claimed_and_no_lease_ends(
    pool, slow, start_worker, caplog, table
):
    caplog.set_level(logging.INFO)
    started = await send(pool, 3, data="slow", max_attempts=1)
    worker = await start_worker(concurrency=8, visibility_timeout=2)
    await until(lambda: worker.running_count == 3)

    async with held(pool, f"lock table {table} in share mode"):
        slow.set()
        await until(lambda: "claims_wait_for_outcomes" in caplog.messages)
        later = "select extract(epoch from clock_timestamp() - max(started_at)) > 4"
        await eventually(lambda: value(pool, f"{later} from command_bus_command"))
        assert len(worker._slots.unrecorded) == 3

    await ended(pool, *started, *await send(pool, 3))
    for command_id in started:
        assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]
    await assert_books_balance(pool)


async def test_outcomes_that_cannot_be_recorded_do_not_pile_up(
    pool, slow, start_worker, monkeypatch
):
    monkeypatch.setattr(settler, "MOST_ASIDE", 10)
    monkeypatch.setattr(settler, "BEHIND_SECONDS", 0.1)
    ids = await send(pool, 300, max_attempts=1, reply_to=REPLIES)
    async with held(pool, "lock table pgmq.q_test__replies"):
        worker = await start_worker(concurrency=2, batch_size=2, visibility_timeout=2)
        await until(lambda: len(worker._slots.unrecorded) >= 10)
        oldest = "select extract(epoch from clock_timestamp() - max(started_at)) > 3"
        await eventually(lambda: value(pool, f"{oldest} from command_bus_command"))
        assert len(worker._slots.unrecorded) < 300

    await ended(pool, *ids, seconds=30)
    assert await value(pool, "select max(attempts) from command_bus_command") == 1
    await assert_books_balance(pool)


async def test_what_is_recorded_apart_waits_for_nothing(pool):
    ids = await send(pool, 3)
    [with_reply] = await send(pool, reply_to=REPLIES)
    worker_id = await register(pool)
    claimed = {each.command.command_id: each for each in await claim(pool, worker_id)}
    outcomes = [completed(claimed[each]) for each in (ids[0], ids[1], with_reply)]
    outcomes.append(failed(claimed[ids[2]]))

    async with held(pool, LOCK_ROW, ids[0]), held(pool, "lock table pgmq.q_test__replies"):
        with pytest.raises(Exception, match="lock timeout"):
            await settle(pool, worker_id, *outcomes)
        async with store.autocommit(pool) as conn:
            answers = await store.settle_commands_apart(
                conn, "test", worker_id, json.dumps(outcomes[:3]), json.dumps(outcomes[3:])
            )

    assert {each.command_id: each.verdict.value for each in answers} == {
        ids[0]: "locked", with_reply: "locked", ids[2]: "applied"
    }  # fmt: skip
    assert await status(pool, ids[1]) == "COMPLETED"
    left = await settle(
        pool, worker_id, *(completed(claimed[each]) for each in (ids[0], with_reply))
    )
    assert left == []
    await assert_books_balance(pool)


async def test_a_worker_of_the_release_before_is_told_of_a_locked_command_by_an_error(pool):
    [locked, other] = await send(pool, 2)
    worker_id = await register(pool)
    tokens = "jsonb_agg(jsonb_build_object('command_id', command_id, 'msg_id', msg_id,"
    tokens += " 'claim_no', claim_no, 'run_us', 1, 'result', null))"
    call = (
        f"select * from command_bus.settle_commands('test', {worker_id},"
        f" (select {tokens} from command_bus_command), '[]')"
    )
    await claim(pool, worker_id)

    async with held(pool, LOCK_ROW, locked):
        with pytest.raises(Exception, match="is locked"):
            await rows(pool, call)
    assert await status(pool, other) == "IN_PROGRESS"
    assert await rows(pool, call) == []
    await assert_books_balance(pool)


# Renewing and giving back


async def test_leases_are_renewed_beside_a_locked_command_and_its_own_too(pool):
    ids = await send(pool, 2)
    worker_id = await register(pool)
    claimed = {each.command.command_id: each for each in await claim(pool, worker_id, seconds=5)}

    async with held(pool, LOCK_ROW, ids[0]):
        assert await renew(pool, worker_id, claimed[ids[0]], 500)
        assert await renew(pool, worker_id, claimed[ids[1]], 500)

    shortest = f"select min(extract(epoch from vt - clock_timestamp())) from pgmq.q_{QUEUE}"
    assert await value(pool, shortest) > 400


async def test_a_lease_is_not_renewed_for_a_lock_when_somebody_else_has_the_command(pool):
    [command_id] = await send(pool)
    slow_worker, quick = await register(pool), await register(pool)
    [late] = await claim(pool, slow_worker)
    await expire_leases(pool, command_id)
    await claim(pool, quick)

    async with held(pool, LOCK_ROW, command_id):
        assert not await renew(pool, slow_worker, late, 500)


async def test_what_is_free_is_given_back_beside_a_locked_command(pool):
    ids = await send(pool, 3)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id)

    async with held(pool, LOCK_ROW, ids[0]):
        assert await release(pool, worker_id, claimed) == 2

    assert await release(pool, worker_id, claimed) == 1
    await assert_books_balance(pool)


# Claiming


async def test_locked_commands_are_left_out_of_a_claim_and_spend_nothing(pool):
    ids = [command_id for _ in range(6) for command_id in await send(pool)]
    worker_id = await register(pool)

    lock = "select from command_bus_command where command_id = any (%s) for update"
    async with held(pool, lock, ids[:3]):
        first = await claim(pool, worker_id, limit=3)
        second = await claim(pool, worker_id, limit=3)

    taken = {each.command.command_id for each in (*first, *second)}
    assert taken == set(ids[3:])
    last = await eventually(lambda: claim(pool, worker_id))
    assert {each.command.command_id for each in last} == set(ids[:3])
    assert {each.attempt for each in last} == {1}
    await assert_books_balance(pool)


async def test_commands_that_somebody_locked_once_are_claimed_and_settled_as_any(pool):
    """They carry the mark of a lock that is gone."""
    ids = await send(pool, 3)
    worker_id = await register(pool)
    async with held(pool, "select from command_bus_command for update"):
        pass
    claimed = await claim(pool, worker_id)
    assert {each.command.command_id for each in claimed} == set(ids)
    async with held(pool, "select from command_bus_command for update"):
        pass

    answers = await settle(
        pool, worker_id, completed(claimed[0]), completed(claimed[1]), failed(claimed[2])
    )

    assert [each.verdict.value for each in answers] == ["applied"]
    await assert_books_balance(pool)


async def test_a_worker_goes_on_beside_a_locked_pending_command(pool, slow, start_worker):
    [locked] = await send(pool)
    async with held(pool, LOCK_ROW, locked):
        await start_worker(batch_size=1, concurrency=1)
        for _ in range(3):
            await ended(pool, *await send(pool, 5))
        assert await events(pool, locked) == ["SENT"]
    await ended(pool, locked)
    assert await events(pool, locked) == ["SENT", "RECEIVED", "COMPLETED"]


async def test_a_suspect_that_somebody_has_locked_lets_the_next_pass(pool):
    ids = await send(pool, 2)
    await claim(pool, await register(pool))
    await expire_leases(pool, *ids, worker_lives=False)
    worker_id = await register(pool)
    await claim(pool, worker_id)
    [first] = await rows(
        pool, "select command_id from command_bus_suspect order by parked_at limit 1"
    )

    async with held(pool, LOCK_ROW, first[0]), asyncio.timeout(5):
        [taken] = await claim_suspect(pool, worker_id)
        assert taken.command.command_id != first[0]
        assert await claim_suspect(pool, worker_id) == []

    [taken] = await claim_suspect(pool, worker_id)
    assert taken.command.command_id == first[0]
    await assert_books_balance(pool)


async def test_a_due_command_that_somebody_has_locked_lets_the_others_pass(pool):
    ids = await send(pool, 2, delay=60)
    await make_due(pool, *ids)
    worker_id = await register(pool)

    async with held(pool, LOCK_ROW, ids[0]), asyncio.timeout(5):
        [taken] = await claim(pool, worker_id)
        assert taken.command.command_id == ids[1]

    assert await count(pool, "command_bus_waiting", ids[0]) == 1
    [taken] = await claim(pool, worker_id)
    assert taken.command.command_id == ids[0]
    await assert_books_balance(pool)


@pytest.mark.parametrize(
    ("batch_size", "count", "lock"),
    [
        (1, 15, "for no key update"),
        (1, 3_000, "for update"),
        (10, 60, "for update"),
        (10, 3_000, "for no key update"),
    ],
)
async def test_thousands_of_locked_commands_hold_up_none_behind_them(
    pool, slow, start_worker, lock, count, batch_size
):
    locked = await send(pool, count, max_attempts=1)
    async with held(pool, f"select from command_bus_command {lock}"):
        behind = await send(pool, 20, max_attempts=1)
        await start_worker(batch_size=batch_size)

        await ended(pool, *behind)

        left = "select count(*) from command_bus_command where status = 'PENDING'"
        assert await value(pool, left) == count
    assert len(locked) == count
    open_ones = "select count(*) from command_bus_command where status <> 'COMPLETED'"
    await eventually(lambda: value(pool, open_ones), lambda left: left == 0, seconds=60)
    await assert_books_balance(pool)


async def test_a_reference_that_is_not_committed_holds_up_nothing(bus, pool, slow, start_worker):
    """An insert with a foreign key to a command locks it for key share."""
    await start_worker()
    async with bus.transaction() as conn:
        [command_id] = await send(pool, reply_to=REPLIES)
        await conn.execute(
            "select from command_bus_command where command_id = %s for key share", (command_id,)
        )
        await ended(pool, command_id)


ODD = {
    "somebody else's": "select pgmq.send('test__commands', '{\"hello\": \"world\"}')",
    "no attempt left": "update command_bus_command set attempts = 9 where command_type = 'Odd'",
    "left by a crash": "update command_bus_command set status = 'IN_PROGRESS', attempts = 1,"
    " worker_id = 1, started_at = now() - interval '1 h', lease_until = now() - interval '1 h'"
    " where command_type = 'Odd'",
}
TABLES = [
    "command_bus_rejected",
    "pgmq.a_test__commands",
    "command_bus_waiting",
    "command_bus_tsq",
    "command_bus_tsq_group",
    "command_bus_suspect",
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("table", TABLES)
async def test_a_message_that_needs_a_locked_table_holds_up_no_other(
    pool, slow, start_worker, odd, table
):
    await send(pool, 3, command_type="Odd", max_attempts=5)
    await register(pool)
    await rows(pool, ODD[odd])
    behind = await send(pool, 20, max_attempts=1)
    async with held(pool, f"lock table {table}"):
        await start_worker()
        await ended(pool, *behind, seconds=30)
    await eventually(lambda: queued(pool), lambda left: left == 0)


UNUSED = [
    "command_bus_lane_ready",
    "command_bus_lane",
    "command_bus_lane_slot",
    "command_bus_parked",
    "command_bus_pause",
    "command_bus_cancel_request",
    "command_bus_outbox",
]


@pytest.mark.parametrize("table", UNUSED)
async def test_a_locked_table_holds_up_nobody_who_does_not_use_it(pool, slow, start_worker, table):
    ids = await send(pool, 20, max_attempts=1)
    async with held(pool, f"lock table {table}"):
        await start_worker()
        await ended(pool, *ids, seconds=30)
