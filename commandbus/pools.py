"""Connection pools that soon notice a server that is back, and never give out a dead connection.

A server that was restarted, or that ends sessions which are idle for long, leaves a pool full of
connections that are over. Their sockets tell: asking the kernel costs a microsecond, whereas asking
the server would cost each call a round trip.

Connections may end at a pooler, which gives them sessions of the server as it likes. Statements are
prepared in a session, under names that every client counts in the same way. Where a pooler changes
the session between transactions, a name may belong to another client's statement, and the server
would run that one. So nothing is prepared behind a pooler.
"""

from __future__ import annotations

import asyncio
import select
import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import ConnStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from commandbus.checks import check_positive, check_whole
from commandbus.deadlines import ANSWER_SECONDS, answered_within
from commandbus.names import check_storable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

RECONNECT_SECONDS = 0.5
CONFIGURE_SECONDS = 5.0
MAX_CONNECTIONS = 262_143
"""A server has no more."""
# What the server says before it ends a session fits into a few reads.
MOST_READS = 8

# The event loop itself holds tasks only weakly.
_reconnecting: set[asyncio.Task[None]] = set()
_checked_for_pooler: WeakSet[AsyncConnection[Any]] = WeakSet()


class LivePool(AsyncConnectionPool[AsyncConnection[TupleRow]]):
    """A pool that passes over connections which the server has ended, without a pause.

    Each is replaced in the background. A connection that a network has forgotten without a word
    looks alive; only the server could tell.
    """

    async def getconn(  # the name and the argument are those of the pool that it extends
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncConnection[TupleRow]:
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        conn = await super().getconn(seconds)
        for _ in range(self.max_size):
            if not is_lost(conn):
                break
            await self.putconn(conn)
            conn = await super().getconn(max(deadline - time.monotonic(), 0.001))
        return conn


def create_pool(conninfo: str, **options: Any) -> Pool:
    """A pool for *conninfo*, not open, that tries twice a second to reach a server that is away.

    *options* are those of ``psycopg_pool.AsyncConnectionPool``. Its own pauses between attempts
    double up to minutes, for which a worker could miss that the server is back. The pool never
    gives out a connection that the server has ended. Behind a pooler its connections prepare no
    statements.
    Raises ValueError for numbers that make no sense, and what psycopg_pool raises.
    """
    check_storable("conninfo", conninfo)
    for name in options.keys() & {"min_size", "max_size"}:
        if options[name] is not None:
            check_whole(name, options[name], 0, MAX_CONNECTIONS)
    for name in options.keys() & {"timeout", "max_lifetime", "max_idle"}:
        check_positive(name, options[name])
    return LivePool(
        conninfo,
        connection_class=AsyncConnection[TupleRow],
        reconnect_timeout=RECONNECT_SECONDS,
        reconnect_failed=_try_anew,
        open=False,
        **{"configure": _configure, **options},
    )


def live_connection(pool: Pool) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]:
    """``pool.connection()``, which passes over connections that the server has ended.

    So does a pool of ``create_pool``; this is for the pools that somebody else has made.
    """
    return pool.connection() if isinstance(pool, LivePool) else _passing_over_lost(pool)


@asynccontextmanager
async def _passing_over_lost(pool: Pool) -> AsyncIterator[AsyncConnection[TupleRow]]:
    for _ in range(pool.max_size):
        async with pool.connection() as conn:
            if not is_lost(conn):
                yield conn
                return
    async with pool.connection() as conn:
        yield conn


@asynccontextmanager
async def autocommit(pool: Pool, *, within: float = ANSWER_SECONDS) -> AsyncIterator[Connection]:
    """A connection on which each call is a transaction of its own; no round trips for BEGIN.

    Its rows are tuples, whatever the pool's owner has set, and the server has not ended it. Raises
    NoAnswerError when getting it and using it took longer than *within* seconds.
    """
    async with answered_within(within), live_connection(pool) as conn, prepared(conn):
        yield conn


@asynccontextmanager
async def prepared(conn: Connection) -> AsyncIterator[None]:
    """Inside the block *conn* is in autocommit mode and gives tuples, whatever its owner set."""
    before, rows_before, cursors_before = conn.autocommit, conn.row_factory, conn.cursor_factory
    await conn.set_autocommit(True)
    conn.row_factory, conn.cursor_factory = tuple_row, AsyncCursor
    try:
        await mind_pooler(conn)
        yield
    finally:
        conn.row_factory, conn.cursor_factory = rows_before, cursors_before
        if not conn.closed and not before:
            await conn.set_autocommit(False)


def is_lost(conn: AsyncConnection[Any]) -> bool:
    """Whether the server has ended *conn* while nobody used it; asks the kernel, not the server."""
    pgconn = conn.pgconn
    with suppress(psycopg.OperationalError):
        for _ in range(MOST_READS):
            if pgconn.status != ConnStatus.OK:
                return True
            if not _is_readable(pgconn.socket):
                return False
            # A notice, the reason why the session ends, or the end itself.
            pgconn.consume_input()
        return False
    return True


if hasattr(select, "poll"):

    def _is_readable(socket: int) -> bool:
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        return bool(poll.poll(0))

else:  # Windows, where the number of a socket may be of any size here

    def _is_readable(socket: int) -> bool:
        return bool(select.select([socket], [], [], 0)[0])


async def mind_pooler(conn: AsyncConnection[Any]) -> None:
    """Prepare nothing on *conn* if it ends at a pooler; each connection is checked once."""
    if conn in _checked_for_pooler:
        return
    async with conn.cursor(row_factory=tuple_row) as cur:
        await cur.execute("select pg_backend_pid()")
        answer = await cur.fetchone()
    # A pooler has told the client a process id of its own making.
    if answer != (conn.info.backend_pid,):
        conn.prepare_threshold = None
    _checked_for_pooler.add(conn)


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
