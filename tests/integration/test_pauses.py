"""What is paused does not start, spends no attempt, and comes back when the pause ends."""

from __future__ import annotations

import asyncio
import time

import pytest

from commandbus import (
    CommandBus,
    CommandStatus,
    HandlerRegistry,
    InvalidCommandError,
    Pauses,
    UnknownDomainError,
)
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
    register,
    rows,
    send,
    settle,
    status,
    value,
)
from tests.waiting import eventually, until


@pytest.fixture
def pauses(pool: Pool) -> Pauses:
    return Pauses(pool)


async def parked(pool: Pool) -> int:
    return int(await value(pool, "select count(*) from command_bus_parked where kind = 'PAUSED'"))


# Claims


async def test_a_paused_domain_gives_nothing_and_keeps_its_messages(pool, pauses):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    pause = await pauses.pause(DOMAIN, reason="provider is down", operator="ann")

    assert await claim(pool, worker_id) == []
    assert await events(pool, command_id) == ["SENT"]
    await assert_books_balance(pool)

    assert await pauses.resume(pause.pause_id, operator="bob")
    assert (await claim_one(pool, worker_id)).attempt == 1


async def test_a_paused_type_is_parked_and_the_others_go_on(pool, pauses):
    [stopped] = await send(pool, command_type="Charge")
    [other] = await send(pool)
    worker_id = await register(pool)
    pause = await pauses.pause(DOMAIN, "Charge", reason="provider is down", operator="ann")

    assert (await claim_one(pool, worker_id)).command.command_id == other
    assert await events(pool, stopped) == ["SENT"]
    assert await parked(pool) == 1
    assert await claim_parked(pool, worker_id, "Charge") == []
    await assert_books_balance(pool)

    assert await pauses.resume(pause.pause_id, operator="bob")
    assert (await claim_one(pool, worker_id)).command.command_id == stopped
    assert await parked(pool) == 0
    await assert_books_balance(pool)


async def test_what_a_worker_has_no_handler_for_is_not_expired_while_it_is_paused(pool, pauses):
    [command_id] = await send(pool, command_type="Charge")
    worker_id = await register(pool)
    await rows(pool, "update command_bus_worker set command_types = '{}'")
    await claim(pool, worker_id, leave=["Charge"])
    await pauses.pause(DOMAIN, "Charge", reason="r", operator="ann")

    assert await value(pool, "select command_bus.expire_parked('test', 0)") == 0
    assert await status(pool, command_id) == "PENDING"


async def test_what_runs_goes_on_and_its_retry_waits_for_the_end(pool, pauses):
    [running], [late] = await send(pool), await send(pool)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id)
    await pauses.pause(DOMAIN, "DoIt", reason="r", operator="ann")

    [done] = [each for each in claimed if each.command.command_id == running]
    assert await settle(pool, worker_id, completed(done)) == []
    await expire_leases(pool, late)
    assert await claim(pool, worker_id) == []

    assert await events(pool, late) == ["SENT", "RECEIVED", "LEASE_EXPIRED"]
    assert await parked(pool) == 1
    await assert_books_balance(pool)


async def test_a_suspect_waits_as_well(pool, pauses):
    [command_id] = await send(pool)
    await claim_one(pool, await register(pool))
    await expire_leases(pool, command_id, worker_lives=False)
    worker_id = await register(pool)
    await claim(pool, worker_id)

    pause = await pauses.pause(DOMAIN, "DoIt", reason="r", operator="ann")
    assert await claim_suspect(pool, worker_id) == []
    await pauses.pause(DOMAIN, reason="r", operator="ann")
    await pauses.resume(pause.pause_id, operator="ann")
    assert await claim_suspect(pool, worker_id) == []


async def test_a_pause_with_an_end_ends_by_itself(pool, pauses):
    await send(pool, command_type="Charge")
    worker_id = await register(pool)
    for command_type in ("Charge", None):
        await pauses.pause(DOMAIN, command_type, reason="r", operator="ann", seconds=0.5)
        assert await claim(pool, worker_id) == []

    await eventually(lambda: claim(pool, worker_id), lambda found: len(found) == 1)

    assert await pauses.list() == []
    ended_by = await rows(pool, "select ended_at = ends_at, ended_by from command_bus_pause")
    assert ended_by == [(True, None)] * 2


async def test_a_parked_command_of_a_paused_type_can_be_cancelled(pool, pauses, tsq):
    [command_id] = await send(pool)
    await pauses.pause(DOMAIN, "DoIt", reason="r", operator="ann")
    await claim(pool, await register(pool))

    await tsq.cancel_pending(DOMAIN, command_id, "ann", "not needed")

    assert await count(pool, "command_bus_parked", command_id) == 0
    await assert_books_balance(pool)


# The record


async def test_a_second_pause_of_the_same_replaces_the_first(pool, pauses):
    first = await pauses.pause(DOMAIN, "DoIt", reason="one", operator="ann")
    second = await pauses.pause(DOMAIN, "DoIt", reason="two", operator="bob", seconds=60)
    other = await pauses.pause(DOMAIN, "Other", reason="three", operator="bob")

    in_force = await pauses.list(DOMAIN)

    assert [each.pause_id for each in in_force] == [other.pause_id, second.pause_id]
    assert (second.reason, second.paused_by, second.command_type) == ("two", "bob", "DoIt")
    assert second.ends_at is not None
    assert not await pauses.resume(first.pause_id, operator="ann")
    assert await pauses.resume(second.pause_id, operator="ann")
    assert not await pauses.resume(second.pause_id, operator="ann")


async def test_what_makes_no_sense_is_refused(pauses):
    with pytest.raises(UnknownDomainError):
        await pauses.pause("nowhere", reason="r", operator="ann")
    for arguments in ({"reason": ""}, {"operator": ""}, {"command_type": ""}):
        with pytest.raises(InvalidCommandError):
            await pauses.pause(DOMAIN, **{"reason": "r", "operator": "ann", **arguments})
    for seconds in (0, -1, float("nan"), 1e12):
        with pytest.raises(ValueError, match="seconds"):
            await pauses.pause(DOMAIN, reason="r", operator="ann", seconds=seconds)


async def test_a_deleted_domain_takes_its_pauses_along(pool, pauses, bus):
    await bus.create_domain("other")
    await pauses.pause("other", reason="r", operator="ann")
    await bus.delete_domain("other")
    await bus.create_domain("other")

    assert await pauses.list("other") == []


# Workers


@pytest.mark.parametrize("command_type", [None, "DoIt"])
async def test_nothing_new_starts_within_a_second_and_everything_after_the_end(
    pool, pauses, start_worker, registry, command_type
):
    starts: list[float] = []

    @registry.handler(DOMAIN, "DoIt")
    async def handle(command, context):
        starts.append(time.monotonic())
        await asyncio.sleep(0.02)

    ids = await send(pool, 400, max_attempts=1)
    await start_worker(concurrency=2, batch_size=100)
    await until(lambda: len(starts) > 20)

    pause = await pauses.pause(DOMAIN, command_type, reason="r", operator="ann")
    paused_at = time.monotonic()
    await asyncio.sleep(1.5)
    begun = len(starts)
    await asyncio.sleep(0.5)

    assert len(starts) == begun < 400
    assert max(starts) - paused_at < 1

    assert await pauses.resume(pause.pause_id, operator="ann")
    await ended(pool, *ids)
    assert len(starts) == 400
    await assert_books_balance(pool)


async def test_an_idle_worker_goes_on_when_a_pause_ends_by_itself(pool, pauses, start_worker):
    registry = HandlerRegistry()

    @registry.handler(DOMAIN, "DoIt")
    async def handle(command, context):
        return None

    await start_worker(handler_registry=registry, poll_interval=30)
    await pauses.pause(DOMAIN, reason="r", operator="ann", seconds=1)
    [command_id] = await send(pool)

    await ended(pool, command_id, seconds=3)


async def test_many_commands_come_back_in_parts(pool, pauses, start_worker, recorded):
    await pauses.pause(DOMAIN, "DoIt", reason="r", operator="ann")
    await start_worker(batch_size=100, concurrency=20)
    await send(pool, 3000)
    await eventually(lambda: parked(pool), lambda found: found == 3000)

    [pause] = await pauses.list()
    await pauses.resume(pause.pause_id, operator="ann")

    async def completed_count() -> int:
        return (await CommandBus(pool).count_by_status())[CommandStatus.COMPLETED]

    await eventually(completed_count, lambda found: found == 3000, seconds=30)
    await assert_books_balance(pool)
