"""What tests of the library share: the bus, and workers that run on the test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from commandbus import CommandBus, HandlerRegistry, RetryPolicy, Worker
from commandbus.ops import TroubleshootingQueue
from tests.facts import DOMAIN, Pool
from tests.waiting import until

QUICK_RETRIES = RetryPolicy(max_attempts=3, base_delay_ms=10, max_delay_ms=50)

StartWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
def bus(pool: Pool) -> CommandBus:
    return CommandBus(pool)


@pytest.fixture
def tsq(pool: Pool) -> TroubleshootingQueue:
    return TroubleshootingQueue(pool)


@pytest.fixture
def registry() -> HandlerRegistry:
    return HandlerRegistry()


@pytest.fixture
def make_worker(pool: Pool, registry: HandlerRegistry) -> Callable[..., Worker]:
    """Makes workers that do not run yet, with quick retries."""

    def make(**options: Any) -> Worker:
        given = {
            "domain": DOMAIN,
            "handler_registry": registry,
            "retry_policy": QUICK_RETRIES,
            "poll_interval": 0.2,
            "drain_timeout": 5.0,
        }
        return Worker(pool, **{**given, **options})

    return make


@pytest.fixture
async def start_worker(make_worker: Callable[..., Worker]) -> AsyncIterator[StartWorker]:
    """Starts workers; those that still run at the end are stopped at once."""
    started: list[tuple[Worker, asyncio.Task[None]]] = []

    async def start(**options: Any) -> Worker:
        worker = make_worker(**options)
        task = asyncio.create_task(worker.run())
        started.append((worker, task))
        await until(lambda: worker.worker_id is not None or task.done())
        return worker

    yield start
    for worker, _ in started:
        worker.stop(force=True)
    for _, task in started:
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def recorded(registry) -> list[Any]:
    """A handler that completes at once; the (data, attempt) it got."""
    seen: list[Any] = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        seen.append((command.data, context.attempt))
        return {"did": command.data}

    return seen


class Gate:
    """A handler that waits until it is opened, and counts who waits."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started = 0
        self.running = 0
        self.most = 0
        self.cancelled = 0

    async def __call__(self, command, context) -> str:
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return "passed"


@pytest.fixture
def gate(registry) -> Gate:
    made = Gate()
    registry.register("test", "DoIt", made)
    return made
