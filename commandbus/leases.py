"""Keeping leases while handlers run, and giving them back unused."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import store
from commandbus.attempt import Attempt
from commandbus.errors import INFRASTRUCTURE_ERRORS
from commandbus.models import ClaimedCommand

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from commandbus.worker import Worker

logger = logging.getLogger(__name__)

# How long after a broken call its effects may still appear.
DOUBT_SECONDS = 2.0


class Leases:
    """The leases of one worker's attempts, in the database."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], worker: Worker
    ) -> None:
        self._pool = pool
        self._worker = worker
        self._doubted_at: float | None = None

    def doubt(self) -> None:
        """The database may count commands as this worker's that the worker never heard of."""
        self._doubted_at = time.monotonic()

    async def extend(self, attempt: Attempt, seconds: int) -> bool:
        """Make one lease end *seconds* from now; False: the attempt is over."""
        return await self._renew([attempt], seconds) == 1

    async def _renew(self, attempts: list[Attempt], seconds: int) -> int:
        worker = self._worker
        asked_at = time.monotonic()
        async with store.autocommit(self._pool) as conn:
            held = await store.renew_leases(
                conn,
                worker.domain,
                worker.registered_id,
                [attempt.claimed for attempt in attempts],
                seconds,
            )
        for attempt in attempts:
            claimed = attempt.claimed
            if (claimed.command.command_id, claimed.claim_no) in held:
                attempt.deadline = asked_at + seconds
        return len(held)

    async def keep(self) -> None:
        """Renew the leases of handlers that asked for it, three times within each, for ever."""
        worker = self._worker
        while True:
            await asyncio.sleep(worker.visibility_timeout / 3)
            attempts = [attempt for attempt in worker.running if attempt.auto_renew]
            if not attempts:
                continue
            try:
                await self._renew(attempts, worker.visibility_timeout)
            except INFRASTRUCTURE_ERRORS as exc:
                logger.warning(
                    "renewal_failed",
                    extra={**worker.ids, "count": len(attempts), "error": str(exc).strip()},
                )

    async def give_back(self, claimed: list[ClaimedCommand]) -> None:
        """Release commands that never started; where that fails, their leases do it later."""
        if not claimed:
            return
        worker = self._worker
        try:
            async with store.autocommit(self._pool) as conn:
                count = await store.release_commands(
                    conn, worker.domain, worker.registered_id, claimed
                )
        except INFRASTRUCTURE_ERRORS as exc:
            self.doubt()
            logger.warning(
                "release_failed",
                extra={**worker.ids, "count": len(claimed), "error": str(exc).strip()},
            )
        else:
            logger.info("commands_released", extra={**worker.ids, "count": count})

    async def give_back_unknown(
        self, conn: AsyncConnection[TupleRow], held: list[ClaimedCommand]
    ) -> None:
        """Release what a claim gave this worker whose answer was lost with the connection.

        Nothing is done when there is no doubt.
        """
        if self._doubted_at is None:
            return
        worker = self._worker
        released = await store.release_commands(
            conn, worker.domain, worker.registered_id, held, all_but=True
        )
        # The server may still be at work on what it was asked before the connection broke.
        if time.monotonic() - self._doubted_at > DOUBT_SECONDS:
            self._doubted_at = None
        if released:
            logger.info("lost_claim_released", extra={**worker.ids, "count": released})
