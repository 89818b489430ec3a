"""Hearing immediately that there is work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import store
from commandbus.backoff import Backoff
from commandbus.deadlines import ANSWER_SECONDS, answered_within
from commandbus.errors import one_line
from commandbus.telling import Telling
from commandbus.worker_connections import connect_like

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

# A connection that a network has forgotten stays silent for ever, so it is asked now and then.
CHECK_SECONDS = 10.0
# What is due later than this is looked for anyway; nobody's odd notification waits longer.
LONGEST_SECONDS = 60.0
# The payload that asks for a look; earlier releases take it for new work.
LOOK = "look"


async def listen_for_commands(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
    domain: str,
    wake: Callable[[], None],
    due_in: Callable[[float], None],
    look: Callable[[], None],
    *,
    answer_timeout: float = ANSWER_SECONDS,
) -> None:
    """Call *wake*, *due_in* or *look* for each notification, for ever, on a connection of its own.

    It is opened with the pool's settings, but not taken from it, so that a small pool is not made
    smaller. While there is no connection, polling has to do; *wake* is called once it is back.
    """
    backoff, telling = Backoff(limit=1.0), Telling()
    while True:
        try:
            async with answered_within(answer_timeout) as limit, await connect_like(pool) as conn:
                conn.prepare_threshold = None
                await store.listen(conn, domain)
                backoff.reset()
                telling.reset()
                wake()
                while True:
                    limit.pause()
                    async for notification in conn.notifies(timeout=CHECK_SECONDS):
                        _tell(notification.payload, wake, due_in, look)
                    limit.renew()
                    await conn.execute("")
        except psycopg.Error as exc:
            delay = backoff.next_delay()
            if telling.is_news(exc):
                logger.warning(
                    "listener_reconnects",
                    extra={"domain": domain, "error": one_line(exc), "delay_seconds": delay},
                )
            await asyncio.sleep(delay)


def _tell(
    payload: str,
    wake: Callable[[], None],
    due_in: Callable[[float], None],
    look: Callable[[], None],
) -> None:
    """A notification says that there is work, or in how many seconds there will be.

    Or that something has changed that a heartbeat looks at.
    """
    if payload == LOOK:
        look()
        return
    try:
        seconds = float(payload or 0)
    except ValueError:
        seconds = 0.0
    if 0 < seconds < LONGEST_SECONDS:
        due_in(seconds)
    else:
        wake()
