"""Keeping leases while handlers run, and giving them back unused."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import store
from commandbus.attempt import Attempt
from commandbus.backoff import Backoff
from commandbus.errors import DATABASE_ERRORS, LOCK_ERRORS, one_line
from commandbus.models import ClaimedCommand, first_ids
from commandbus.slots import Slots
from commandbus.worker_connections import WorkerConnections
from commandbus.worker_state import WorkerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = logging.getLogger(__name__)

# How often it is tried to end leases that somebody else has locked, and after what pause.
END_ATTEMPTS = 3
END_SECONDS = 0.02
# How long after a broken call its effects may still appear, where its session cannot be seen.
DOUBT_SECONDS = 2.0
# A renewal is given up in time for another one, but not before this.
SHORTEST_SECONDS = 0.5
# How often leases are looked at, which a change of their length does not wait for; and the part of
# one that is left when it is renewed.
LOOK_SECONDS = 0.25
RENEW_PART = 2 / 3


class Leases:
    """The leases of one worker's attempts, in the database."""

    def __init__(self, connections: WorkerConnections, state: WorkerState, slots: Slots) -> None:
        self._connections = connections
        self._state = state
        self._slots = slots
        self._doubted_at: float | None = None
        self._doubted_sessions: set[int] = set()

    @asynccontextmanager
    async def doubted_if_broken(self, conn: AsyncConnection[TupleRow]) -> AsyncIterator[None]:
        """If the block fails, look for the effects of its calls on *conn* later.

        The database may have given this worker commands that the worker never heard of.
        """
        session = conn.info.backend_pid
        try:
            yield
        except BaseException:
            self._doubted_at = time.monotonic()
            if conn.closed:
                self._doubted_sessions.add(session)
            raise

    async def extend(self, attempt: Attempt, seconds: int) -> bool:
        """Make one lease end *seconds* from now; False: the attempt is over.

        A fault of the database is not the handler's: it is waited out while the lease lasts.
        """
        backoff = Backoff()
        while True:
            try:
                return await self._renew([attempt], seconds) == 1
            except DATABASE_ERRORS as exc:
                delay = backoff.next_delay()
                logger.warning(
                    "renewal_failed",
                    extra={
                        **self._state.ids,
                        **attempt.claimed.log_fields,
                        "error": one_line(exc),
                        "delay_seconds": delay,
                    },
                )
            if time.monotonic() + delay >= attempt.deadline:
                return False
            await asyncio.sleep(delay)

    async def _renew(self, attempts: list[Attempt], seconds: int) -> int:
        state = self._state
        asked_at = time.monotonic()
        within = min(state.call_seconds, max(seconds / 4, SHORTEST_SECONDS))
        async with self._connections.autocommit("leases", within=within) as conn:
            held = await store.renew_leases(
                conn,
                state.domain,
                state.registered_id,
                store.tokens_of(attempt.claimed for attempt in attempts),
                seconds,
            )
        for attempt in attempts:
            claimed = attempt.claimed
            if (claimed.command.command_id, claimed.claim_no) in held:
                attempt.deadline, attempt.lease_seconds = asked_at + seconds, seconds
        return len(held)

    async def keep(self) -> None:
        """Renew leases three times within each, for ever.

        Those of handlers that asked for it, and of what has ended and is not recorded yet: a
        handler that has run must not run again because something keeps its outcome waiting.
        """
        state = self._state
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now, seconds = time.monotonic(), state.visibility_timeout
            # Never made shorter: the handler may have asked for more, or the option have changed.
            attempts = [
                attempt
                for attempt in (*self._slots.running, *self._slots.unrecorded)
                if (attempt.auto_renew or attempt.ended) and attempt.deadline < now + seconds
            ]
            # All of them as soon as one needs it, so that one call does for many.
            if not any(each.deadline - now < each.lease_seconds * RENEW_PART for each in attempts):
                continue
            try:
                await self._renew(attempts, seconds)
            except DATABASE_ERRORS as exc:
                logger.warning(
                    "renewal_failed",
                    extra={**state.ids, "count": len(attempts), "error": one_line(exc)},
                )

    async def give_back(self, claimed: list[ClaimedCommand]) -> None:
        """Release commands that never started; where that fails, their leases do it later."""
        if not claimed:
            return
        state = self._state
        try:
            async with (
                self._connections.autocommit("leases", within=state.call_seconds) as conn,
                self.doubted_if_broken(conn),
            ):
                count = await store.release_commands(
                    conn, state.domain, state.registered_id, store.tokens_of(claimed)
                )
        except DATABASE_ERRORS as exc:
            logger.warning(
                "release_failed",
                extra={
                    **state.ids,
                    "count": len(claimed),
                    "command_ids": first_ids(claimed),
                    "error": one_line(exc),
                },
            )
        else:
            if count < len(claimed):
                # Somebody has locked the others, or they are not this worker's any more.
                self._doubted_at = time.monotonic()
            logger.info("commands_released", extra={**state.ids, "count": count})

    async def park(self, conn: AsyncConnection[TupleRow], claimed: list[ClaimedCommand]) -> None:
        """Put claimed commands without a handler aside for a worker that has one.

        To be called where a fault leaves doubt: they are given back then.
        """
        state = self._state
        count = await store.park_unhandled(
            conn, state.domain, state.registered_id, store.tokens_of(claimed)
        )
        if count < len(claimed):
            self._doubted_at = time.monotonic()  # somebody has locked the others
        logger.info(
            "commands_parked",
            extra={**state.ids, "count": count, "command_ids": first_ids(claimed)},
        )

    async def record_cancelled(self) -> None:
        """Record what was cancelled as an operator asked for; where that fails, later."""
        claimed = self._slots.take_cancelled()
        if not claimed:
            return
        state = self._state
        try:
            async with self._connections.autocommit("leases", within=state.call_seconds) as conn:
                count = await store.settle_cancelled(
                    conn, state.domain, state.registered_id, store.tokens_of(claimed)
                )
        except DATABASE_ERRORS as exc:
            logger.warning(
                "cancel_not_recorded",
                extra={
                    **state.ids,
                    "count": len(claimed),
                    "command_ids": first_ids(claimed),
                    "error": one_line(exc),
                },
            )
            await asyncio.sleep(END_SECONDS)
            self._slots.put_cancelled(claimed)
        else:
            logger.info(
                "commands_cancelled",
                extra={**state.ids, "count": count, "command_ids": first_ids(claimed)},
            )

    async def end(self, claimed: list[ClaimedCommand]) -> None:
        """Let the next attempts begin of commands whose handlers were cancelled at the lease's end.

        Where it fails they begin a heartbeat later: nobody knows until then that this worker lives,
        and that the command has not killed it.
        """
        if not claimed:
            return
        state = self._state
        tokens = list(store.tokens_of(claimed))
        error: Exception | None = None
        for _ in range(END_ATTEMPTS):
            try:
                async with self._connections.autocommit(
                    "leases", within=state.call_seconds
                ) as conn:
                    ended = await store.end_leases(conn, state.domain, state.registered_id, tokens)
                if ended == len(tokens):
                    return
            except LOCK_ERRORS as exc:
                error = exc
            except DATABASE_ERRORS as exc:
                error = exc
                break
            # Another worker is just looking at them, since their leases are over.
            await asyncio.sleep(END_SECONDS)
        if error is not None:
            logger.warning(
                "leases_not_ended",
                extra={
                    **state.ids,
                    "count": len(claimed),
                    "command_ids": first_ids(claimed),
                    "error": one_line(error),
                },
            )

    async def settle_doubt(self) -> None:
        """`give_back_unknown` on a connection of its own; where that fails, leases do it later."""
        if self._doubted_at is None:
            return
        state = self._state
        try:
            async with self._connections.autocommit("leases", within=state.call_seconds) as conn:
                await self.give_back_unknown(conn)
        except DATABASE_ERRORS as exc:
            logger.warning("release_failed", extra={**state.ids, "error": one_line(exc)})

    async def give_back_unknown(self, conn: AsyncConnection[TupleRow]) -> None:
        """Release what this worker claimed without getting the answer: the connection broke.

        Does nothing when there is no doubt. The server may still work on the lost call, much later
        if its process was stopped. So there is doubt until that session, which is ended here, is
        gone.
        """
        if self._doubted_at is None:
            return
        state = self._state
        quiet = time.monotonic() - self._doubted_at > DOUBT_SECONDS
        left = await store.end_sessions(conn, self._doubted_sessions)
        known = self._slots.held_tokens()
        found = await store.claimed_by_worker(conn, state.domain, state.registered_id)
        unknown = [token for token in found if (token.msg_id, token.claim_no) not in known]
        released = 0
        if unknown:
            # Each is named, so that a release that comes late itself hits nothing claimed since.
            released = await store.release_commands(
                conn, state.domain, state.registered_id, unknown
            )
        self._doubted_sessions = left
        if quiet and not left and released == len(unknown):
            self._doubted_at = None
        if released:
            logger.info("lost_claim_released", extra={**state.ids, "count": released})
