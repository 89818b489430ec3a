"""Connection pools that notice soon that a server is back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from commandbus.checks import check_positive, check_whole
from commandbus.limits import answered_within
from commandbus.names import check_storable
from commandbus.poolers import mind_pooler

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

RECONNECT_SECONDS = 0.5
CONFIGURE_SECONDS = 5.0
MAX_CONNECTIONS = 262_143
"""A server has no more."""

# The event loop itself holds tasks only weakly.
_reconnecting: set[asyncio.Task[None]] = set()


def create_pool(conninfo: str, **options: Any) -> Pool:
    """A pool for *conninfo*, not open, that tries twice a second to reach a server that is away.

    *options* are those of ``psycopg_pool.AsyncConnectionPool``, whose own pauses between attempts
    double up to minutes: so long a worker could miss that the server is back. Behind a pooler its
    connections prepare no statements. Raises ValueError for numbers that make no sense, and what
    psycopg_pool raises.
    """
    check_storable("conninfo", conninfo)
    for name in options.keys() & {"min_size", "max_size"}:
        if options[name] is not None:
            check_whole(name, options[name], 0, MAX_CONNECTIONS)
    for name in options.keys() & {"timeout", "max_lifetime", "max_idle"}:
        check_positive(name, options[name])
    return AsyncConnectionPool(
        conninfo,
        connection_class=AsyncConnection[TupleRow],
        reconnect_timeout=RECONNECT_SECONDS,
        reconnect_failed=_try_anew,
        open=False,
        **{"configure": _configure, **options},
    )


async def _configure(conn: AsyncConnection[TupleRow]) -> None:
    try:
        async with answered_within(CONFIGURE_SECONDS):
            await mind_pooler(conn)
            await conn.rollback()  # where it does not commit by itself, a transaction is open
    except BaseException:
        await conn.close()
        raise


async def _try_anew(pool: Pool) -> None:
    """Ask for a connection: where *pool* has given up, only that makes it try again."""
    task = asyncio.create_task(_touch(pool), name=f"reconnect {pool.name}")
    _reconnecting.add(task)
    task.add_done_callback(_reconnecting.discard)


async def _touch(pool: Pool) -> None:
    with suppress(PoolClosed, PoolTimeout):
        await pool.putconn(await pool.getconn(RECONNECT_SECONDS))
