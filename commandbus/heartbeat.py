"""A worker's sign of life, and what it learns in return."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import store
from commandbus.errors import INFRASTRUCTURE_ERRORS
from commandbus.telling import Telling, reason_of
from commandbus.version import VERSION

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from commandbus.worker import Worker

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
SHOWN_RUNNING = 50


class Heartbeat:
    """Tells the database once a second that the worker lives and what it runs.

    With the same call it learns of a requested stop; then it folds counters, which one worker does
    for all, and looks whether commands wait to be run alone.
    """

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], worker: Worker
    ) -> None:
        self._pool = pool
        self._worker = worker
        self._recorded_before = 0
        self._beaten_at = time.monotonic()
        self._telling = Telling()
        self.suspects_wait = False

    async def register(self, conn: AsyncConnection[TupleRow]) -> int:
        """Make the worker known; returns its id."""
        worker = self._worker
        return await store.register_worker(
            conn,
            {
                "domain": worker.domain,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": VERSION,
                "concurrency": worker.concurrency,
                "settings": worker.settings,
                "heartbeat_seconds": HEARTBEAT_SECONDS,
            },
        )

    async def end(self) -> None:
        """Say that the worker stopped; where that fails, the end of its heartbeats says it."""
        worker = self._worker
        try:
            async with store.autocommit(self._pool, within=worker.call_seconds) as conn:
                await store.worker_stopped(conn, worker.registered_id)
        except INFRASTRUCTURE_ERRORS as exc:
            logger.warning(
                "worker_stop_not_recorded", extra={**worker.ids, "error": reason_of(exc)}
            )

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                await self._beat()
            except INFRASTRUCTURE_ERRORS as exc:
                if self._telling.is_news(exc):
                    logger.warning(
                        "heartbeat_failed",
                        extra={"worker_id": self._worker.worker_id, "error": reason_of(exc)},
                    )
            else:
                self._telling.reset()

    async def _beat(self) -> None:
        worker = self._worker
        async with store.autocommit(self._pool, within=worker.call_seconds) as conn:
            stop = await store.heartbeat(
                conn,
                worker.registered_id,
                running=self._running(),
                running_count=worker.running_count,
                rate=self._rate(),
                concurrency=worker.concurrency,
                settings=worker.settings,
            )
            await store.fold_deltas(conn)
            _, self.suspects_wait = await store.look_ahead(conn, worker.domain)
        if self.suspects_wait:
            worker.wake()
        if stop is None:
            await worker.register()  # its row was pruned
        elif stop and not worker.is_stopping:
            logger.info("worker_stop_requested", extra={"worker_id": worker.worker_id})
            worker.stop()

    def _running(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {
                "command_id": str(attempt.claimed.command.command_id),
                "command_type": attempt.claimed.command.command_type,
                "attempt": attempt.claimed.attempt,
                "seconds": round(now - (attempt.started or now), 3),
            }
            for attempt in self._worker.running[:SHOWN_RUNNING]
        ]

    def _rate(self) -> float:
        """Outcomes recorded per second since the last beat."""
        now, recorded = time.monotonic(), self._worker.outcomes_recorded
        rate = (recorded - self._recorded_before) / max(now - self._beaten_at, 0.001)
        self._beaten_at, self._recorded_before = now, recorded
        return round(rate, 2)
