"""Pools that notice soon that a server is back, and connections that it has ended."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest

from commandbus import CommandBus, CommandStatus, TroubleshootingQueue, pools
from commandbus.pools import create_pool
from tests.chaos.proxy import Cut, Error, proxied
from tests.facts import DOMAIN, REPLIES, Pool, assert_books_balance, rows, send, value
from tests.integration.test_poolers import plain_pool
from tests.waiting import eventually, until

SIZE = 4
SHORT_SECONDS = 0.9
"""Less than the pause that psycopg's pool makes after a connection that failed its check."""


async def filled(pool: Pool) -> None:
    """The pool holds all the connections that it may."""
    taken = [await pool.getconn() for _ in range(pool.max_size)]
    for conn in taken:
        await pool.putconn(conn)


async def end_sessions(pool: Pool, ended: Pool) -> None:
    """The server has ended every session of *ended*, and the sockets tell."""
    taken = [await ended.getconn() for _ in range(ended.max_size)]
    pids = [conn.info.backend_pid for conn in taken]
    for conn in taken:
        await ended.putconn(conn)
    await rows(pool, "select pg_terminate_backend(pid) from unnest(%s::int[]) as pid", pids)
    await until(lambda: all(pools.is_lost(conn) for conn in taken))


@pytest.mark.parametrize("make_pool", [create_pool, plain_pool])
async def test_no_call_meets_a_connection_that_the_server_has_ended(pool, database_url, make_pool):
    async with make_pool(database_url) as used:
        await filled(used)
        bus, tsq = CommandBus(used), TroubleshootingQueue(used)
        [command_id] = await send(used)
        await end_sessions(pool, used)

        assert await tsq.count(DOMAIN) == 0
        async with bus.transaction() as conn:
            await bus.send(DOMAIN, "DoIt", uuid4(), {}, conn=conn)
        found = await asyncio.gather(*(bus.get_command(DOMAIN, command_id) for _ in range(SIZE)))
        await end_sessions(pool, used)
        cancelled = await tsq.cancel_pending(DOMAIN, command_id)

    assert all(command is not None for command in found)
    assert cancelled.status is CommandStatus.CANCELLED


async def test_dead_connections_are_passed_over_without_a_pause(pool, database_url):
    async with create_pool(database_url, min_size=1, max_size=SIZE, timeout=SHORT_SECONDS) as used:
        await filled(used)
        await end_sessions(pool, used)

        async with used.connection() as conn:
            cur = await conn.execute("select 1")

            assert await cur.fetchone() == (1,)


async def test_notices_that_arrive_in_between_do_not_end_a_connection(pool, database_url):
    async with create_pool(database_url, min_size=1, max_size=1) as used:
        async with used.connection() as conn:
            await conn.set_autocommit(True)
            await conn.execute("listen here")
            pid, socket = conn.info.backend_pid, conn.pgconn.socket
        await rows(pool, "notify here, 'word'")
        await until(lambda: pools._is_readable(socket))

        async with used.connection() as conn:
            assert conn.info.backend_pid == pid
            heard: list[str] = []
            conn.add_notify_handler(lambda each: heard.append(each.payload))
            await conn.execute("select 1")
            assert heard == ["word"]


async def test_a_call_whose_connection_breaks_is_made_once_more(pool, database_url):
    async with proxied(database_url) as proxy, create_pool(proxy.url, min_size=1) as used:
        bus, tsq = CommandBus(used), TroubleshootingQueue(used)
        calls = {
            "offer_command(": lambda: bus.send(DOMAIN, "DoIt", uuid4(), {}),
            "send_commands(": lambda: send(used, 2),
            "count_by_status": bus.count_by_status,
            "command_bus_audit": lambda: bus.get_audit_trail(uuid4()),
            "command_bus_tsq": lambda: tsq.count(DOMAIN),
            "pgmq.read": lambda: bus.read_replies(REPLIES),
            "create_domain": lambda: bus.create_domain("other"),
        }
        for statement, call in calls.items():
            proxy.error = Error(statement.encode(), "57P01")
            await call()
            assert proxy.error.happened == 1, statement

            proxy.error = Error(statement.encode(), "57P01", times=2)
            with pytest.raises(psycopg.OperationalError):
                await call()

        counts = await bus.count_by_status()
    assert counts[CommandStatus.PENDING] == 3
    await assert_books_balance(pool)


async def test_a_send_that_was_done_before_its_connection_broke_is_one_send(pool, database_url):
    async with (
        proxied(database_url) as proxy,
        create_pool(proxy.url, min_size=1, max_size=1) as used,
    ):
        bus, command_id = CommandBus(used), uuid4()
        await bus.count_by_status()
        proxy.arm(Cut(1, after=True))  # the statement arrives, its answer does not

        sent = await bus.send(DOMAIN, "DoIt", command_id, {"of": "mine"})

        assert proxy.was_cut
        assert sent.command_id == command_id
    await eventually(lambda: value(pool, "select count(*) from command_bus_command"), (1).__eq__)
    await assert_books_balance(pool)


async def test_an_operators_action_is_not_repeated(pool, database_url):
    async with proxied(database_url) as proxy, create_pool(proxy.url, min_size=1) as used:
        [command_id] = await send(used)
        proxy.error = Error(b"cancel_pending", "57P01")

        with pytest.raises(psycopg.OperationalError):
            await TroubleshootingQueue(used).cancel_pending(DOMAIN, command_id)

        assert await value(pool, "select status::text from command_bus_command") == "PENDING"


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
