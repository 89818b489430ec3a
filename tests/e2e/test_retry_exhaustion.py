"""F006: when the budget is spent an operator has to look."""

from __future__ import annotations

from uuid import uuid4

import pytest

from commandbus import CommandStatus
from tests.e2e.support import create_test_command
from tests.facts import count
from tests.waiting import eventually


@pytest.mark.parametrize("budget", [1, 2, 5])
async def test_a_command_is_tried_as_often_as_its_own_budget_says(
    command_bus, worker_task, wait_for_status, budget
):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "fail_transient", "error_code": "TIMEOUT"})

    await command_bus.send("test", "TestCommand", command_id, {}, max_attempts=budget)
    exhausted = await wait_for_status(command_id, CommandStatus.IN_TSQ)

    assert (exhausted.attempts, exhausted.last_error_code) == (budget, "TIMEOUT")
    trail = [event.event_type for event in await command_bus.get_audit_trail(command_id)]
    assert trail.count("FAILED") == budget
    assert trail[-3:] == ["FAILED", "RETRY_EXHAUSTED", "MOVED_TO_TSQ"]


async def test_without_one_the_worker_s_policy_counts(command_bus, worker_task, wait_for_status):
    command_id = uuid4()
    await create_test_command(command_id, {"type": "fail_transient"})

    await command_bus.send("test", "TestCommand", command_id, {})

    assert (await wait_for_status(command_id, CommandStatus.IN_TSQ)).attempts == 3


async def test_a_type_without_a_handler_waits_and_spends_no_attempt(command_bus, worker_task, pool):
    command_id = uuid4()

    await command_bus.send("test", "Unheard", command_id, {})
    await eventually(lambda: count(pool, "command_bus_parked", command_id), lambda rows: rows == 1)

    unheard = await command_bus.get_command("test", command_id)
    assert (unheard.status, unheard.attempts) == (CommandStatus.PENDING, 0)
