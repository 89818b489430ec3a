"""The fixtures of the suites S023 and S024."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.worker import create_worker
from commandbus import CommandBus, CommandRecord, CommandStatus, RetryPolicy
from commandbus.ops import TroubleshootingQueue
from tests.e2e import support
from tests.e2e.support import create_test_command, update_test_command
from tests.facts import Pool
from tests.waiting import eventually

WaitForStatus = Callable[..., Awaitable[CommandRecord]]
# Retries come quickly, so that the suites are about what happens and not about waiting.
QUICK_RETRIES = RetryPolicy(max_attempts=3, base_delay_ms=50, max_delay_ms=200)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is end to end."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def command_bus(pool: Pool) -> CommandBus:
    return CommandBus(pool)


@pytest.fixture
async def tsq(pool: Pool) -> TroubleshootingQueue:
    return TroubleshootingQueue(pool)


@pytest.fixture
def make_worker_task(pool: Pool) -> Callable[..., Any]:
    """Starts workers in the test's loop; the caller stops them."""

    async def make(**options: Any) -> tuple[Any, asyncio.Task[None]]:
        worker = await create_worker(pool, **{"retry_policy": QUICK_RETRIES, **options})
        return worker, asyncio.create_task(worker.run())

    return make


@pytest.fixture
async def worker_task(make_worker_task: Callable[..., Any]) -> AsyncIterator[asyncio.Task[None]]:
    """A worker in the test's loop, with a budget of 3 attempts."""
    worker, task = await make_worker_task()
    yield task
    worker.stop()
    await task


@pytest.fixture
def wait_for_status(command_bus: CommandBus) -> WaitForStatus:
    """Waits until a command has a status; TimeoutError when it does not get it."""

    async def wait(
        command_id: UUID,
        expected_status: CommandStatus,
        timeout: float = 10,  # noqa: ASYNC109
    ) -> CommandRecord:
        async def look() -> CommandRecord | None:
            return await command_bus.get_command("test", command_id)

        try:
            command = await eventually(
                look, lambda seen: seen and seen.status == expected_status, seconds=timeout
            )
        except AssertionError as exc:
            message = f"Command {command_id} did not reach {expected_status}: {exc}"
            raise TimeoutError(message) from exc
        assert command is not None  # the condition above saw one
        return command

    return wait


@pytest.fixture
def wait_for_completion(wait_for_status: WaitForStatus) -> WaitForStatus:
    async def wait(
        command_id: UUID,
        timeout: float = 10,  # noqa: ASYNC109
    ) -> CommandRecord:
        return await wait_for_status(command_id, CommandStatus.COMPLETED, timeout=timeout)

    return wait


@pytest.fixture(autouse=True)
def _test_commands_go_to_this_database(request: pytest.FixtureRequest) -> Iterator[None]:
    """The functions of support.py act on the database of the test, where it has one."""
    if "pool" not in request.fixturenames:
        yield
        return
    with support.bound_to(request.getfixturevalue("pool")):
        yield


# Under names of their own, so that the functions can be imported from here, too.


@pytest.fixture(name="create_test_command")
def _create_test_command() -> Callable[..., Awaitable[None]]:
    return create_test_command


@pytest.fixture(name="update_test_command")
def _update_test_command() -> Callable[..., Awaitable[None]]:
    return update_test_command
