"""A worker whose connections are cut goes on, and no command pays for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import (
    Worker,
)
from tests.facts import (
    Pool,
    assert_books_balance,
    ended,
    events,
    send,
    value,
)
from tests.waiting import until


@pytest.fixture
def cut(database_url: str) -> Callable[[], None]:
    """Ends every connection that there is."""

    def end_all() -> None:
        with psycopg.connect(database_url) as conn:
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )

    return end_all


@pytest.fixture
async def watch(database_url: str) -> AsyncIterator[Pool]:
    """A pool to look with that replaces what was cut before it is used."""
    async with AsyncConnectionPool(
        database_url,
        connection_class=AsyncConnection[TupleRow],
        min_size=1,
        check=AsyncConnectionPool.check_connection,
        open=False,
    ) as opened:
        yield opened


async def test_every_connection_may_be_lost_and_the_worker_goes_on(
    pool, watch, cut, registry, start_worker
):
    runs: list[str] = []
    go_on = asyncio.Event()

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        runs.append(str(command.command_id))
        await go_on.wait()
        return "done"

    ids = await send(pool, 4)
    worker: Worker = await start_worker(concurrency=4)
    await until(lambda: len(runs) == 4)

    cut()
    go_on.set()

    await ended(watch, *ids)
    later = await send(watch, 10)
    await ended(watch, *later)
    assert len(runs) == 14
    assert await value(watch, "select max(attempts) from command_bus_command") == 1
    assert not worker.is_stopping
    await assert_books_balance(watch)


async def test_connections_lost_again_and_again_cost_no_command_its_budget(
    pool, watch, cut, registry, start_worker
):
    runs: list[str] = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        runs.append(str(command.command_id))
        await asyncio.sleep(0.005)

    ids = await send(pool, 300)
    await start_worker(concurrency=8, batch_size=20)

    for _ in range(10):
        await asyncio.sleep(0.05)
        cut()

    await ended(watch, *ids, seconds=30)
    assert len(runs) == len(set(runs)) == 300
    assert await value(watch, "select max(attempts) from command_bus_command") == 1
    await assert_books_balance(watch)


async def test_an_attempt_that_was_given_up_is_not_taken_for_a_claim_whose_answer_got_lost(
    pool, watch, cut, registry, start_worker, caplog
):
    started: list[int] = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        if command.data == "hang":
            started.append(context.attempt)
            await asyncio.Event().wait()

    [hanging] = await send(pool, data="hang")
    worker: Worker = await start_worker(visibility_timeout=60)
    await until(lambda: started == [1])
    # The worker's clock says that the lease is over, a little before the database's.
    worker._slots.running[0].deadline = 0.0
    await until(lambda: started == [1, 2])
    while "claim_retried" not in caplog.messages:
        cut()
        await ended(watch, *await send(watch))
    await ended(watch, *await send(watch))

    # Released, it would have begun once more without the end of its lease.
    assert await events(watch, hanging) == ["SENT", "RECEIVED", "LEASE_EXPIRED", "RECEIVED"]
