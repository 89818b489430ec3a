"""F006: what fails for now is tried again after a growing delay."""

from __future__ import annotations

from itertools import pairwise
from uuid import uuid4

from commandbus import CommandStatus, RetryPolicy
from tests.e2e.support import create_test_command
from tests.facts import rows
from tests.waiting import eventually


async def test_a_command_that_fails_twice_then_succeeds_completes(
    command_bus, worker_task, wait_for_completion
):
    command_id = uuid4()
    await create_test_command(
        command_id, {"type": "fail_transient_then_succeed", "transient_failures": 2}
    )

    await command_bus.send("test", "TestCommand", command_id, {})
    done = await wait_for_completion(command_id)

    assert (done.attempts, done.result) == (3, {"status": "success", "attempts": 3})
    trail = [event.event_type for event in await command_bus.get_audit_trail(command_id)]
    assert trail == [
        "SENT",
        *["RECEIVED", "FAILED", "RETRY_SCHEDULED"] * 2,
        "RECEIVED",
        "COMPLETED",
    ]


async def test_no_attempt_begins_before_its_delay_is_over(
    command_bus, make_worker_task, wait_for_status
):
    policy = RetryPolicy(max_attempts=4, base_delay_ms=100, backoff_multiplier=2.0)
    worker, task = await make_worker_task(retry_policy=policy)
    command_id = uuid4()
    await create_test_command(command_id, {"type": "fail_transient"})

    await command_bus.send("test", "TestCommand", command_id, {})
    await wait_for_status(command_id, CommandStatus.IN_TSQ)
    worker.stop()
    await task

    events = await command_bus.get_audit_trail(command_id)
    delays = [
        (received.created_at - scheduled.created_at).total_seconds() * 1000
        for scheduled, received in pairwise(events)
        if scheduled.event_type == "RETRY_SCHEDULED"
    ]
    assert len(delays) == 3
    assert all(
        delay >= expected for delay, expected in zip(delays, [100, 200, 400], strict=True)
    ), delays


async def test_a_command_that_waits_for_its_retry_is_not_in_the_queue(
    pool, command_bus, make_worker_task, wait_for_status
):
    policy = RetryPolicy(max_attempts=2, base_delay_ms=60_000)
    worker, task = await make_worker_task(retry_policy=policy)
    command_id = uuid4()
    await create_test_command(command_id, {"type": "fail_transient"})

    await command_bus.send("test", "TestCommand", command_id, {})

    # PENDING again, after one attempt.
    async def attempted() -> bool:
        seen = await command_bus.get_command("test", command_id)
        return seen.attempts == 1 and seen.status is CommandStatus.PENDING

    await eventually(attempted)
    worker.stop()
    await task

    assert await rows(pool, "select 1 from pgmq.q_test__commands") == []
    assert await rows(pool, "select kind from command_bus_waiting") == [("RETRY",)]
