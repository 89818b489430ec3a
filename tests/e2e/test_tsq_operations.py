"""F006, S020: what an operator does is done, once, and recorded with the operator's name."""

from __future__ import annotations

from uuid import uuid4

import pytest

from commandbus import (
    CommandNotFoundError,
    CommandStatus,
    InvalidStateError,
    OperatorVerdict,
)
from tests.e2e.support import create_test_command, update_test_command


@pytest.fixture
def send_to_tsq(command_bus, wait_for_status):
    """Sends a command that ends in the troubleshooting queue."""

    async def send(**more):
        command_id = uuid4()
        await create_test_command(command_id, {"type": "fail_permanent"})
        await command_bus.send("test", "TestCommand", command_id, {}, **more)
        await wait_for_status(command_id, CommandStatus.IN_TSQ)
        return command_id

    return send


async def test_a_retried_command_runs_again_with_fresh_attempts(
    command_bus, tsq, worker_task, send_to_tsq, wait_for_completion
):
    command_id = await send_to_tsq()
    await update_test_command(command_id, {"type": "success"})

    result = await tsq.operator_retry("test", command_id, "ann")
    done = await wait_for_completion(command_id)

    assert result.status is CommandStatus.PENDING
    assert done.attempts == 1
    events = await command_bus.get_audit_trail(command_id)
    retried = next(event for event in events if event.event_type == "OPERATOR_RETRY")
    assert retried.details["operator"] == "ann"
    assert await tsq.count() == 0


async def test_a_delayed_retry_can_be_undone(tsq, command_bus, worker_task, send_to_tsq):
    command_id = await send_to_tsq()

    await tsq.operator_retry("test", command_id, "ann", delay_seconds=60)
    pending = await command_bus.get_command("test", command_id)
    await tsq.undo_retry("test", command_id, "ann")

    back = await command_bus.get_command("test", command_id)
    assert (pending.status, back.status, back.attempts) == ("PENDING", "IN_TSQ", 1)
    [listed] = await tsq.list("test")
    assert listed.command_id == command_id


async def test_a_cancelled_command_sends_one_reply(command_bus, tsq, worker_task, send_to_tsq):
    command_id = await send_to_tsq(reply_to="test__replies")

    await tsq.operator_cancel("test", command_id, "ann", "not needed")

    assert (await command_bus.get_command("test", command_id)).status is CommandStatus.CANCELLED
    last = (await command_bus.get_audit_trail(command_id))[-1]
    assert last.event_type == "OPERATOR_CANCEL"
    assert (last.details["operator"], last.details["reason"]) == ("ann", "not needed")
    [reply] = await command_bus.read_replies("test__replies")
    assert reply.status is CommandStatus.CANCELLED


async def test_complete_records_the_result(command_bus, tsq, worker_task, send_to_tsq):
    command_id = await send_to_tsq(reply_to="test__replies")

    await tsq.operator_complete("test", command_id, "ann", {"paid": True}, notes="by hand")

    done = await command_bus.get_command("test", command_id)
    assert (done.status, done.result) == (CommandStatus.COMPLETED, {"paid": True})
    [reply] = await command_bus.read_replies("test__replies")
    assert (reply.status, reply.result) == (CommandStatus.COMPLETED, {"paid": True})


async def test_an_action_on_a_command_outside_the_queue_is_refused(tsq, worker_task, send_to_tsq):
    command_id = await send_to_tsq()
    await tsq.operator_cancel("test", command_id, "ann", "first")

    with pytest.raises(InvalidStateError) as refused:
        await tsq.operator_retry("test", command_id, "bob")
    assert refused.value.current_status is CommandStatus.CANCELLED
    with pytest.raises(CommandNotFoundError):
        await tsq.operator_retry("test", uuid4(), "bob")


async def test_a_set_is_answered_command_by_command(tsq, worker_task, send_to_tsq):
    first, second, unknown = await send_to_tsq(), await send_to_tsq(), uuid4()
    await tsq.operator_cancel("test", first, "ann", "gone")

    results = await tsq.operator_retry_many("test", [first, second, unknown], "bob")

    assert [(r.command_id, r.verdict) for r in results] == [
        (first, OperatorVerdict.CONFLICT),
        (second, OperatorVerdict.DONE),
        (unknown, OperatorVerdict.NOT_FOUND),
    ]
