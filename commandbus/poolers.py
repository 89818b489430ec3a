"""Connections that end at a pooler, which gives them sessions of the server as it likes.

Statements are prepared in a session, under names that every client counts in the same way. Where a
pooler changes the session between transactions, a name may belong to another client's statement,
which the server then runs instead of ours.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

_minded: WeakSet[AsyncConnection[Any]] = WeakSet()


async def mind_pooler(conn: AsyncConnection[Any]) -> None:
    """Prepare nothing on *conn* if it ends at a pooler; asked once for each connection."""
    if conn in _minded:
        return
    async with conn.cursor(row_factory=tuple_row) as cur:
        await cur.execute("select pg_backend_pid()")
        answer = await cur.fetchone()
    # A pooler has told the client a process id of its own making.
    if answer != (conn.info.backend_pid,):
        conn.prepare_threshold = None
    _minded.add(conn)
