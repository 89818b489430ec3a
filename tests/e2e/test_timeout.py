"""F006: a handler that outlasts its lease loses the command, and nothing is done twice."""

from __future__ import annotations

from uuid import uuid4

from tests.e2e.support import create_test_command


async def test_another_worker_takes_over_and_the_first_one_changes_nothing(
    command_bus, make_worker_task, wait_for_completion
):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "timeout", "execution_time_ms": 4000})
    workers = [await make_worker_task(concurrency=1, visibility_timeout=1) for _ in range(2)]

    await command_bus.send("test", "TestCommand", command_id, {}, reply_to="test__replies")
    done = await wait_for_completion(command_id, timeout=20)
    for worker, task in workers:
        worker.stop()
        await task

    assert done.attempts == 2
    trail = [event.event_type for event in await command_bus.get_audit_trail(command_id)]
    assert trail.count("COMPLETED") == 1
    assert len(await command_bus.read_replies("test__replies")) == 1


async def test_other_commands_run_while_one_outlasts_its_lease(
    command_bus, make_worker_task, wait_for_completion
):
    slow, quick = uuid4(), uuid4()
    await create_test_command(slow, {"type": "timeout", "execution_time_ms": 60_000})
    await create_test_command(quick, {"type": "success"})
    worker, task = await make_worker_task(concurrency=1, visibility_timeout=1)

    await command_bus.send("test", "TestCommand", slow, {})
    await command_bus.send("test", "TestCommand", quick, {})
    await wait_for_completion(quick, timeout=10)
    await wait_for_completion(slow, timeout=10)
    worker.stop()
    await task
