"""A worker's sign of life, and what it learns in return."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from contextlib import suppress
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import store
from commandbus.alarm import Alarm
from commandbus.backoff import Backoff
from commandbus.errors import (
    DATABASE_ERRORS,
    INFRASTRUCTURE_ERRORS,
    UnsuitableDatabaseError,
    one_line,
)
from commandbus.known_types import KnownTypes
from commandbus.obstacles import find_obstacles
from commandbus.slots import Slots
from commandbus.telling import Telling
from commandbus.version import VERSION
from commandbus.worker_connections import WorkerConnections
from commandbus.worker_state import WorkerState

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
SHOWN_RUNNING = 50


class Heartbeat:
    """Tells the database once a second that the worker lives and what it runs.

    With the same call it learns of a requested stop; then it folds counters, which one worker does
    for all, and looks when the next command is due, so that an idle worker sleeps no longer than
    that, whether commands wait to be run alone, and of which types commands were parked. What no
    running worker has had a handler for long enough it moves to the troubleshooting queue.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        state: WorkerState,
        slots: Slots,
        alarm: Alarm,
        types: KnownTypes,
    ) -> None:
        self._connections = connections
        self._state = state
        self._slots = slots
        self._alarm = alarm
        self._types = types
        self._asked = asyncio.Event()
        self._told_types: list[str] = []
        self._recorded_before = 0
        self._beaten_at = time.monotonic()
        self._telling = Telling()
        self.suspects_wait = False

    async def register(self) -> bool:
        """Get an id for the worker, however long the database is away; False: it was stopped."""
        state, backoff, telling = self._state, Backoff(), Telling()
        while not state.is_stopping:
            try:
                async with self._connections.autocommit(
                    "heartbeat", within=state.call_seconds
                ) as conn:
                    if obstacles := await find_obstacles(conn):
                        raise UnsuitableDatabaseError("; ".join(obstacles))
                    state.identify(await self._registered(conn))
                    return True
            except INFRASTRUCTURE_ERRORS as exc:
                if self._connections.is_closed:
                    raise  # or was never opened
                delay = backoff.next_delay()
                if telling.is_news(exc):
                    logger.warning(
                        "registration_retried",
                        extra={**state.ids, "error": one_line(exc), "delay_seconds": delay},
                    )
                await state.back_off(delay)
        return False

    async def _registered(self, conn: AsyncConnection[TupleRow]) -> int:
        """Register the worker; returns the new id."""
        state = self._state
        self._told_types = self._types.all()
        return await store.register_worker(
            conn,
            {
                "domain": state.domain,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": VERSION,
                "concurrency": state.concurrency,
                "settings": state.settings,
                "heartbeat_seconds": HEARTBEAT_SECONDS,
                "app_version": state.app_version,
                "command_types": self._told_types,
            },
        )

    async def end(self) -> None:
        """Say that the worker stopped; where that fails, the end of its heartbeats says it."""
        state = self._state
        try:
            async with self._connections.autocommit("heartbeat", within=state.call_seconds) as conn:
                await store.worker_stopped(conn, state.registered_id)
        except DATABASE_ERRORS as exc:
            logger.warning("worker_stop_not_recorded", extra={**state.ids, "error": one_line(exc)})

    def look_now(self) -> None:
        """Beat at once: something was paused or resumed."""
        self._asked.set()

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            self._asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._asked.wait()
            try:
                await self._beat()
            except DATABASE_ERRORS as exc:
                if self._telling.is_news(exc):
                    logger.warning(
                        "heartbeat_failed",
                        extra={"worker_id": self._state.worker_id, "error": one_line(exc)},
                    )
            else:
                self._telling.reset()

    async def _beat(self) -> None:
        state = self._state
        async with self._connections.autocommit("heartbeat", within=state.call_seconds) as conn:
            stop = await store.heartbeat(
                conn,
                state.registered_id,
                running=self._running(),
                running_count=self._slots.running_count,
                rate=self._rate(),
                concurrency=state.concurrency,
                settings=state.settings,
            )
            try:
                await store.fold_deltas(conn)
            except DATABASE_ERRORS as exc:
                if conn.closed:
                    raise
                logger.warning("counters_not_folded", extra={**state.ids, "error": one_line(exc)})
            if (types := self._types.all()) != self._told_types:
                await store.set_command_types(conn, state.registered_id, types)
                self._told_types = types
            ahead = await self.look(conn, messages=self._slots.room() > 0)
            self._alarm.looked(ahead.due)
            if ahead.parked_types:
                await self._expire_parked(conn)
            if ahead.cancel_requests:
                await self._see_cancel_requests(conn)
        await self._connections.close_unused()
        if self.suspects_wait or self._types.to_take() or self._types.are_paused:
            state.wake()
        if stop is None:
            await self.register()  # its row was pruned
        elif stop and not state.is_stopping:
            logger.info("worker_stop_requested", extra={"worker_id": state.worker_id})
            state.stop()

    async def look(self, conn: AsyncConnection[TupleRow], *, messages: bool) -> store.LookAhead:
        """Look what waits, and remember it for the claim loop."""
        ahead = await store.look_ahead(
            conn, self._state.domain, messages=messages, leave=self._types.to_leave()
        )
        self.suspects_wait = ahead.suspects
        self._types.saw_parked(ahead.parked_types)
        self._types.saw_pauses(domain=ahead.is_paused, types=ahead.paused_types)
        return ahead

    async def _see_cancel_requests(self, conn: AsyncConnection[TupleRow]) -> None:
        """Tell the handlers that shall end, and cancel what runs no more."""
        state = self._state
        tokens = await store.attempts_to_cancel(conn, state.domain, state.registered_id)
        self._slots.request_cancel(tokens, state.cancel_grace)
        try:
            await store.carry_out_cancels(conn, state.domain)
        except DATABASE_ERRORS as exc:
            if conn.closed:
                raise
            logger.warning("cancel_not_carried_out", extra={**state.ids, "error": one_line(exc)})

    async def _expire_parked(self, conn: AsyncConnection[TupleRow]) -> None:
        """Move what has waited too long for a handler to the troubleshooting queue."""
        state = self._state
        try:
            count = await store.expire_parked(conn, state.domain, state.no_handler_after)
        except DATABASE_ERRORS as exc:
            if conn.closed:
                raise
            logger.warning("parked_not_expired", extra={**state.ids, "error": one_line(exc)})
        else:
            if count:
                logger.warning("no_handler_found", extra={**state.ids, "count": count})

    def _running(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {
                "command_id": str(attempt.claimed.command.command_id),
                "command_type": attempt.claimed.command.command_type,
                "attempt": attempt.claimed.attempt,
                "seconds": round(now - (attempt.started or now), 3),
            }
            for attempt in self._slots.running[:SHOWN_RUNNING]
        ]

    def _rate(self) -> float:
        """Outcomes recorded per second since the last beat."""
        now, recorded = time.monotonic(), self._state.outcomes_recorded
        rate = (recorded - self._recorded_before) / max(now - self._beaten_at, 0.001)
        self._beaten_at, self._recorded_before = now, recorded
        return round(rate, 2)
