"""The claim loop: the only place of a worker that takes work or gives it back."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import store
from commandbus.alarm import Alarm
from commandbus.attempt import Attempt
from commandbus.backoff import Backoff
from commandbus.errors import DATABASE_ERRORS, SETUP_ERRORS, one_line
from commandbus.handlers import HandlerRegistry
from commandbus.heartbeat import Heartbeat
from commandbus.known_types import KnownTypes
from commandbus.leases import Leases
from commandbus.models import ClaimedCommand
from commandbus.pools import autocommit
from commandbus.slots import Slots
from commandbus.telling import Telling
from commandbus.transactions import HandlerTransactions
from commandbus.worker_state import WorkerState

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

# How long a worker first waits for its handlers before it runs a suspect alone.
IDLE_SECONDS = 5.0
# How soon an idle worker looks again for a suspect that somebody has locked.
SUSPECT_SECONDS = 1.0
# How long a worker waits that finds something due but cannot claim it: first, and at most.
HELD_SECONDS = 0.05
LONGEST_HELD_SECONDS = 0.5
# How often it looks whether outcomes still wait, while it claims nothing because of them.
BEHIND_SECONDS = 0.05
# How many rejected messages of a claim are logged one by one.
TOLD_REJECTED = 10

Claiming = Callable[[AsyncConnection[TupleRow], int, int], Awaitable[store.Claim]]


class ClaimLoop:
    """Keeps *slots* filled until the worker is asked to stop."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
        state: WorkerState,
        registry: HandlerRegistry,
        *,
        types: KnownTypes,
        slots: Slots,
        leases: Leases,
        transactions: HandlerTransactions,
        heartbeat: Heartbeat,
        alarm: Alarm,
        is_behind: Callable[[], bool],
    ) -> None:
        self._pool = pool
        self._state = state
        self._registry = registry
        self._types = types
        self._slots = slots
        self._leases = leases
        self._transactions = transactions
        self._heartbeat = heartbeat
        self._alarm = alarm
        self._is_behind = is_behind
        self._backoff = Backoff()
        self._telling = Telling()
        self._looking = Telling()
        self._held_seconds = HELD_SECONDS
        self._patience = IDLE_SECONDS
        self._suspects_after = 0.0

    async def run(self) -> None:
        """Claim until the worker is stopped."""
        while not self._state.is_stopping:
            if self._is_behind():
                await self._wait_for_outcomes()
                continue
            if self._seconds_to_suspects() == 0:
                await self._run_suspects()
            self._state.woken.clear()
            await self._leases.give_back(self._slots.take_stale())
            await self._leases.end(self._slots.take_over())
            await self._leases.record_cancelled()
            if self._types.are_paused:
                await self._leases.give_back(self._slots.take_ready_of(self._types.is_paused))
            room = self._slots.room()
            if room < 1:
                await self._pause(self._state.poll_interval)
                continue
            claim = await self._claim_commands(room)
            if claim is None:
                continue
            if claim.commands:
                self._held_seconds = HELD_SECONDS
            read = len(claim.commands) + len(claim.rejected) + claim.left + claim.parked
            # A full set of which some were left or parked: others are behind it.
            passed = claim.left or claim.parked
            if len(claim.commands) < room and not (passed and read >= room):
                await self._pause(await self._idle_seconds(claim))

    async def _wait_for_outcomes(self) -> None:
        """Claim nothing while outcomes wait to be recorded: their leases are held, more would end.

        What is ready goes on, or is given back when it has waited too long.
        """
        logger.warning("claims_wait_for_outcomes", extra=self._state.ids)
        while self._is_behind() and not self._state.is_stopping:
            self._state.woken.clear()
            await self._leases.give_back(self._slots.take_stale())
            await self._pause(BEHIND_SECONDS)
        logger.info("claims_go_on", extra=self._state.ids)

    async def _pause(self, seconds: float) -> None:
        """Wait until something wakes the worker, at most *seconds*."""
        if seconds <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._state.woken.wait()

    async def _claim_commands(self, limit: int) -> store.Claim | None:
        """Claim up to *limit* commands into the slots; None after a fault.

        First those that others have put aside because they have no handler: they came earlier.
        """
        domain, worker_id, types = self._state.domain, self._state.registered_id, self._types

        async def claim(
            conn: AsyncConnection[TupleRow], seconds: int, max_attempts: int
        ) -> store.Claim:
            parked: list[ClaimedCommand] = []
            if to_take := types.to_take():
                parked = await store.claim_parked(
                    conn, domain, worker_id, limit, seconds, max_attempts, to_take
                )
                if not parked:
                    types.none_parked()  # or they are locked: the next look tells
                if len(parked) >= limit:
                    return store.Claim(parked, rejected=[], left=0)
            room, leave = limit - len(parked), types.to_leave()
            found = await store.claim_or_reject(
                conn, domain, worker_id, room, seconds, max_attempts, leave
            )
            return found._replace(commands=parked + found.commands) if parked else found

        return await self._claim(claim)

    async def _claim_suspect(self) -> store.Claim | None:
        """Claim a suspect into the slots, if there is any; None after a fault."""
        domain, worker_id = self._state.domain, self._state.registered_id

        async def claim(
            conn: AsyncConnection[TupleRow], seconds: int, max_attempts: int
        ) -> store.Claim:
            found = await store.claim_suspect(
                conn, domain, worker_id, seconds, max_attempts, self._types.to_leave()
            )
            return store.Claim(found, rejected=[], left=0)

        return await self._claim(claim)

    async def _claim(self, claiming: Claiming) -> store.Claim | None:
        """Put what *claiming* finds into the slots; None after a fault and a pause.

        It is tried once: the leases count from the moment before the call.
        """
        state = self._state
        seconds = state.visibility_timeout
        asked_at = time.monotonic()
        try:
            async with (
                autocommit(self._pool, within=min(state.call_seconds, seconds)) as conn,
                self._leases.doubted_if_broken(conn),
            ):
                await self._leases.give_back_unknown(conn)
                claim = await claiming(conn, seconds, state.retry_policy.max_attempts)
                # Before anything is waited for: a stop in that moment must find them.
                self._slots.add(self._attempts(claim.commands, asked_at, seconds))
                if unknown := self._without_handler(claim.commands):
                    self._types.met((each.command.command_type for each in unknown), state.ids)
                    await self._leases.park(conn, unknown)
                    claim = claim._replace(parked=claim.parked + len(unknown))
        except SETUP_ERRORS:
            raise
        except DATABASE_ERRORS as exc:
            if self._pool.closed:
                raise  # it will not open again
            delay = self._backoff.next_delay()
            if self._telling.is_news(exc):
                logger.warning(
                    "claim_retried",
                    extra={**state.ids, "error": one_line(exc), "delay_seconds": delay},
                )
            await state.back_off(delay)
            return None
        self._backoff.reset()
        self._telling.reset()
        self._tell_rejected(claim.rejected)
        return claim

    def _tell_rejected(self, rejected: list[store.RejectedMessage]) -> None:
        for message in rejected[:TOLD_REJECTED]:
            logger.warning(
                "message_rejected",
                extra={
                    **self._state.ids,
                    "msg_id": message.msg_id,
                    "command_id": message.command_id and str(message.command_id),
                    "reason": message.reason,
                },
            )
        if len(rejected) > TOLD_REJECTED:
            logger.warning(
                "messages_rejected",
                extra={
                    **self._state.ids,
                    "count": len(rejected),
                    "first_msg_id": rejected[0].msg_id,
                    "last_msg_id": rejected[-1].msg_id,
                },
            )

    def _attempts(
        self, claimed: list[ClaimedCommand], asked_at: float, seconds: int
    ) -> list[Attempt]:
        domain, handler_of, renew = self._state.domain, self._registry.get, self._leases.extend
        deadline = asked_at + seconds
        return [
            Attempt(
                command,
                handler,
                deadline=deadline,
                lease_seconds=seconds,
                renew=renew,
                transactions=self._transactions,
                timeout=self._state.handler_timeout,
            )
            for command in claimed
            if (handler := handler_of(domain, command.command.command_type)) is not None
        ]

    def _without_handler(self, claimed: list[ClaimedCommand]) -> list[ClaimedCommand]:
        domain, handler_of = self._state.domain, self._registry.get
        return [each for each in claimed if handler_of(domain, each.command.command_type) is None]

    async def _idle_seconds(self, claim: store.Claim) -> float:
        """How long a worker may sleep after *claim*, unless it is woken; by the alarm, for one."""
        state = self._state
        # Messages of others are looked for by the heartbeat; it may be late only for the leases
        # that just ended here.
        messages = self._slots.running_count == 0 or self._slots.waits_for_leases
        try:
            async with autocommit(self._pool, within=state.call_seconds) as conn:
                due = (await self._heartbeat.look(conn, messages=messages)).due
        except DATABASE_ERRORS as exc:
            if self._looking.is_news(exc):
                logger.warning("look_ahead_failed", extra={**state.ids, "error": one_line(exc)})
            return state.poll_interval
        self._looking.reset()
        seconds = min(state.poll_interval, self._seconds_to_suspects())
        is_due = due is not None and due <= 0
        if is_due and claim.left:
            return 0.0  # what was left is not due for a moment: there are others behind it
        if is_due or self._types.to_take():
            # It was due before the claim, too, or came a moment later; or its message is locked.
            held = self._held_seconds
            self._held_seconds = min(held * 2, LONGEST_HELD_SECONDS)
            return min(seconds, held)
        self._held_seconds = HELD_SECONDS
        if messages:
            self._alarm.looked(due)
        elif due is not None:
            self._alarm.told(due)
        return seconds

    def _seconds_to_suspects(self) -> float:
        """How long until the worker tries to run suspects; for ever where none waits."""
        if not self._heartbeat.suspects_wait:
            self._patience, self._suspects_after = IDLE_SECONDS, 0.0
            return math.inf
        return max(self._suspects_after - time.monotonic(), 0.0)

    async def _run_suspects(self) -> None:
        """Run commands that may kill their worker, each alone, until none waits.

        Where its own handlers take too long for that, or others hold the suspects, it goes on as
        before for as long as it waited, and has twice the patience then, up to a lease.
        """
        patience = min(self._patience, self._state.visibility_timeout)
        idle = not self._slots.running_count
        self._slots.open = False
        await self._leases.give_back(self._slots.take_ready())
        await self.wait_until_idle(
            lambda: self._heartbeat.suspects_wait and not self._state.is_stopping, patience
        )
        failed, ran = False, 0
        while not self._slots.running_count and not self._state.is_stopping:
            claim = await self._claim_suspect()
            failed = claim is None
            if claim is None or not claim.commands or self._state.is_stopping:
                break
            self._slots.start_alone()
            ran += 1
            await self.wait_until_idle(lambda: not self._state.is_stopping)
        if ran and not failed:
            # Those that are parked in a moment are told by the next look ahead, and not waited for.
            self._heartbeat.suspects_wait = False
        elif not failed:
            # One that has nothing to wait for loses nothing by looking again soon.
            pause = min(SUSPECT_SECONDS, patience) if idle else patience
            self._suspects_after = time.monotonic() + pause
            self._patience = patience * 2
        # Nothing is there but what a stop, or a fault after the claim, kept from starting alone.
        await self._leases.give_back(self._slots.take_ready())
        self._slots.open = True

    async def give_back_unstarted(self) -> None:
        """Start nothing more, and give back what never started, or was never heard of."""
        self._slots.open = False
        await self._leases.give_back(self._slots.take_ready())
        await self._leases.settle_doubt()

    async def wait_until_idle(self, still: Callable[[], bool], seconds: float = math.inf) -> None:
        """Wait until no handler runs, while *still* is true, at most *seconds*."""
        deadline = time.monotonic() + seconds
        while self._slots.running_count and still():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._state.woken.clear()
            await self._pause(min(left, self._state.poll_interval))
