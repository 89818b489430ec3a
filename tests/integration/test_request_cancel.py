"""An operator asks to cancel what runs: one winner against a result, and nothing runs again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

import pytest

from commandbus import BusinessRuleError, CommandBus, CommandStatus, TransientCommandError, store
from commandbus.errors import CommandNotFoundError, InvalidStateError
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    DOMAIN,
    REPLIES,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    ended,
    events,
    expire_leases,
    failed,
    register,
    replies,
    send,
    settle,
    status,
    value,
)
from tests.waiting import eventually, until


async def settle_cancelled(pool: Pool, worker_id: int, *claimed) -> int:
    async with store.autocommit(pool) as conn:
        return await store.settle_cancelled(conn, DOMAIN, worker_id, store.tokens_of(claimed))


async def carry_out(pool: Pool) -> None:
    async with store.autocommit(pool) as conn:
        await store.carry_out_cancels(conn, DOMAIN)


async def requests(pool: Pool) -> int:
    return int(await value(pool, "select count(*) from command_bus_cancel_request"))


# The functions


async def test_a_cancelled_attempt_ends_the_command_with_one_reply(pool, tsq):
    [command_id] = await send(pool, reply_to=REPLIES)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)

    answer = await tsq.request_cancel(DOMAIN, command_id, "ann", "not needed")
    assert answer.status == "IN_PROGRESS"
    assert await settle_cancelled(pool, worker_id, claimed) == 1

    assert await events(pool, command_id) == ["SENT", "RECEIVED", "OPERATOR_CANCEL"]
    trail = await CommandBus(pool).get_audit_trail(command_id)
    assert (trail[-1].details["operator"], trail[-1].details["reason"]) == ("ann", "not needed")
    [reply] = await replies(pool, command_id)
    assert reply["status"] == "CANCELLED"
    assert await requests(pool) == 0
    assert await settle_cancelled(pool, worker_id, claimed) == 0
    await assert_books_balance(pool)


async def test_a_result_that_was_recorded_first_wins(pool, tsq):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await tsq.request_cancel(DOMAIN, command_id, "ann")

    assert await settle(pool, worker_id, completed(claimed)) == []
    assert await settle_cancelled(pool, worker_id, claimed) == 0
    await carry_out(pool)

    assert await status(pool, command_id) == "COMPLETED"
    assert await requests(pool) == 0


async def test_a_result_that_comes_after_the_cancellation_changes_nothing(pool, tsq):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await tsq.request_cancel(DOMAIN, command_id, "ann")
    await settle_cancelled(pool, worker_id, claimed)

    await settle(pool, worker_id, completed(claimed))

    assert await status(pool, command_id) == "CANCELLED"
    await assert_books_balance(pool)


@pytest.mark.parametrize("kind", ["transient", "permanent"])
async def test_a_command_that_fails_instead_is_cancelled_all_the_same(pool, tsq, kind):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await tsq.request_cancel(DOMAIN, command_id, "ann")
    await settle(pool, worker_id, failed(claimed, kind))

    await carry_out(pool)

    assert await status(pool, command_id) == "CANCELLED"
    assert await requests(pool) == 0
    await assert_books_balance(pool)


@pytest.mark.parametrize("worker_lives", [True, False])
async def test_the_next_attempt_of_a_command_whose_worker_died_does_not_begin(
    pool, tsq, worker_lives
):
    [command_id] = await send(pool)
    await claim_one(pool, await register(pool))
    await tsq.request_cancel(DOMAIN, command_id, "ann")
    await expire_leases(pool, command_id, worker_lives=worker_lives)

    assert await claim(pool, await register(pool)) == []

    assert await status(pool, command_id) == "CANCELLED"
    await assert_books_balance(pool)


async def test_what_is_pending_is_cancelled_at_once_and_what_has_ended_is_refused(pool, tsq):
    [command_id] = await send(pool)

    assert (await tsq.request_cancel(DOMAIN, command_id, "ann")).status == "CANCELLED"
    with pytest.raises(InvalidStateError):
        await tsq.request_cancel(DOMAIN, command_id, "ann")
    with pytest.raises(CommandNotFoundError):
        await tsq.request_cancel(DOMAIN, uuid4(), "ann")
    assert await requests(pool) == 0


# Workers


async def test_a_handler_sees_the_request_and_its_task_is_cancelled_after_the_grace(
    pool, tsq, registry, start_worker
):
    seen: list[str] = []

    @registry.handler(DOMAIN, "DoIt")
    async def handle(command, context):
        seen.append("started")
        while not context.cancel_requested:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        seen.append("asked")
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("cancelled")

    [command_id] = await send(pool, max_attempts=5)
    await start_worker(cancel_grace=0.3)
    await until(lambda: seen == ["started"])
    await tsq.request_cancel(DOMAIN, command_id, "ann")

    await ended(pool, command_id, expected="CANCELLED", seconds=5)
    assert seen == ["started", "asked", "cancelled"]
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "OPERATOR_CANCEL"]
    await assert_books_balance(pool)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (asyncio.CancelledError(), "CANCELLED"),
        (TransientCommandError("E", "stopped"), "CANCELLED"),
        (BusinessRuleError("E", "no"), "FAILED"),
        (None, "COMPLETED"),
    ],
)
async def test_what_a_handler_does_within_the_grace_decides(
    pool, tsq, registry, start_worker, ending, expected
):
    started = asyncio.Event()

    @registry.handler(DOMAIN, "DoIt")
    async def handle(command, context):
        started.set()
        while not context.cancel_requested:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if ending is not None:
            raise ending

    [command_id] = await send(pool)
    await start_worker(cancel_grace=60)
    await started.wait()
    await tsq.request_cancel(DOMAIN, command_id, "ann")

    await ended(pool, command_id, expected=expected, seconds=5)
    await eventually(lambda: requests(pool), lambda found: found == 0)
    await assert_books_balance(pool)


async def test_what_a_worker_holds_and_has_not_started_never_starts(
    pool, tsq, registry, start_worker, gate
):
    ids = await send(pool, 12)
    worker = await start_worker(concurrency=1, batch_size=20, cancel_grace=60)
    await until(lambda: gate.started == 1)
    worker._slots._mean_run_seconds = 0.001  # as after quick handlers: it claims ahead
    worker._state.wake()
    in_progress = "select count(*) from command_bus_command where status = 'IN_PROGRESS'"
    await eventually(lambda: value(pool, in_progress), lambda found: found > 1)

    for command_id in ids:
        await tsq.request_cancel(DOMAIN, command_id, "ann")

    async def cancelled() -> int:
        return (await CommandBus(pool).count_by_status())[CommandStatus.CANCELLED]

    await eventually(cancelled, lambda found: found == 11)
    gate.open.set()

    async def completed_count() -> int:
        return (await CommandBus(pool).count_by_status())[CommandStatus.COMPLETED]

    await eventually(completed_count, lambda found: found == 1)
    await eventually(lambda: requests(pool), lambda found: found == 0)
    assert gate.started == 1
    await assert_books_balance(pool)


async def test_races_of_results_and_cancellations_have_one_winner_each(
    pool, registry, start_worker
):
    @registry.handler(DOMAIN, "DoIt")
    async def handle(command, context):
        await asyncio.sleep(0.05)
        return "done"

    ids = await send(pool, 100, reply_to=REPLIES)
    await start_worker(concurrency=10, cancel_grace=0)
    tsq = TroubleshootingQueue(pool)

    async def cancel(command_id) -> None:
        await asyncio.sleep(0.004 * ids.index(command_id))
        with suppress(InvalidStateError):
            await tsq.request_cancel(DOMAIN, command_id, "ann")

    await asyncio.gather(*map(cancel, ids))

    async def open_commands() -> int:
        counts = await CommandBus(pool).count_by_status()
        return counts[CommandStatus.PENDING] + counts[CommandStatus.IN_PROGRESS]

    await eventually(open_commands, lambda found: found == 0, seconds=20)
    counts = await CommandBus(pool).count_by_status()
    assert counts[CommandStatus.COMPLETED] + counts[CommandStatus.CANCELLED] == 100
    assert len(await replies(pool)) == 100
    await eventually(lambda: requests(pool), lambda found: found == 0)
    await assert_books_balance(pool)
