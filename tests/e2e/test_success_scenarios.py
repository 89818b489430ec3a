"""S023: what becomes of commands that succeed."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from commandbus import CommandStatus, HandlerRegistry, Worker
from tests.e2e.support import create_test_command
from tests.waiting import eventually


async def test_a_command_completes_with_its_events_in_order(
    command_bus, worker_task, wait_for_completion
):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "success"})

    await command_bus.send("test", "TestCommand", command_id, {"n": 1})
    done = await wait_for_completion(command_id)

    assert (done.status, done.attempts, done.result) == (
        CommandStatus.COMPLETED,
        1,
        {"status": "success"},
    )
    trail = [event.event_type for event in await command_bus.get_audit_trail(command_id)]
    assert trail == ["SENT", "RECEIVED", "COMPLETED"]


async def test_the_test_table_tells_attempts_time_and_result(
    pool, command_bus, worker_task, wait_for_completion
):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "success"})

    await command_bus.send("test", "TestCommand", command_id, {})
    await wait_for_completion(command_id)

    async with pool.connection() as conn:
        cur = await conn.execute(
            "select attempts, processed_at is not null, result from test_command"
            " where command_id = %s",
            (command_id,),
        )
        assert await cur.fetchone() == (1, True, {"status": "success"})


async def test_the_execution_time_is_respected(command_bus, worker_task, wait_for_completion):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "success", "execution_time_ms": 300})

    await command_bus.send("test", "TestCommand", command_id, {})
    done = await wait_for_completion(command_id)

    assert done.started_at is not None
    assert done.finished_at is not None
    assert (done.finished_at - done.started_at).total_seconds() >= 0.3


async def test_ten_commands_of_100_ms_at_concurrency_4_overlap(
    command_bus, worker_task, wait_for_completion
):
    ids = [uuid4() for _ in range(10)]
    for command_id in ids:
        await create_test_command(command_id, {"type": "success", "execution_time_ms": 100})

    begun = time.monotonic()
    for command_id in ids:
        await command_bus.send("test", "TestCommand", command_id, {})
    await asyncio.gather(*(wait_for_completion(command_id) for command_id in ids))

    # One after the other they would take a second; in four lanes they need 0.3 s.
    assert time.monotonic() - begun < 0.95


async def test_the_correlation_id_survives(command_bus, worker_task, wait_for_completion):
    command_id, correlation_id = uuid4(), uuid4()
    await create_test_command(command_id, {"type": "success"})

    await command_bus.send("test", "TestCommand", command_id, {}, correlation_id=correlation_id)

    assert (await wait_for_completion(command_id)).correlation_id == correlation_id


async def test_exactly_one_reply_arrives(command_bus, worker_task, wait_for_completion):
    command_id, correlation_id = uuid4(), uuid4()
    await create_test_command(
        command_id, {"type": "fail_transient_then_succeed", "transient_failures": 1}
    )

    await command_bus.send(
        "test",
        "TestCommand",
        command_id,
        {},
        correlation_id=correlation_id,
        reply_to="test__replies",
    )
    await wait_for_completion(command_id)

    [reply] = await command_bus.read_replies("test__replies")
    assert (reply.command_id, reply.correlation_id, reply.status) == (
        command_id,
        correlation_id,
        CommandStatus.COMPLETED,
    )
    assert reply.result == {"status": "success", "attempts": 2}
    assert await command_bus.acknowledge_replies("test__replies", [reply]) == 1
    assert await command_bus.read_replies("test__replies") == []


async def test_the_payload_reaches_the_handler_and_the_result_returns(pool, command_bus):
    registry = HandlerRegistry()

    @registry.handler("test", "Echo")
    async def echo(command, context):
        return {"got": command.data, "attempt": context.attempt}

    worker = Worker(pool, domain="test", handler_registry=registry)
    running = asyncio.create_task(worker.run())
    payload = {"text": "Grüße ☂", "list": [1, 2.5, None, {"deep": True}]}
    command_id = uuid4()

    await command_bus.send("test", "Echo", command_id, payload)
    done = await eventually(
        lambda: command_bus.get_command("test", command_id),
        lambda seen: seen.status is CommandStatus.COMPLETED,
    )
    worker.stop()
    await running

    assert done.result == {"got": payload, "attempt": 1}


async def test_the_same_id_sent_twice_runs_once(command_bus, worker_task, wait_for_completion):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "success"})

    first = await command_bus.send("test", "TestCommand", command_id, {"n": 1})
    await wait_for_completion(command_id)
    second = await command_bus.send("test", "TestCommand", command_id, {"n": 1})

    assert (first.created, second.created) == (True, False)
    trail = [event.event_type for event in await command_bus.get_audit_trail(command_id)]
    assert trail == ["SENT", "RECEIVED", "COMPLETED"]
