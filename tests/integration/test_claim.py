"""Claiming: who gets a command, for how long, and what a claim tells."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from commandbus import CommandBus, CommandStatus, store
from commandbus.errors import UnknownDomainError
from tests.facts import (
    QUEUE,
    REPLIES,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    events,
    expire_leases,
    failed,
    make_due,
    register,
    release,
    renew,
    rows,
    send,
    settle,
    status,
    value,
)
from tests.waiting import eventually


async def test_a_claim_gives_all_that_a_handler_needs(bus: CommandBus, pool: Pool):
    command_id, correlation_id, batch_id = uuid4(), uuid4(), uuid4()
    await bus.send(
        "test",
        "DoIt",
        command_id,
        {"a": [1, "ä😀", None]},
        correlation_id=correlation_id,
        reply_to=REPLIES,
        max_attempts=7,
        batch_id=batch_id,
    )

    claimed = await claim_one(pool, await register(pool))

    command = claimed.command
    assert (command.domain, command.command_id, command.command_type) == (
        "test",
        command_id,
        "DoIt",
    )
    assert command.data == {"a": [1, "ä😀", None]}
    assert (command.correlation_id, command.reply_to) == (correlation_id, REPLIES)
    assert command.batch_id == batch_id
    assert (claimed.attempt, claimed.max_attempts, claimed.claim_no) == (1, 7, 1)
    assert claimed.undecodable is None


async def test_a_claimed_command_shows_who_holds_it_and_until_when(bus, pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    await claim(pool, worker_id, seconds=40)

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.status, command.worker_id) == (CommandStatus.IN_PROGRESS, worker_id)
    assert command.started_at is not None
    assert command.lease_until is not None
    assert (command.lease_until - command.started_at).total_seconds() == 40
    [[visible_in]] = await rows(pool, f"select extract(epoch from vt - now()) from pgmq.q_{QUEUE}")
    assert 35 < visible_in <= 40


async def test_the_budget_of_a_command_wins_over_the_workers(pool):
    [own] = await send(pool, max_attempts=9)
    [common] = await send(pool)

    claimed = await claim(pool, await register(pool), max_attempts=4)

    budgets = {each.command.command_id: each.max_attempts for each in claimed}
    assert budgets == {own: 9, common: 4}


async def test_an_idle_queue_gives_nothing(pool):
    assert await claim(pool, await register(pool)) == []


async def test_a_claim_takes_no_more_than_its_limit_oldest_first(pool):
    ids = [command_id for _ in range(6) for command_id in await send(pool)]
    worker_id = await register(pool)

    first = await claim(pool, worker_id, limit=4)
    second = await claim(pool, worker_id, limit=4)

    assert {each.command.command_id for each in first} == set(ids[:4])
    assert {each.command.command_id for each in second} == set(ids[4:])


async def test_of_many_claims_at_once_each_command_goes_to_one(pool):
    ids = await send(pool, 200)
    workers = [await register(pool) for _ in range(8)]

    claims = await asyncio.gather(*(claim(pool, workers[turn % 8], limit=13) for turn in range(40)))

    taken = [each.command.command_id for part in claims for each in part]
    assert len(taken) == len(set(taken))
    taken += [each.command.command_id for each in await claim(pool, workers[0], limit=200)]
    assert sorted(taken) == sorted(ids)
    assert await value(pool, "select max(attempts) from command_bus_command") == 1
    await assert_books_balance(pool)


async def test_a_command_held_by_one_worker_is_not_claimed_by_another(pool):
    await send(pool)
    await claim_one(pool, await register(pool))

    assert await claim(pool, await register(pool)) == []


async def test_a_lease_that_ran_out_is_the_next_ones(pool):
    [command_id] = await send(pool)
    slow, quick = await register(pool), await register(pool)
    late = await claim_one(pool, slow)
    await expire_leases(pool, command_id)

    again = await claim_one(pool, quick)

    assert (again.attempt, again.claim_no) == (2, 2)
    assert again.msg_id == late.msg_id
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "LEASE_EXPIRED", "RECEIVED"]
    [answer] = await settle(pool, slow, completed(late))
    assert answer.verdict == "late"
    assert await settle(pool, quick, completed(again)) == []
    await assert_books_balance(pool)


async def test_leases_that_run_out_spend_the_budget_and_end_in_the_tsq(bus, pool):
    [command_id] = await send(pool, max_attempts=2)
    worker_id = await register(pool)
    for _ in range(2):
        await claim_one(pool, worker_id)
        await expire_leases(pool, command_id)

    assert await claim(pool, worker_id) == []

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.status, command.attempts) == (CommandStatus.IN_TSQ, 2)
    assert (command.last_error_type, command.last_error_code) == ("TIMEOUT", "LEASE_EXPIRED")
    assert (await events(pool, command_id))[-3:] == [
        "LEASE_EXPIRED",
        "RETRY_EXHAUSTED",
        "MOVED_TO_TSQ",
    ]
    moved = (await bus.get_audit_trail(command_id))[-1].details
    assert (moved["error_type"], moved["error_code"]) == ("TIMEOUT", "LEASE_EXPIRED")
    assert moved["error_details"] is None
    await assert_books_balance(pool)


async def test_a_budget_that_was_lowered_ends_with_the_last_error(bus, pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    first = await claim_one(pool, worker_id)
    await settle(pool, worker_id, failed(first, error_details={"account": 5}))
    await make_due(pool, command_id)

    assert await claim(pool, worker_id, max_attempts=1) == []

    moved = (await bus.get_audit_trail(command_id))[-1]
    assert moved.event_type == "MOVED_TO_TSQ"
    assert (moved.details["error_type"], moved.details["error_code"]) == ("TRANSIENT", "E_CODE")
    assert moved.details["error_details"] == {"account": 5}
    await assert_books_balance(pool)


async def test_claim_numbers_never_decrease(pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    seen = []
    for turn in range(4):
        claimed = await claim_one(pool, worker_id, max_attempts=10)
        seen.append((claimed.claim_no, claimed.attempt))
        if turn % 2:
            await settle(pool, worker_id, failed(claimed))
            await make_due(pool, command_id)
        else:
            await release(pool, worker_id, [claimed])

    assert seen == [(1, 1), (2, 1), (3, 2), (4, 2)]


async def test_an_unknown_domain_is_an_error(pool):
    worker_id = await register(pool)

    with pytest.raises(UnknownDomainError):
        await claim(pool, worker_id, domain="nowhere")
    with pytest.raises(UnknownDomainError):
        await register(pool, "nowhere")


# Renewal and release


async def test_a_renewed_lease_is_longer_in_queue_and_row(pool):
    await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id, seconds=10)

    assert await renew(pool, worker_id, claimed, 500)

    [[visible_in]] = await rows(pool, f"select extract(epoch from vt - now()) from pgmq.q_{QUEUE}")
    assert 450 < visible_in <= 500
    shown = await value(
        pool, "select extract(epoch from lease_until - now()) from command_bus_command"
    )
    assert 450 < shown <= 500


async def test_a_lapsed_lease_may_be_renewed_until_somebody_else_claims(pool):
    [command_id] = await send(pool)
    worker_id, other = await register(pool), await register(pool)
    claimed = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)

    assert await renew(pool, worker_id, claimed)
    assert await claim(pool, other) == []
    await expire_leases(pool, command_id)
    await claim_one(pool, other)
    assert not await renew(pool, worker_id, claimed)


async def test_a_released_command_is_claimed_at_once_and_its_attempt_not_spent(pool):
    [command_id] = await send(pool, max_attempts=1)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)

    assert await release(pool, worker_id, [claimed]) == 1
    assert await release(pool, worker_id, [claimed]) == 0

    again = await claim_one(pool, worker_id)
    assert (again.attempt, again.claim_no) == (1, 2)
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "RELEASED", "RECEIVED"]
    await assert_books_balance(pool)


async def test_a_release_changes_nothing_once_somebody_else_holds_the_command(pool):
    [command_id] = await send(pool)
    worker_id, other = await register(pool), await register(pool)
    late = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)
    again = await claim_one(pool, other)

    assert await release(pool, worker_id, [late]) == 0

    assert await status(pool, command_id) == CommandStatus.IN_PROGRESS
    assert await settle(pool, other, completed(again)) == []


async def test_all_that_a_worker_holds_unknowingly_can_be_given_back(pool):
    await send(pool, 5)
    worker_id, other = await register(pool), await register(pool)
    known = await claim(pool, worker_id, limit=2)
    await claim(pool, worker_id, limit=2)
    others = await claim_one(pool, other)
    # Somebody else's messages must not be in the way.
    for message in ('{"command_id": "x"}', "[]", "null"):
        await rows(pool, "select pgmq.send('test__commands', %s::jsonb, 3600)", message)

    async with store.autocommit(pool) as conn:
        counted = await store.claimed_by_worker(conn, "test", worker_id)
        unknown = set(counted) - set(store.tokens_of(known))
        given_back = await store.release_commands(conn, "test", worker_id, unknown)

    assert given_back == 2
    held: list[UUID] = [each.command.command_id for each in (*known, others)]
    assert {each for each in held if await status(pool, each) == "IN_PROGRESS"} == set(held)
    assert len(await claim(pool, other)) == 2
    await assert_books_balance(pool)


async def test_a_claim_does_not_wait_for_a_command_that_an_operator_locks(bus, pool):
    [locked, free] = [*await send(pool), *await send(pool)]
    worker_id = await register(pool)
    late = await claim(pool, worker_id, limit=1)
    await expire_leases(pool, locked)

    async with bus.transaction() as conn, asyncio.timeout(5):
        await conn.execute(
            "select from command_bus_command where command_id = %s for update", (locked,)
        )
        claimed = await claim(pool, worker_id)
        assert [each.command.command_id for each in claimed] == [free]

    assert late[0].command.command_id == locked
    again = await eventually(lambda: claim(pool, worker_id))
    assert [each.command.command_id for each in again] == [locked]
