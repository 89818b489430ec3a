"""Commands whose type a worker does not know spend no attempt, and reach a worker that does."""

from __future__ import annotations

import asyncio

import pytest

from commandbus import CommandBus, CommandStatus, HandlerRegistry, RetryPolicy, store
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    DOMAIN,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    claim_parked,
    claim_suspect,
    completed,
    count,
    ended,
    events,
    expire_leases,
    park,
    queued,
    register,
    rows,
    send,
    settle,
    status,
    value,
)
from tests.waiting import eventually, until

NEW = "ReserveStock"


def registry_of(*types: str) -> HandlerRegistry:
    made = HandlerRegistry()

    async def handle(command, context):
        return context.attempt

    for name in types:
        made.register(DOMAIN, name, handle)
    return made


async def expire(pool: Pool, seconds: float) -> int:
    async with store.autocommit(pool) as conn:
        return await store.expire_parked(conn, DOMAIN, seconds)


async def parked_types(pool: Pool) -> list[str]:
    async with store.autocommit(pool) as conn:
        return (await store.look_ahead(conn, DOMAIN)).parked_types


# The functions


async def test_a_worker_gives_back_what_it_has_no_handler_for_and_no_attempt_is_spent(pool):
    ids = await send(pool, 3, command_type=NEW, max_attempts=1)
    worker_id = await register(pool)

    assert await park(pool, worker_id, await claim(pool, worker_id)) == 3

    assert await queued(pool) == 0
    for command_id in ids:
        assert await events(pool, command_id) == ["SENT", "RECEIVED", "RELEASED"]
        command = await CommandBus(pool).get_command(DOMAIN, command_id)
        assert command is not None
        assert (command.status, command.attempts) == ("PENDING", 0)
    assert await parked_types(pool) == [NEW]
    await assert_books_balance(pool)


async def test_a_claim_parks_the_types_that_it_shall_leave_and_takes_the_others(pool):
    new = await send(pool, 3, command_type=NEW)
    known = await send(pool, 2)
    worker_id = await register(pool)

    taken = await claim(pool, worker_id, leave=[NEW])

    assert {each.command.command_id for each in taken} == set(known)
    assert [await events(pool, each) for each in new] == [["SENT"]] * 3
    assert await count(pool, "command_bus_parked", new[0]) == 1
    await assert_books_balance(pool)


async def test_one_claim_parks_far_more_than_it_may_take(pool):
    await send(pool, 500, command_type=NEW)
    [known] = await send(pool)
    worker_id = await register(pool)

    await claim(pool, worker_id, limit=10, leave=[NEW])

    assert await value(pool, "select count(*) from command_bus_parked") == 500
    assert (await claim_one(pool, worker_id, leave=[NEW])).command.command_id == known
    await assert_books_balance(pool)


async def test_parked_commands_are_claimed_by_their_types_the_longest_parked_first(pool):
    worker_id = await register(pool)
    first = await send(pool, 2, command_type=NEW, max_attempts=1)
    await claim(pool, worker_id, leave=[NEW, "Other"])
    await send(pool, 2, command_type="Other")
    await send(pool, 2, command_type=NEW, max_attempts=1)
    await claim(pool, worker_id, leave=[NEW, "Other"])

    taken = await claim_parked(pool, worker_id, NEW, limit=2)

    assert {each.command.command_id for each in taken} == set(first)
    assert {each.attempt for each in taken} == {1}
    assert await claim(pool, worker_id) == []  # their messages are their leases
    assert await settle(pool, worker_id, *map(completed, taken)) == []
    assert len(await claim_parked(pool, worker_id, NEW)) == 2
    assert await parked_types(pool) == ["Other"]
    trail = await CommandBus(pool).get_audit_trail(first[0])
    assert trail[1].details["waited_for"] == "NO_HANDLER"
    await assert_books_balance(pool)


async def test_a_lease_that_ran_out_is_no_new_attempt_on_a_worker_without_the_handler(pool):
    [command_id] = await send(pool, command_type=NEW)
    worker_id = await register(pool)
    await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)

    assert await claim(pool, await register(pool), leave=[NEW]) == []

    assert await events(pool, command_id) == ["SENT", "RECEIVED", "LEASE_EXPIRED"]
    [again] = await claim_parked(pool, worker_id, NEW)
    assert again.attempt == 2
    await assert_books_balance(pool)


async def test_a_suspect_stays_one_when_a_worker_without_the_handler_claims_it(pool):
    [command_id] = await send(pool, command_type=NEW)
    await claim_one(pool, await register(pool))
    await expire_leases(pool, command_id, worker_lives=False)
    worker_id = await register(pool)
    await claim(pool, worker_id)

    assert await park(pool, worker_id, await claim_suspect(pool, worker_id)) == 1

    assert await count(pool, "command_bus_suspect", command_id) == 1
    async with store.autocommit(pool) as conn:
        assert await store.claim_suspect(conn, DOMAIN, worker_id, 30, 3, [NEW]) == []
        assert not (await store.look_ahead(conn, DOMAIN, leave=[NEW])).suspects
        assert (await store.look_ahead(conn, DOMAIN)).suspects
    await assert_books_balance(pool)


async def test_what_no_running_worker_knows_for_too_long_goes_to_the_tsq_and_comes_back(pool):
    ids = await send(pool, 3, command_type=NEW)
    worker_id = await register(pool)
    await rows(pool, "update command_bus_worker set command_types = '{DoIt}'")
    await claim(pool, worker_id, leave=[NEW])

    assert await expire(pool, 60) == 0
    await rows(pool, "update command_bus_parked set parked_at = parked_at - interval '61 seconds'")
    assert await expire(pool, 60) == 3

    command = await CommandBus(pool).get_command(DOMAIN, ids[0])
    assert command is not None
    assert (command.attempts, command.last_error_code) == (0, "NO_HANDLER")
    assert NEW in (command.last_error_message or "")
    trail = await CommandBus(pool).get_audit_trail(ids[0])
    assert [each.event_type for each in trail] == ["SENT", "MOVED_TO_TSQ"]
    assert trail[-1].details["reason"] == "NO_HANDLER"
    await assert_books_balance(pool)

    await TroubleshootingQueue(pool).operator_retry(DOMAIN, ids[0], "ann")
    assert (await claim_one(pool, worker_id)).command.command_id == ids[0]
    await assert_books_balance(pool)


async def test_what_a_running_worker_knows_waits_for_it_however_long(pool):
    [command_id] = await send(pool, command_type=NEW)
    worker_id = await register(pool)
    await rows(pool, "update command_bus_worker set command_types = %s", ["DoIt", NEW])
    await claim(pool, worker_id, leave=[NEW])

    assert await expire(pool, 0) == 0

    assert await status(pool, command_id) == "PENDING"
    await rows(pool, "update command_bus_worker set stopped_at = now()")
    assert await expire(pool, 0) == 1


async def test_a_parked_command_can_be_cancelled(pool, tsq):
    [command_id] = await send(pool, command_type=NEW)
    await claim(pool, await register(pool), leave=[NEW])

    await tsq.cancel_pending(DOMAIN, command_id, "ann", "not needed")

    assert await status(pool, command_id) == "CANCELLED"
    assert await count(pool, "command_bus_parked", command_id) == 0
    await assert_books_balance(pool)


async def test_a_worker_of_an_earlier_release_gets_what_others_have_parked(pool):
    [command_id] = await send(pool, command_type=NEW)
    worker_id = await register(pool)
    await claim(pool, worker_id, leave=[NEW])
    query = "select command_id from command_bus.claim_commands_v2('test', %s, 10, 30, 3)"

    assert await rows(pool, query, worker_id) == []
    await rows(pool, "update command_bus_parked set parked_at = parked_at - interval '2 seconds'")

    assert await rows(pool, query, worker_id) == [(command_id,)]
    await assert_books_balance(pool)


# Workers


async def test_workers_with_and_without_a_type_share_a_domain(pool, start_worker):
    await start_worker(handler_registry=registry_of("DoIt"), batch_size=100)
    await start_worker(handler_registry=registry_of("DoIt", NEW), batch_size=100)
    bus = CommandBus(pool)

    for _ in range(20):
        await send(pool, 50, command_type=NEW, max_attempts=1)
        await send(pool, 20)
        await asyncio.sleep(0.05)

    async def open_commands() -> int:
        counts = await bus.count_by_status()
        return int(counts[CommandStatus.PENDING] + counts[CommandStatus.IN_PROGRESS])

    await eventually(open_commands, lambda found: found == 0, seconds=30)
    counts = await bus.count_by_status()
    assert (counts[CommandStatus.COMPLETED], counts[CommandStatus.IN_TSQ]) == (1400, 0)
    attempts = "select distinct attempts from command_bus_command where command_type = %s"
    assert await rows(pool, attempts, NEW) == [(1,)]
    p95 = await value(
        pool,
        "select percentile_cont(0.95) within group ("
        " order by extract(epoch from c.started_at - c.created_at))"
        " from command_bus_command as c where c.command_type = %s",
        NEW,
    )
    assert p95 <= 2
    await assert_books_balance(pool)


async def test_an_idle_worker_with_the_handler_takes_a_parked_command_soon(pool, start_worker):
    await start_worker(handler_registry=registry_of("DoIt"), poll_interval=5)
    [command_id] = await send(pool, command_type=NEW)
    await eventually(lambda: parked_types(pool), lambda found: found == [NEW])

    await start_worker(handler_registry=registry_of(NEW), poll_interval=5)

    await ended(pool, command_id, seconds=3)


async def test_after_a_first_contact_a_worker_claims_no_command_without_a_handler(
    pool, start_worker
):
    await start_worker(handler_registry=registry_of("DoIt"))
    first = await send(pool, command_type=NEW)
    await eventually(lambda: parked_types(pool), lambda found: found == [NEW])

    later = [(await send(pool, command_type=NEW))[0] for _ in range(10)]
    [known] = await send(pool)
    await ended(pool, known)

    assert await events(pool, first[0]) == ["SENT", "RECEIVED", "RELEASED"]
    assert [await events(pool, each) for each in later] == [["SENT"]] * 10


async def test_the_limit_is_an_option_that_may_change(pool, start_worker):
    worker = await start_worker(handler_registry=registry_of("DoIt"))
    [command_id] = await send(pool, command_type=NEW)
    await eventually(lambda: parked_types(pool), lambda found: found == [NEW])

    worker.configure(no_handler_after=0)

    await ended(pool, command_id, expected="IN_TSQ", seconds=5)


async def test_a_suspect_without_a_handler_disturbs_nobody_and_is_run_alone_later(
    pool, start_worker
):
    [command_id] = await send(pool, command_type=NEW)
    await claim_one(pool, await register(pool))
    await expire_leases(pool, command_id, worker_lives=False)
    worker = await start_worker(handler_registry=registry_of("DoIt"))
    await eventually(
        lambda: count(pool, "command_bus_suspect", command_id), lambda found: found == 1
    )
    await until(lambda: not worker._heartbeat.suspects_wait)
    await ended(pool, *await send(pool, 20))

    await start_worker(handler_registry=registry_of(NEW))

    await ended(pool, command_id)
    await assert_books_balance(pool)


async def test_a_worker_tells_its_version_and_the_types_that_it_knows(pool, start_worker):
    registry = registry_of("DoIt")
    await start_worker(handler_registry=registry, app_version="1.4")
    told = "select app_version, command_types from command_bus_worker"
    assert await rows(pool, told) == [("1.4", ["DoIt"])]

    async def handle(command, context):
        return None

    registry.register(DOMAIN, NEW, handle)

    await eventually(lambda: rows(pool, told), lambda seen: seen == [("1.4", ["DoIt", NEW])])


@pytest.mark.parametrize("limit", [-1, float("nan"), "1 h"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(make_worker, limit):
    with pytest.raises((TypeError, ValueError), match="no_handler_after"):
        make_worker(no_handler_after=limit, retry_policy=RetryPolicy())
