"""F006: what fails for good goes to the troubleshooting queue, or ends."""

from __future__ import annotations

from uuid import uuid4

from commandbus import CommandStatus
from tests.e2e.support import create_test_command


async def test_a_permanent_failure_goes_straight_to_the_troubleshooting_queue(
    command_bus, tsq, worker_task, wait_for_status
):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "fail_permanent"})

    await command_bus.send("test", "TestCommand", command_id, {}, max_attempts=5)
    failed = await wait_for_status(command_id, CommandStatus.IN_TSQ)

    assert (failed.attempts, failed.last_error_code) == (1, "PERMANENT")
    assert await tsq.count("test") == 1


async def test_no_reply_is_sent_while_a_command_is_in_the_troubleshooting_queue(
    command_bus, worker_task, wait_for_status
):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "fail_permanent"})

    await command_bus.send("test", "TestCommand", command_id, {}, reply_to="test__replies")
    await wait_for_status(command_id, CommandStatus.IN_TSQ)

    assert await command_bus.read_replies("test__replies") == []


async def test_a_business_rule_ends_it_and_nobody_has_to_look(
    command_bus, tsq, worker_task, wait_for_status
):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "fail_business", "error_code": "TOO_YOUNG"})

    await command_bus.send("test", "TestCommand", command_id, {}, reply_to="test__replies")
    ended = await wait_for_status(command_id, CommandStatus.FAILED)

    assert (ended.attempts, ended.last_error_code) == (1, "TOO_YOUNG")
    assert await tsq.count() == 0
    [reply] = await command_bus.read_replies("test__replies")
    assert (reply.status, reply.error and reply.error["code"]) == ("FAILED", "TOO_YOUNG")
