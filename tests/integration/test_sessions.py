"""Pools whose sessions have other settings than the server's defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from itertools import chain
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed

from commandbus import (
    BusinessRuleError,
    CommandBus,
    HandlerRegistry,
    NewCommand,
    NotMigratedError,
    PermanentCommandError,
    TransientCommandError,
    TroubleshootingQueue,
    UnsuitableConnectionError,
    Worker,
    create_pool,
    uuid7,
)
from tests.facts import (
    DOMAIN,
    REPLIES,
    Pool,
    assert_books_balance,
    claim,
    ended,
    events,
    failed,
    register,
    send,
    settle,
)
from tests.integration.conftest import QUICK_RETRIES
from tests.waiting import until

OpenPool = Callable[..., AbstractAsyncContextManager[Pool]]


@pytest.fixture
def pool_with(database_url: str) -> OpenPool:
    """Makes pools, not open, whose sessions have these settings."""

    def make(*settings: str, max_size: int = 4, **kwargs: Any) -> Pool:
        options = " ".join(f"-c {each.replace(' ', chr(92) + ' ')}" for each in settings)
        return AsyncConnectionPool(
            database_url,
            connection_class=AsyncConnection[TupleRow],
            kwargs={"options": options, **kwargs},
            min_size=1,
            max_size=max_size,
            open=False,
        )

    return make


@pytest.mark.parametrize(
    "settings",
    [
        ["search_path=nowhere"],
        ["default_transaction_isolation=repeatable read"],
        ["default_transaction_isolation=serializable"],
        [
            *("timezone=Asia/Kathmandu", "intervalstyle=sql_standard", "bytea_output=escape"),
            *("extra_float_digits=-15", "array_nulls=off", "transform_null_equals=on"),
            *("enable_nestloop=off", "enable_indexscan=off", "plan_cache_mode=force_custom_plan"),
            *("row_security=off", "quote_all_identifiers=on", "datestyle=ISO,DMY"),
        ],
    ],
    ids=lambda settings: settings[0],
)
async def test_all_that_the_bus_does_works_with(pool, pool_with, settings):
    registry = HandlerRegistry()

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        error = {
            "business": BusinessRuleError,
            "permanent": PermanentCommandError,
            "transient": TransientCommandError if context.attempt < 2 else None,
        }.get(command.data["case"])
        if error is not None:
            raise error("CODE", "text")
        return command.data

    async with pool_with(*settings) as used:
        bus, tsq = CommandBus(used), TroubleshootingQueue(used)
        [fine] = await send(used, data={"case": "fine ĉ"}, reply_to=REPLIES)
        [later] = await send(used, data={"case": "transient"}, delay=0.01)
        [no] = await send(used, data={"case": "business"})
        [stuck] = await send(used, data={"case": "permanent"})
        worker = Worker(
            used,
            domain=DOMAIN,
            handler_registry=registry,
            retry_policy=QUICK_RETRIES,
            poll_interval=0.2,
        )
        running = asyncio.create_task(worker.run())
        await ended(used, fine, later)
        await ended(used, no, expected="FAILED")
        await ended(used, stuck, expected="IN_TSQ")
        worker.stop()
        await running

        assert len((await bus.query_commands()).commands) == 4
        assert len(await tsq.list(DOMAIN)) == await tsq.count(DOMAIN) == 1
        await tsq.operator_retry(DOMAIN, stuck, delay_seconds=60)
        await tsq.undo_retry(DOMAIN, stuck)
        await tsq.operator_cancel(DOMAIN, stuck)
        [reply] = await bus.read_replies(await bus.get_reply_queue(DOMAIN))
        assert reply.command_id == fine
        assert (await bus.get_audit_trail(later))[-1].event_type == "COMPLETED"
    await assert_books_balance(pool)


async def test_what_a_strict_isolation_refuses_is_done_again(pool, pool_with):
    same, sets, stuck = uuid7(), [uuid7() for _ in range(1100)], await send(pool, 8)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id)
    await settle(pool, worker_id, *(failed(each, "permanent") for each in claimed))

    async with pool_with("default_transaction_isolation=serializable", max_size=20) as used:
        bus, tsq = CommandBus(used), TroubleshootingQueue(used)
        await used.resize(20, 20)
        await used.wait()
        sent = await asyncio.gather(*(bus.send(DOMAIN, "DoIt", same, {}) for _ in range(20)))
        assert [each.created for each in sent].count(True) == 1
        many = [NewCommand(command_type="DoIt", command_id=each, data={}) for each in sets]
        answers = await asyncio.gather(*(bus.send_many(DOMAIN, many) for _ in range(3)))
        assert sum(each.created for each in chain(*answers)) == len(sets)
        await asyncio.gather(
            *(tsq.operator_retry(DOMAIN, each) for each in stuck[:4]),
            *(tsq.operator_cancel(DOMAIN, each) for each in stuck[4:]),
            *(bus.send(DOMAIN, "DoIt", uuid7(), {}) for _ in range(8)),
        )

    await assert_books_balance(pool)


@pytest.mark.parametrize(
    "setting", ["datestyle=German", "client_encoding=LATIN1", "client_encoding=SQL_ASCII"]
)
async def test_a_worker_that_could_not_read_commands_claims_none(
    pool, pool_with, registry, setting
):
    [command_id] = await send(pool, data={"text": "ĉ"})

    async with pool_with(setting) as unsuitable:
        worker = Worker(unsuitable, domain=DOMAIN, handler_registry=registry)
        with pytest.raises(UnsuitableConnectionError, match="has to be"):
            await worker.run()

    assert await events(pool, command_id) == ["SENT"]


async def test_sessions_that_a_pooler_shares_are_named_as_that(pool_with):
    async with pool_with(max_size=1) as pool:
        bus = CommandBus(pool)
        for _ in range(10):  # enough for psycopg to prepare the statement
            await bus.count_by_status()
        async with pool.connection() as conn:  # out of psycopg's sight, as with another session
            await conn.execute("do $$ begin execute 'deallocate all'; end $$")

        with pytest.raises(UnsuitableConnectionError, match=r"pool_mode = session"):
            await bus.count_by_status()


async def test_a_database_without_the_bus_is_named_as_that(empty_database_url, registry):
    async with create_pool(empty_database_url) as pool:
        bus = CommandBus(pool)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: bus.send(DOMAIN, "Ship", uuid7(), {}),
            lambda: bus.query_commands(),
            lambda: TroubleshootingQueue(pool).list(),
            Worker(pool, domain=DOMAIN, handler_registry=registry).run,
        ]
        for call in calls:
            with pytest.raises(NotMigratedError, match=r"command_bus.*: apply the migrations"):
                await call()


async def test_a_worker_whose_pool_was_closed_ends(pool, pool_with, recorded, registry):
    async with pool_with() as closed:
        worker = Worker(closed, domain=DOMAIN, handler_registry=registry, poll_interval=0.05)
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.worker_id is not None)

    with pytest.raises(PoolClosed):
        await running


async def test_a_worker_whose_pool_was_never_opened_says_so(pool_with, registry):
    with pytest.raises(PoolClosed, match="not open yet"):
        await Worker(pool_with(), domain=DOMAIN, handler_registry=registry).run()
