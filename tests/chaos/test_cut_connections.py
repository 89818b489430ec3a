"""Wherever the connection is cut, there is one command, one message, one reply.

Each operation is first run through the proxy to count its messages, and then once for each message
and each side of it, with the connection cut there. The caller does what the library does: it asks
again. What it learns must be true.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import CommandBus, HandlerRegistry, RetryPolicy, Worker, store, uuid7
from commandbus.errors import INFRASTRUCTURE_ERRORS, InvalidStateError
from commandbus.models import ClaimedCommand, CommandStatus, Settlement, Verdict
from commandbus.ops import TroubleshootingQueue
from tests.chaos.conftest import scaled
from tests.chaos.proxy import THROUGH_PROXY, Cut, Proxy, proxied
from tests.facts import (
    Pool,
    claim,
    completed,
    events,
    failed,
    queued,
    register,
    release,
    renew,
    replies,
    rows,
    settle,
    status,
)
from tests.waiting import eventually, until


@asynccontextmanager
async def pool_through(proxy: Proxy) -> AsyncIterator[Pool]:
    """A pool whose connections go through the proxy."""
    async with AsyncConnectionPool(
        proxy.url, connection_class=AsyncConnection[TupleRow], min_size=1, max_size=4, open=False
    ) as pool:
        await pool.wait()
        yield pool


@dataclass
class Stage:
    """What an operation works on: the bus through the proxy, and beside it."""

    near: Pool
    far: Pool
    worker_id: int
    command_id: UUID
    backends: set[int]
    """The server's processes behind the proxy before anything is cut."""
    claimed: ClaimedCommand | None = None

    async def send(self) -> None:
        await CommandBus(self.near).send(
            "test", "DoIt", self.command_id, {"a": 1}, reply_to="test__replies"
        )

    async def claim(self) -> None:
        [self.claimed] = await claim(self.near, self.worker_id)

    async def fail(self) -> None:
        assert self.claimed is not None
        await settle(self.near, self.worker_id, failed(self.claimed, "permanent"))

    @property
    def attempt(self) -> ClaimedCommand:
        assert self.claimed is not None
        return self.claimed


async def backends(pool: Pool) -> set[int]:
    """The server's processes behind the proxy."""
    found = await rows(
        pool,
        "select pid from pg_stat_activity"
        " where application_name = %s and datname = current_database()",
        THROUGH_PROXY,
    )
    return {pid for (pid,) in found}


async def server_noticed(stage: Stage) -> None:
    """Wait until the server has done what it was asked before the cut, and has seen the cut.

    It may not even have begun when the caller hears of it; its process ends after both.
    """
    await eventually(lambda: backends(stage.far), stage.backends.isdisjoint)


async def again(call: Callable[[], Awaitable[Any]]) -> tuple[Any, bool]:
    """What *call* gives, the second time where the connection broke; and whether it did."""
    try:
        return await call(), False
    except INFRASTRUCTURE_ERRORS:
        return await call(), True


# The operations: each brings its command to an end, and its own call through the proxy


async def sending(stage: Stage) -> None:
    async def send():
        return await CommandBus(stage.near).send(
            "test", "DoIt", stage.command_id, {"a": 1}, reply_to="test__replies"
        )

    try:
        # Not always created: the bus sends once more where its connection breaks.
        sent = await send()
        assert sent.command_id == stage.command_id
    except INFRASTRUCTURE_ERRORS:
        # Whether it counted can be found out, in both ways; the server has to have noticed.
        await server_noticed(stage)
        found = await CommandBus(stage.near).get_command("test", stage.command_id)
        sent = await send()
        assert sent.created == (found is None)
    assert await queued(stage.far, stage.command_id) == 1


async def claiming(stage: Stage) -> None:
    try:
        got = await claim(stage.near, stage.worker_id)
    except INFRASTRUCTURE_ERRORS:
        # As the worker does: what it may have got and never heard of is given back.
        await server_noticed(stage)
        await _release_unknown(stage)
        got = await claim(stage.near, stage.worker_id)
    assert [each.attempt for each in got] == [1]
    [stage.claimed] = got


async def _release_unknown(stage: Stage) -> None:
    async with store.autocommit(stage.near) as conn:
        unknown = await store.claimed_by_worker(conn, "test", stage.worker_id)
        await store.release_commands(conn, "test", stage.worker_id, unknown)


async def settled(stage: Stage, outcome: dict[str, Any]) -> list[Settlement]:
    """The answer, as a worker asks for it: again while the session that was cut has the rows."""

    async def look() -> list[Settlement]:
        found: list[Settlement]
        found, _ = await again(lambda: settle(stage.near, stage.worker_id, outcome))
        return found

    return await eventually(look, lambda seen: all(s.verdict is not Verdict.LOCKED for s in seen))


async def settling(stage: Stage) -> None:
    settlements = await settled(stage, completed(stage.attempt, {"done": 1}))
    assert [each.verdict for each in settlements] in ([], ["recorded"])


async def settling_a_failure(stage: Stage) -> None:
    settlements = await settled(stage, failed(stage.attempt, "business"))
    assert [each.verdict for each in settlements] in (["applied"], ["recorded"])


async def renewing(stage: Stage) -> None:
    held, _ = await again(lambda: renew(stage.near, stage.worker_id, stage.attempt))
    assert held


async def releasing(stage: Stage) -> None:
    try:
        assert await release(stage.near, stage.worker_id, [stage.attempt]) == 1
    except INFRASTRUCTURE_ERRORS:
        await server_noticed(stage)
        await _release_unknown(stage)
    [stage.claimed] = await claim(stage.far, stage.worker_id)
    assert stage.claimed.attempt == 1


async def retrying(stage: Stage) -> None:
    await _operating(stage, "operator_retry", CommandStatus.PENDING)


async def cancelling(stage: Stage) -> None:
    await _operating(stage, "operator_cancel", CommandStatus.CANCELLED)


async def completing_by_hand(stage: Stage) -> None:
    await _operating(stage, "operator_complete", CommandStatus.COMPLETED)


async def cancelling_before_it_starts(stage: Stage) -> None:
    await _operating(stage, "cancel_pending", CommandStatus.CANCELLED)


async def _operating(stage: Stage, name: str, expected: CommandStatus) -> None:
    """An operator who asks again is told what the command is now, if it was done already."""
    act = getattr(TroubleshootingQueue(stage.near), name)
    try:
        await act("test", stage.command_id)
    except INFRASTRUCTURE_ERRORS:
        with suppress(InvalidStateError):
            await act("test", stage.command_id)
    assert await status(stage.far, stage.command_id) is expected


OPERATIONS = {
    "send": ((), sending),
    "claim": ((Stage.send,), claiming),
    "settle": ((Stage.send, Stage.claim), settling),
    "settle a failure": ((Stage.send, Stage.claim), settling_a_failure),
    "renew": ((Stage.send, Stage.claim), renewing),
    "release": ((Stage.send, Stage.claim), releasing),
    "operator retry": ((Stage.send, Stage.claim, Stage.fail), retrying),
    "operator cancel": ((Stage.send, Stage.claim, Stage.fail), cancelling),
    "operator complete": ((Stage.send, Stage.claim, Stage.fail), completing_by_hand),
    "cancel pending": ((Stage.send,), cancelling_before_it_starts),
}


async def bring_to_an_end(stage: Stage) -> None:
    """Whatever is open is claimed where it has to be, and completed."""
    if await status(stage.far, stage.command_id) is CommandStatus.PENDING:
        [stage.claimed] = await claim(stage.far, stage.worker_id)
    if await status(stage.far, stage.command_id) is CommandStatus.IN_PROGRESS:
        await settle(stage.far, stage.worker_id, completed(stage.attempt))


@pytest.mark.parametrize("name", OPERATIONS)
async def test_one_cut_anywhere_leaves_one_command_one_message_and_one_reply(
    database_url, pool, name
):
    before, operation = OPERATIONS[name]

    async def run(cut: Cut | None) -> int:
        async with proxied(database_url) as proxy, pool_through(proxy) as near:
            stage = Stage(near, pool, await register(pool), uuid7(), await backends(pool))
            for step in before:
                await step(stage)
            proxy.arm(cut)
            await operation(stage)
            seen = proxy.disarm()
            if cut is not None and not proxy.was_cut:
                pytest.fail(f"UNKNOWN: there was nothing to cut at {cut}")
            await bring_to_an_end(stage)
        assert len(await replies(pool, stage.command_id)) == 1
        assert await queued(pool, stage.command_id) == 0
        trail = await events(pool, stage.command_id)
        assert trail.count("SENT") == 1
        assert "LATE_RESULT" not in trail
        return seen

    messages = await run(None)
    assert messages > 5
    # A cut after one message is nearly one before the next, so every other one shows nearly all.
    for message in range(1, messages + 1, scaled(2, 1)):
        for after in (False, True):
            await run(Cut(message, after))
    assert await rows(pool, "select * from command_bus.find_violations()") == []


async def test_one_cut_anywhere_in_the_life_of_a_worker_runs_the_handler_once(database_url, pool):
    """From the first connection of its pool to its last word."""

    async def run(cut: Cut | None) -> int:
        command_id = uuid7()
        runs: list[UUID] = []
        registry = HandlerRegistry()

        @registry.handler("test", "DoIt")
        async def handle(command, context):
            runs.append(command.command_id)
            await asyncio.sleep(0.01)
            return {}

        await CommandBus(pool).send(
            "test", "DoIt", command_id, {}, reply_to="test__replies", max_attempts=1
        )
        async with proxied(database_url) as proxy:
            proxy.arm(cut)
            async with AsyncConnectionPool(
                proxy.url, connection_class=AsyncConnection[TupleRow], min_size=1, open=False
            ) as near:
                worker = Worker(
                    near,
                    domain="test",
                    handler_registry=registry,
                    poll_interval=0.05,
                    drain_timeout=5,
                    retry_policy=RetryPolicy(max_attempts=1),
                )
                task = asyncio.create_task(worker.run())
                try:
                    await until(lambda: worker.outcomes_recorded == 1)
                    worker.stop()
                    await task
                finally:
                    worker.stop(force=True)
                    await task
            seen = proxy.disarm()
            was_cut = proxy.was_cut
        assert runs == [command_id]
        assert await status(pool, command_id) is CommandStatus.COMPLETED
        assert len(await replies(pool, command_id)) == 1
        assert await queued(pool, command_id) == 0
        return seen if cut is None or was_cut else -seen

    messages = await run(None)
    step = scaled(11, 1)
    results = [
        await run(Cut(message, after))
        for message in range(1, messages + 1, step)
        for after in (False, True)
    ]
    cut = sum(seen > 0 for seen in results)
    if cut < len(results) * 0.8:  # the last messages of a life come in varying numbers
        pytest.fail(f"UNKNOWN: only {cut} of {len(results)} runs had their cut")
    assert await rows(pool, "select * from command_bus.find_violations()") == []
