"""Hearing at once that there is work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import store
from commandbus.backoff import Backoff
from commandbus.errors import INFRASTRUCTURE_ERRORS
from commandbus.limits import ANSWER_SECONDS, answered_within
from commandbus.telling import Telling, reason_of

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

# A connection that a network has forgotten stays silent for ever, so it is asked now and then.
CHECK_SECONDS = 10.0


async def listen_for_commands(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
    domain: str,
    wake: Callable[[], None],
    *,
    answer_timeout: float = ANSWER_SECONDS,
) -> None:
    """Call *wake* for each notification, for ever, on a connection of its own.

    It is opened with the pool's settings, but not taken from it, so that a small pool is not made
    smaller. While there is no connection, polling has to do; *wake* is called once it is back.
    """
    backoff, telling = Backoff(limit=1.0), Telling()
    while True:
        try:
            async with answered_within(answer_timeout) as limit, await _connect(pool) as conn:
                await store.listen(conn, domain)
                backoff.reset()
                telling.reset()
                wake()
                while True:
                    limit.pause()
                    async for _ in conn.notifies(timeout=CHECK_SECONDS):
                        wake()
                    limit.renew()
                    await conn.execute("")
        except INFRASTRUCTURE_ERRORS as exc:
            delay = backoff.next_delay()
            if telling.is_news(exc):
                logger.warning(
                    "listener_reconnects",
                    extra={"domain": domain, "error": reason_of(exc), "delay_seconds": delay},
                )
            await asyncio.sleep(delay)


async def _connect(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
) -> AsyncConnection[TupleRow]:
    conninfo, kwargs = await _resolved(pool.conninfo), await _resolved(pool.kwargs)
    own = {"autocommit": True, "prepare_threshold": None}
    return await AsyncConnection.connect(conninfo, **{**(kwargs or {}), **own})


async def _resolved(value: Any) -> Any:
    """A pool's setting, which may be given as a function, also an asynchronous one."""
    if callable(value):
        value = value()
        if hasattr(value, "__await__"):
            value = await value
    return value
