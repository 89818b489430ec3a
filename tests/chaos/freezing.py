"""Freezing the database, or a part of it, and what works on it meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import HandlerRegistry, Worker
from commandbus.handlers import HandlerContext
from commandbus.models import Command, NewCommand
from tests.chaos.faults import OwnServer, stopped
from tests.chaos.history import History
from tests.chaos.proxy import Proxy
from tests.chaos.scenes import uuids
from tests.chaos.worker_program import COMMAND_TYPE, RENEWED_TYPE
from tests.facts import DOMAIN, Pool, value
from tests.waiting import eventually

# Bounds of the tests, not of what they test: a busy machine takes its time for everything.
PATIENCE_SECONDS = 10.0
BACK_SECONDS = 40.0


@asynccontextmanager
async def pool_of(url: str, **options: Any) -> AsyncIterator[Pool]:
    """A pool as anybody has one; nothing about it knows of silence."""
    async with AsyncConnectionPool(
        url,
        connection_class=AsyncConnection[TupleRow],
        min_size=1,
        max_size=6,
        kwargs={"connect_timeout": 2},
        open=False,
        **options,
    ) as opened:
        yield opened


class GatedHandler:
    """Writes down that it runs, and goes on when the gate opens."""

    def __init__(self, history: History) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self._history = history

    async def __call__(self, command: Command, context: HandlerContext) -> dict[str, Any]:
        command_id = str(command.command_id)
        self._history.started(command_id, context.attempt)
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        self._history.ended(command_id, context.attempt, "completed")
        return {"attempt": context.attempt}


@asynccontextmanager
async def working(pool: Pool, handler: GatedHandler, **options: Any) -> AsyncIterator[Worker]:
    """A worker of this process, that gives a call up after a second."""
    registry = HandlerRegistry()
    registry.register(DOMAIN, COMMAND_TYPE, handler)
    registry.register(DOMAIN, RENEWED_TYPE, handler, auto_renew=True)
    given = {"concurrency": 4, "poll_interval": 0.1, "answer_timeout": 1.0, **options}
    worker = Worker(pool, domain=DOMAIN, handler_registry=registry, **given)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop(force=True)
        await task


async def backend_waiting_in(pool: Pool, function: str) -> int | None:
    """The process that waits for a lock in a call of *function*."""
    found = await value(
        pool,
        "select max(pid) from pg_stat_activity where datname = current_database()"
        " and state = 'active' and wait_event_type = 'Lock' and strpos(query, %s) > 0",
        f"command_bus.{function}",
    )
    return None if found is None else int(found)


@asynccontextmanager
async def writes_wait(pool: Pool) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """Every call that changes commands waits, until the transaction of this connection ends."""
    async with pool.connection() as conn:
        await conn.execute("lock table command_bus_command in share row exclusive mode")
        yield conn


@asynccontextmanager
async def stopped_in(
    function: str, pool: Pool, lock: AsyncConnection[TupleRow]
) -> AsyncIterator[None]:
    """A process of the server stands still in the middle of a call of *function*.

    *lock* keeps the call from ending before it is seen; it is gone when the process stands still.
    """
    deadline = time.monotonic() + 30
    while True:
        pid = await eventually(lambda: backend_waiting_in(pool, function))
        assert pid is not None
        with stopped(pid):
            # It may have given up in the moment before it stood still.
            if await backend_waiting_in(pool, function) == pid:
                await lock.rollback()
                yield
                return
        assert time.monotonic() < deadline, f"no process could be stopped in {function}"


async def moments_later(pool: Pool, seconds: float) -> None:
    """Wait until the server's clock is *seconds* further."""
    then = await value(pool, "select clock_timestamp() + make_interval(secs => %s)", seconds)
    await eventually(
        lambda: value(pool, "select clock_timestamp() > %s", then), seconds=seconds + 15
    )


async def all_completed(pool: Pool, commands: Sequence[NewCommand]) -> None:
    """Wait until *commands* are."""
    ids = uuids(commands)
    await eventually(
        lambda: value(
            pool,
            "select count(*) from command_bus_command"
            " where command_id = any(%s) and status = 'COMPLETED'",
            ids,
        ),
        lambda number: number == len(ids),
        seconds=BACK_SECONDS,
    )


async def timed(call: Awaitable[Any]) -> tuple[Any, float]:
    """What the call gives, and how many seconds it took."""
    began = time.monotonic()
    return await call, time.monotonic() - began


@contextmanager
def silent(proxy: Proxy, _: OwnServer) -> Iterator[None]:
    """The network loses everything, for a while."""
    proxy.freeze()
    try:
        yield
    finally:
        proxy.thaw()


@contextmanager
def forgotten(proxy: Proxy, _: OwnServer) -> Iterator[None]:
    """The network loses everything, and what was connected stays lost."""
    proxy.freeze()
    try:
        yield
    finally:
        proxy.forget()


def frozen(_: Proxy, server: OwnServer) -> AbstractContextManager[None]:
    """Every process of the server stands still."""
    return server.frozen()


Fault = Callable[[Proxy, OwnServer], AbstractContextManager[None]]
