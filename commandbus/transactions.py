"""Transactions of handlers: what one writes is committed with its success, or not at all.

They run on connections of a pool of the worker's own, which has one for each handler and is opened
when the first of them runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from commandbus import outcomes, store
from commandbus.backoff import Backoff
from commandbus.deadlines import answered_within
from commandbus.errors import (
    DATABASE_ERRORS,
    DuplicateCommandError,
    MissingQueueError,
    TransitionHookError,
    UnknownDomainError,
    UnknownReplyQueueError,
    is_about_the_value,
    one_line,
)
from commandbus.models import Outcome, Verdict
from commandbus.pools import LivePool, mind_pooler
from commandbus.retry import RetryPolicy
from commandbus.worker_state import WorkerState

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

REFUSED_FOLLOW_UPS = (DuplicateCommandError, UnknownDomainError, UnknownReplyQueueError)
# How long a transaction that met a lock waits before it tries to settle again.
LOCKED_SECONDS = 0.1
# How much of the lease is left, at least, when it gives that up.
MARGIN_SECONDS = 0.2
# The longest pause after a fault, before what it hit is given back.
LONGEST_SECONDS = 5.0
# How many faults in a row may hit one command here and spend no attempt; further ones do, since it
# may be the handler that brings them about.
FREE_FAULTS = 10
# Ends what a handler may leave behind in a session, which another command's handler gets next: as
# DISCARD ALL does, but for prepared statements, which the driver counts on.
RESET = (
    "reset session authorization; reset role; reset all; discard temp; close all; unlisten *;"
    " select pg_advisory_unlock_all()"
)
# Of how many commands faults are counted.
MAX_COUNTED = 10_000


class TransactionFaultError(Exception):
    """The database, not the handler, kept a transaction from its end; it is undone."""


class TransactionLockedError(TransactionFaultError):
    """Somebody held what the end of a transaction needs until the lease was over."""


# Faults that no handler brings about.
NEVER_ITS_OWN = (TransactionLockedError, TransitionHookError, MissingQueueError)


class HandlerTransactions:
    """The transactions of one worker's handlers."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], state: WorkerState
    ) -> None:
        self._like = pool
        self._state = state
        self._pool: LivePool | None = None
        self._opening = asyncio.Lock()
        self._backoff = Backoff(LONGEST_SECONDS)
        self._faults: dict[UUID, int] = {}

    def spends_an_attempt(self, command_id: UUID, fault: Exception) -> bool:
        """Count a fault that hit a command while its handler ran; whether it spends the attempt."""
        if isinstance(fault, NEVER_ITS_OWN) or isinstance(fault.__cause__, NEVER_ITS_OWN):
            return False
        faults = self._faults.pop(command_id, 0) + 1
        if faults > FREE_FAULTS:
            return True
        self._faults[command_id] = faults
        if len(self._faults) > MAX_COUNTED:
            del self._faults[next(iter(self._faults))]
        return False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection outside of any transaction, without what the last one's user has set."""
        pool = await self._opened()
        async with pool.connection(self._state.answer_timeout) as conn:
            await mind_pooler(conn)
            # At a higher level a lease that was renewed meanwhile would refuse every commit.
            await conn.set_isolation_level(IsolationLevel.READ_COMMITTED)
            yield conn

    async def _opened(self) -> LivePool:
        async with self._opening:
            if self._pool is None:
                like = self._like
                # What the pool's owner does to each connection; psycopg_pool tells it to nobody.
                configure = getattr(like, "_configure", None)

                async def reset(conn: AsyncConnection[TupleRow]) -> None:
                    await conn.execute(RESET)
                    if configure is not None:
                        await configure(conn)

                pool = LivePool(
                    like.conninfo,
                    connection_class=like.connection_class,
                    kwargs={**(like.kwargs or {}), "autocommit": True},  # type: ignore[dict-item]
                    configure=configure,
                    reset=reset,
                    min_size=0,
                    max_size=self._state.concurrency,
                    name="handlers",
                    open=False,
                )
                await pool.open()
                self._pool = pool
            if self._pool.max_size < self._state.concurrency:
                await self._pool.resize(0, self._state.concurrency)
            return self._pool

    async def settle(
        self, conn: AsyncConnection[TupleRow], outcome: Outcome, policy: RetryPolicy, until: float
    ) -> Outcome:
        """Record a success in its handler's transaction, waiting for locks until the lease is over.

        Gives the outcome as recorded, if the transaction commits, or else a failure, for which it
        has to be undone. Raises TransactionFaultError for faults of the database.
        """
        match conn.info.transaction_status:
            case TransactionStatus.INERROR:
                return outcomes.undone(outcome, "a statement in its transaction had failed", policy)
            case TransactionStatus.IDLE:
                return outcomes.undone(outcome, "it has ended its transaction itself", policy)
            case TransactionStatus.UNKNOWN:
                raise TransactionFaultError("the connection is lost")
            case _:
                pass
        domain, worker_id = self._state.domain, self._state.registered_id
        text = f"[{outcomes.completed_json(outcome)}]"
        while True:
            try:
                async with answered_within(self._state.answer_timeout), conn.transaction():
                    answers = await store.settle_in_transaction(conn, domain, worker_id, text)
            except REFUSED_FOLLOW_UPS as exc:
                return outcomes.follow_up_refused(outcome, one_line(exc))
            except psycopg.errors.LockNotAvailable as exc:
                locked: Exception | None = exc
            except DATABASE_ERRORS as exc:
                if is_about_the_value(exc):
                    return outcomes.unstorable(outcome, one_line(exc), policy)
                raise TransactionFaultError from exc
            else:
                if not answers:
                    self._backoff.reset()
                    self._faults.pop(outcome.claimed.command.command_id, None)
                    return outcomes.recorded(outcome)
                if answers[0].verdict is not Verdict.LOCKED:
                    return outcomes.lease_lost(outcome, policy)
                locked = None
            if time.monotonic() + LOCKED_SECONDS + MARGIN_SECONDS > until:
                raise TransactionLockedError("locked") from locked
            await asyncio.sleep(LOCKED_SECONDS)

    async def back_off(self, outcome_fields: dict[str, object], error: BaseException) -> None:
        """Wait after a fault, longer each time, before the command is given back."""
        delay = self._backoff.next_delay()
        cause = error.__cause__ or error
        logger.warning(
            "transaction_undone",
            extra={**outcome_fields, "error": one_line(cause), "delay_seconds": delay},
        )
        await self._state.back_off(delay)

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.close()
