"""Pools that notice soon that a server is back."""

from __future__ import annotations

import asyncio

from commandbus import pools
from commandbus.pools import create_pool
from tests.chaos.proxy import proxied
from tests.waiting import until


async def test_who_waits_gets_a_connection_soon_after_a_long_absence_of_the_server(database_url):
    async with proxied(database_url) as proxy, create_pool(proxy.url, min_size=1) as pool:
        proxy.refusals = 12  # the pauses of a pool as it comes would take an hour

        async with asyncio.timeout(60), pool.connection(timeout=60) as conn:
            cur = await conn.execute("select 1")

            assert await cur.fetchone() == (1,)
        assert proxy.refusals == 0


async def test_a_connection_that_falls_silent_before_anybody_has_it_is_replaced(
    database_url, monkeypatch
):
    monkeypatch.setattr(pools, "CONFIGURE_SECONDS", 0.3)
    async with proxied(database_url) as proxy:
        proxy.silent_at = b"pg_backend_pid"
        async with create_pool(proxy.url, min_size=1) as pool, pool.connection() as conn:
            cur = await conn.execute("select 1")

            assert await cur.fetchone() == (1,)
        assert proxy.silent_at is None


async def test_a_pool_that_is_closed_meanwhile_tries_no_more(database_url):
    async with proxied(database_url) as proxy:
        proxy.refusals = many = 1_000_000
        async with create_pool(proxy.url, min_size=1):
            await until(lambda: proxy.refusals < many - 4)

        await asyncio.gather(*reconnecting())

        assert not reconnecting()


def reconnecting() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("reconnect")]
