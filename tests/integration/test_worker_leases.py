"""Leases: a handler that outlasts its own is given up, unless it has it made longer."""

from __future__ import annotations

import asyncio
import gc

from commandbus import (
    CommandStatus,
)
from commandbus.attempt import Attempt
from tests.facts import (
    assert_books_balance,
    ended,
    events,
    rows,
    send,
    status,
)
from tests.waiting import eventually, until


async def test_a_handler_that_outlasts_its_lease_is_cancelled_and_its_command_claimed_again(
    bus, pool, registry, start_worker
):
    cancelled = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        if context.attempt == 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(command.command_id)
                raise
        return context.attempt

    [command_id] = await send(pool)
    await start_worker(concurrency=1, visibility_timeout=1)

    await ended(pool, command_id)
    assert cancelled == [command_id]
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.result, command.attempts) == (2, 2)
    assert await events(pool, command_id) == [
        "SENT", "RECEIVED", "LEASE_EXPIRED", "RECEIVED", "COMPLETED"
    ]  # fmt: skip


async def test_a_handler_that_always_outlasts_its_lease_ends_in_the_tsq(pool, gate, start_worker):
    [command_id] = await send(pool, max_attempts=2)
    await start_worker(concurrency=1, visibility_timeout=1)

    await ended(pool, command_id, expected="IN_TSQ")
    assert gate.cancelled == gate.started == 2
    await assert_books_balance(pool)


async def test_leases_that_become_shorter_while_the_worker_runs_are_renewed_in_time(
    pool, registry, start_worker
):
    runs = []

    @registry.handler("test", "DoIt", auto_renew=True)
    async def handle(command, context):
        runs.append(context.attempt)
        if command.data == "long":
            await asyncio.sleep(3)

    worker = await start_worker(concurrency=1, visibility_timeout=30)
    await ended(pool, *await send(pool))
    worker.configure(visibility_timeout=2)
    [command_id] = await send(pool, data="long")

    await ended(pool, command_id)
    assert runs == [1, 1]


async def test_a_handler_may_make_its_own_lease_longer(pool, registry, start_worker):
    runs = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        runs.append(context.attempt)
        await context.extend_visibility(30)
        await asyncio.sleep(1.5)

    [command_id] = await send(pool)
    await start_worker(concurrency=1, visibility_timeout=1)

    await ended(pool, command_id)
    assert runs == [1]


async def test_a_handler_that_makes_its_lease_shorter_is_given_up_when_that_ends(
    pool, registry, start_worker
):
    @registry.handler("test", "DoIt")
    async def handle(command, context):
        if context.attempt == 1:
            await context.extend_visibility(1)
            await asyncio.sleep(600)

    [command_id] = await send(pool)
    await start_worker(concurrency=1, visibility_timeout=600)

    await ended(pool, command_id)
    assert (await events(pool, command_id)).count("LEASE_EXPIRED") == 1


async def test_what_has_ended_is_not_kept_in_memory_until_its_lease_would_end(
    pool, recorded, start_worker
):
    def attempts_in_memory() -> int:
        gc.collect()
        return sum(isinstance(each, Attempt) for each in gc.get_objects())

    before = attempts_in_memory()
    await start_worker(visibility_timeout=600)
    await ended(pool, *await send(pool, 40))

    assert len(recorded) == 40
    await until(lambda: attempts_in_memory() <= before)


async def test_a_handler_whose_command_was_taken_over_learns_so(pool, registry, start_worker):
    started, taken_over = asyncio.Event(), asyncio.Event()
    raised: list[str] = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        if context.attempt > 1:
            taken_over.set()
            return "second"
        started.set()
        await context.extend_visibility(300)
        await rows(pool, "update command_bus_worker set heartbeat_at = clock_timestamp()")
        await rows(
            pool,
            "update command_bus_command set lease_until = clock_timestamp() - interval '1 minute'",
        )
        await rows(
            pool, "select pgmq.set_vt('test__commands', msg_id, 0) from pgmq.q_test__commands"
        )
        await taken_over.wait()
        try:
            await context.extend_visibility(30)
        except Exception as exc:
            raised.append(type(exc).__name__)
            raise

    [command_id] = await send(pool)
    await start_worker(concurrency=1)
    await until(started.is_set)
    await start_worker(concurrency=1, poll_interval=0.05)

    await ended(pool, command_id)
    await until(lambda: raised)
    assert raised == ["LeaseLostError"]
    await eventually(
        lambda: events(pool, command_id), lambda trail: trail.count("LATE_RESULT") == 1
    )
    assert await status(pool, command_id) == CommandStatus.COMPLETED


async def test_a_limit_of_time_ends_an_attempt_as_its_own_error_does_not(
    bus, pool, registry, start_worker
):
    @registry.handler("test", "DoIt", timeout=0.05)
    async def handle(command, context):
        if command.data == "own":
            raise TimeoutError("nobody answered")
        await asyncio.sleep(60)

    [own] = await send(pool, data="own", max_attempts=1)
    [limited] = await send(pool, max_attempts=1)
    await start_worker(handler_timeout=60)

    await ended(pool, own, limited, expected="IN_TSQ")
    codes = {
        command_id: (await bus.get_command("test", command_id)).last_error_code
        for command_id in (own, limited)
    }
    assert codes == {own: "TimeoutError", limited: "HANDLER_TIMEOUT"}
    trail = await events(pool, limited)
    assert trail == ["SENT", "RECEIVED", "FAILED", "RETRY_EXHAUSTED", "MOVED_TO_TSQ"]


async def test_only_a_lease_that_is_over_is_said_to_be(pool, registry, start_worker):
    """What ends without an outcome in any other way keeps its lease to the end."""

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        if command.data == "exit":
            raise GeneratorExit

    [command_id] = await send(pool, data="exit")
    worker = await start_worker(visibility_timeout=30)
    await eventually(lambda: events(pool, command_id), lambda seen: "RECEIVED" in seen)
    await until(lambda: worker.running_count == 0)
    for _ in range(3):
        await ended(pool, *await send(pool))

    assert await events(pool, command_id) == ["SENT", "RECEIVED"]
