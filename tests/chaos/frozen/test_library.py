"""The server or the network stands still under the library in somebody else's program."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from commandbus import CommandBus, TroubleshootingQueue, uuid7
from commandbus.errors import INFRASTRUCTURE_ERRORS
from commandbus.models import NewCommand
from tests.chaos.freezing import (
    PATIENCE_SECONDS,
    Fault,
    GatedHandler,
    all_completed,
    forgotten,
    frozen,
    pool_of,
    silent,
    timed,
    working,
)
from tests.chaos.scenes import command, send_on_record
from tests.facts import DOMAIN, value
from tests.waiting import eventually


async def refused(call: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises(INFRASTRUCTURE_ERRORS):
        await call()


@pytest.mark.parametrize(
    ("fault", "checked"), [(silent, False), (forgotten, True), (frozen, False)]
)
async def test_each_call_of_the_library_ends_in_time(
    fault: Fault, checked: bool, server, proxy, own_pool
):
    check = AsyncConnectionPool.check_connection if checked else None
    new = [NewCommand(command_type="DoIt", command_id=uuid7(), data=n) for n in range(2500)]
    async with pool_of(proxy.url, check=check) as pool:
        bus = CommandBus(pool, answer_timeout=0.5)
        tsq = TroubleshootingQueue(pool, answer_timeout=0.5)

        async def transaction() -> None:
            async with bus.transaction() as conn:
                await bus.send(DOMAIN, "DoIt", uuid7(), {}, conn=conn)

        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: bus.send(DOMAIN, "DoIt", new[0].command_id, 0),
            lambda: bus.send_many(DOMAIN, new),
            lambda: bus.get_command(DOMAIN, new[0].command_id),
            lambda: tsq.operator_retry(DOMAIN, new[0].command_id),
            tsq.count,
            transaction,
        ]
        await bus.count_by_status()  # there is a connection that will fall silent
        with fault(proxy, server):
            ended = await asyncio.gather(
                *(timed(refused(call)) for call in calls), return_exceptions=True
            )
        for call, answer in zip(calls, ended, strict=True):
            assert not isinstance(answer, BaseException), call
            assert answer[1] < PATIENCE_SECONDS, call

        async def sent() -> int:
            try:
                return len(await bus.send_many(DOMAIN, new))
            except INFRASTRUCTURE_ERRORS:
                return 0

        await eventually(sent, lambda number: number == len(new))
    assert await value(own_pool, "select count(*) from command_bus_command where data <> '{}'") == (
        len(new)
    )


async def test_a_worker_hears_of_work_again_after_its_listener_was_forgotten(
    proxy, own_pool, history, monkeypatch
):
    monkeypatch.setattr("commandbus.listener.CHECK_SECONDS", 0.2)
    handler = GatedHandler(history)
    handler.gate.set()
    async with (
        pool_of(proxy.url) as pool,
        working(pool, handler, poll_interval=3600.0, answer_timeout=0.5),
    ):
        first, second = command("success"), command("success")
        await send_on_record(own_pool, history, [first])
        await all_completed(own_pool, [first])
        proxy.forget()
        await send_on_record(own_pool, history, [second])
        await all_completed(own_pool, [second])
