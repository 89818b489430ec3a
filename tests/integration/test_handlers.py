"""The test command handler, run by a worker."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from app.testcommand import store
from app.worker import create_worker
from commandbus import CommandBus, CommandStatus, RetryPolicy, uuid7

FAST = RetryPolicy(max_attempts=3, base_delay_ms=10, max_delay_ms=20)


@asynccontextmanager
async def working(pool, **options):
    worker = await create_worker(pool, retry_policy=FAST, **options)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


async def send(pool, behavior, data=None):
    """A command with a test command of *behavior*; without one where it is None."""
    command_id = uuid7()
    bus = CommandBus(pool)
    async with bus.transaction() as conn:
        if behavior is not None:
            await store.create_test_command(conn, command_id, behavior, {})
        await bus.send("test", "TestCommand", command_id, data or {}, conn=conn)
    return command_id


async def outcome(pool, command_id):
    """The command once it has come to an end or to the troubleshooting queue."""
    async with asyncio.timeout(20):
        while True:
            command = await CommandBus(pool).get_command("test", command_id)
            assert command is not None
            if command.status.is_final or command.status is CommandStatus.IN_TSQ:
                return command
            await asyncio.sleep(0.02)


async def row_of(pool, command_id):
    async with pool.connection() as conn:
        return (await store.get_test_commands(conn, [command_id]))[command_id]


@pytest.mark.parametrize(
    ("behavior", "status", "attempts", "result", "error"),
    [
        ({"type": "success"}, "COMPLETED", 1, {"status": "success"}, None),
        (
            {"type": "fail_transient_then_succeed", "transient_failures": 2},
            "COMPLETED",
            3,
            {"status": "success", "attempts": 3},
            None,
        ),
        ({"type": "fail_permanent"}, "IN_TSQ", 1, None, "PERMANENT"),
        ({"type": "fail_permanent", "error_code": "NO"}, "IN_TSQ", 1, None, "NO"),
        ({"type": "fail_transient"}, "IN_TSQ", 3, None, "TRANSIENT"),
        ({"type": "fail_business"}, "FAILED", 1, None, "BUSINESS_RULE"),
        ({"type": "explode"}, "IN_TSQ", 1, None, "INVALID_BEHAVIOR"),
        ({"type": "crash_process"}, "IN_TSQ", 1, None, "INVALID_BEHAVIOR"),
    ],
)
async def test_a_command_ends_as_its_behaviour_says(
    pool, behavior, status, attempts, result, error
):
    command_id = await send(pool, behavior)
    async with working(pool):
        command = await outcome(pool, command_id)
    row = await row_of(pool, command_id)
    assert command.status == status
    assert command.result == result
    assert (command.last_error_code if result is None else None) == error
    assert row.attempts == attempts
    assert row.result == result
    assert (row.processed_at is not None) == (result is not None)


@pytest.mark.parametrize("behavior", [{"timeout_ms": 60_000}, {}], ids=["a time", "no time"])
async def test_a_timeout_outlasts_its_lease_and_then_completes(pool, behavior):
    command_id = await send(pool, {"type": "timeout", **behavior})
    async with working(pool, concurrency=1, visibility_timeout=1):
        command = await outcome(pool, command_id)
    assert command.status is CommandStatus.COMPLETED
    assert (await row_of(pool, command_id)).attempts == 2


async def test_the_execution_time_is_spent(pool):
    command_id = await send(pool, {"type": "success", "execution_time_ms": 300})
    async with working(pool):
        command = await outcome(pool, command_id)
    assert (command.finished_at - command.started_at).total_seconds() >= 0.3


async def test_the_behaviour_may_stand_in_the_data(pool):
    command_id = await send(pool, None, {"behavior": {"type": "fail_transient_then_succeed"}})
    async with working(pool):
        command = await outcome(pool, command_id)
    assert command.result == {"status": "success", "attempts": 2}


async def test_a_command_without_behaviour_is_a_permanent_error(pool):
    command_id = await send(pool, None)
    async with working(pool):
        command = await outcome(pool, command_id)
    assert command.status is CommandStatus.IN_TSQ
    assert command.last_error_code == "TEST_COMMAND_NOT_FOUND"


async def test_many_commands_are_counted_and_finished_in_few_calls(pool, monkeypatch):
    calls = []
    begin = store.begin_attempts

    async def counted(conn, command_ids):
        calls.append(len(command_ids))
        return await begin(conn, command_ids)

    monkeypatch.setattr(store, "begin_attempts", counted)
    ids = [await send(pool, {"type": "success"}) for _ in range(60)]
    async with working(pool, concurrency=60, batch_size=60):
        commands = [await outcome(pool, command_id) for command_id in ids]
    assert {command.status for command in commands} == {CommandStatus.COMPLETED}
    assert sum(calls) == 60
    assert len(calls) < 30
