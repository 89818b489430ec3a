"""The connections of a worker's own work: renewing leases, heartbeats, recording outcomes.

They come from the pool while it has any. Handlers may use the same pool, and hold all of it for
longer than a lease. Then each of these tasks has one connection that nobody else can take. It is
opened with the settings of the pool when it is first needed, and closed after a while without use.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from commandbus.deadlines import answered_within
from commandbus.pools import prepared

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

# How long a pool that may have a connection is waited for before it is looked at again.
POOL_SECONDS = 0.2
# How long a shortage lasts before it is logged.
SHORT_SECONDS = 1.0
# How often a shortage is logged, and how long an unused connection is kept.
AGAIN_SECONDS = 60.0


class WorkerConnections:
    """Connections by the task that needs them; each task has at most one of its own."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        self._pool = pool
        self._own: dict[str, _Own] = {}
        self._short_since: float | None = None
        self._told_at = -math.inf

    @asynccontextmanager
    async def autocommit(
        self, task: str, *, within: float
    ) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection for *task* on which each call is a transaction of its own.

        Raises NoAnswerError when getting and using it took longer than *within* seconds.
        """
        async with answered_within(within):
            conn = await self._from_pool()
            if conn is not None:
                try:
                    async with conn, prepared(conn):
                        yield conn
                finally:
                    await self._pool.putconn(conn)
                return
            async with self._own.setdefault(task, _Own(self._pool)).use() as own:
                self._tell_shortage()
                async with prepared(own):
                    yield own

    @property
    def is_closed(self) -> bool:
        """Whether the pool was closed, or never opened."""
        return self._pool.closed

    async def _from_pool(self) -> AsyncConnection[TupleRow] | None:
        """A connection of the pool; None where others hold all of them."""
        while not self._is_exhausted():
            with suppress(PoolTimeout):
                conn = await self._pool.getconn(POOL_SECONDS)
                self._short_since = None
                return conn
        return None

    def _is_exhausted(self) -> bool:
        if self._pool.closed:
            return False  # to be told so
        stats = self._pool.get_stats()
        # A null pool keeps none, and opens as many as are wanted where it has no limit.
        most = stats["pool_max"]
        return 0 < most <= stats["pool_size"] and not stats["pool_available"]

    def _tell_shortage(self) -> None:
        """Say once a minute that the pool is too small, where it has been for a moment.

        A pool that just gets its connections back after a fault looks the same for less than that.
        """
        now = time.monotonic()
        if self._short_since is None:
            self._short_since = now
        if now - self._short_since < SHORT_SECONDS or now - self._told_at < AGAIN_SECONDS:
            return
        self._told_at = now
        stats = self._pool.get_stats()
        logger.warning(
            "pool_too_small",
            extra={
                "pool": self._pool.name,
                "pool_max": stats["pool_max"],
                "waiting": stats.get("requests_waiting", 0),
                "hint": "all its connections are held, by handlers it seems: give it one for each"
                " handler and two more, or give the handlers a pool of their own",
            },
        )

    async def close_unused(self) -> None:
        """Close connections that were not used for a while."""
        for own in self._own.values():
            await own.close_unused()

    async def close(self) -> None:
        """Close all that there is."""
        for own in self._own.values():
            await own.close()


class _Own:
    """One connection, opened when it is needed."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        self._pool = pool
        self._lock = asyncio.Lock()
        self._conn: AsyncConnection[TupleRow] | None = None
        self._used_at = 0.0

    @asynccontextmanager
    async def use(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        async with self._lock:
            if self._conn is None or self._conn.closed:
                self._conn = await connect_like(self._pool)
            conn = self._conn
            try:
                yield conn
            finally:
                self._used_at = time.monotonic()
                if conn.info.transaction_status is not TransactionStatus.IDLE:
                    await self.close()

    async def close_unused(self) -> None:
        if time.monotonic() - self._used_at > AGAIN_SECONDS and not self._lock.locked():
            await self.close()

    async def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(Exception):
                await conn.close()


async def connect_like(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
) -> AsyncConnection[TupleRow]:
    """A connection with the settings of *pool* that does not belong to it, in autocommit mode."""
    conninfo, kwargs = await _resolved(pool.conninfo), await _resolved(pool.kwargs)
    conn = await pool.connection_class.connect(conninfo, **{**(kwargs or {}), "autocommit": True})
    configure = getattr(pool, "_configure", None)  # what the pool's owner does to each
    if configure is not None:
        try:
            await configure(conn)
        except BaseException:
            await conn.close()
            raise
    return conn


async def _resolved(value: Any) -> Any:
    """A pool's setting, which may be given as a function, also an asynchronous one."""
    if callable(value):
        value = value()
        if hasattr(value, "__await__"):
            value = await value
    return value
