"""Handlers may hold the whole pool: the worker's own work has connections of its own then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool

from commandbus import Worker
from commandbus.worker_connections import WorkerConnections
from tests.facts import DOMAIN, Pool, ended, events, rows, send, value
from tests.integration.conftest import QUICK_RETRIES
from tests.waiting import eventually

SIZE = 2
SESSIONS = (
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and application_name = 'of handlers'"
)


async def configure(conn: AsyncConnection[TupleRow]) -> None:
    await conn.execute("set application_name = 'of handlers'")
    await conn.commit()


@pytest.fixture
async def small(database_url: str) -> AsyncIterator[Pool]:
    """A pool that is smaller than the worker's concurrency."""
    async with AsyncConnectionPool(
        database_url,
        connection_class=AsyncConnection[TupleRow],
        min_size=1,
        max_size=SIZE,
        configure=configure,
        open=False,
    ) as opened:
        yield opened


async def test_handlers_that_hold_the_whole_pool_keep_their_leases(pool, small, registry, caplog):
    heartbeat = "select extract(epoch from clock_timestamp() - max(heartbeat_at)) from"
    ages: list[float] = []

    @registry.handler(DOMAIN, "DoIt", auto_renew=True)
    async def handle(command, context):
        async with small.connection():
            await asyncio.sleep(2.5)
            ages.append(await value(pool, f"{heartbeat} command_bus_worker"))

    ids = await send(pool, 2 * SIZE, max_attempts=1)
    worker = Worker(
        small,
        domain=DOMAIN,
        handler_registry=registry,
        concurrency=SIZE,
        visibility_timeout=1,
        retry_policy=QUICK_RETRIES,
    )
    running = asyncio.create_task(worker.run())

    await ended(pool, *ids, seconds=30)
    worker.stop()
    await running
    for command_id in ids:
        assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]
    assert len(ages) == 2 * SIZE
    assert max(ages) < 2.5
    [told] = [each for each in caplog.records if each.msg == "pool_too_small"]
    assert told.pool_max == SIZE
    await eventually(lambda: value(pool, SESSIONS), lambda left: left <= SIZE)


async def test_connections_come_from_the_pool_while_it_has_any(pool, small):
    await small.wait()  # its first connection is open
    connections = WorkerConnections(small)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connections.close)
        for task in ("leases", "heartbeat", "settling"):
            async with connections.autocommit(task, within=5) as conn:
                assert conn.autocommit
        assert await value(pool, SESSIONS) <= SIZE


async def test_a_connection_of_its_own_is_configured_as_the_pools_and_replaced_when_it_is_lost(
    pool, small
):
    connections = WorkerConnections(small)
    pid = "select pg_backend_pid(), current_setting('application_name')"
    async with small.connection(), small.connection():
        seen = []
        for _ in range(3):
            async with connections.autocommit("leases", within=5) as conn:
                [row] = await (await conn.execute(pid)).fetchall()
                seen.append(row)
            if len(seen) == 2:
                await rows(pool, "select pg_terminate_backend(%s, 5000)", row[0])
                with pytest.raises(Exception, match=r"terminat|closed"):
                    async with connections.autocommit("leases", within=5) as conn:
                        await conn.execute(pid)
        assert {name for _, name in seen} == {"of handlers"}
        assert seen[0] == seen[1] != seen[2]
    await connections.close()
    await eventually(lambda: value(pool, SESSIONS), lambda left: left <= SIZE)


async def test_a_pool_without_a_limit_is_never_exhausted(database_url):
    async with AsyncNullConnectionPool(
        database_url, connection_class=AsyncConnection[TupleRow], max_size=0, open=False
    ) as unlimited:
        connections = WorkerConnections(unlimited)
        async with connections.autocommit("leases", within=10) as conn:
            assert unlimited.get_stats()["pool_size"] == 1
            async with connections.autocommit("leases", within=10) as other:
                assert other is not conn
                assert unlimited.get_stats()["pool_size"] == 2
