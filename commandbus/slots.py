"""What a worker process holds, and which of it runs.

    held = ready (claimed ahead, in order) + running (at most *concurrency*) + not yet recorded

All methods run on the worker's event loop and never wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable

from commandbus.attempt import Attempt
from commandbus.models import ClaimedCommand, Outcome
from commandbus.worker_state import WorkerState

logger = logging.getLogger(__name__)

# How much work may be claimed ahead, in seconds of this worker's own speed. What is claimed ahead
# is lost to other workers, so slow handlers claim next to nothing in advance.
AHEAD_SECONDS = 0.25
# A command with less than this part of its lease left is given back instead of started.
START_MARGIN = 0.1
# What waits here for this part of its lease is given back: something slow holds the slots.
WAIT_PART = 0.5
# How long after its cancellation a handler that has not ended is named in the log.
CANCEL_SECONDS = 1.0
# How often what is held is looked at; the end of a lease is met exactly.
LOOK_SECONDS = 0.1


class Slots:
    """The attempts of one worker; *on_outcome* gets their outcomes."""

    def __init__(self, state: WorkerState, *, on_outcome: Callable[[Outcome], None]) -> None:
        self._state = state
        self.open = True
        """Whether attempts may start; a stop closes it for good, a suspect for a while."""
        self._on_outcome = on_outcome
        self._on_change = state.woken.set
        self._ready: deque[Attempt] = deque()
        self._running: dict[tuple[int, int], Attempt] = {}
        self._held: dict[tuple[int, int], Attempt] = {}
        self._given_up: dict[tuple[int, int], float] = {}
        self._stale: list[Attempt] = []
        self._over: list[Attempt] = []
        self._cancelled: list[ClaimedCommand] = []
        self._mean_run_seconds: float | None = None
        self._look_planned = False
        self._context = contextvars.copy_context()

    @property
    def unrecorded(self) -> list[Attempt]:
        """The attempts that have ended and whose outcomes are not in the database yet."""
        return [attempt for attempt in self._held.values() if attempt.ended]

    @property
    def waits_for_leases(self) -> bool:
        """Whether attempts were given up whose leases may not be over in the database yet."""
        now = time.monotonic()
        return any(until > now for until in self._given_up.values()) or any(
            attempt.abandoned for attempt in self._held.values()
        )

    @property
    def running(self) -> list[Attempt]:
        """The attempts whose handlers run, the oldest first."""
        return list(self._running.values())

    @property
    def running_count(self) -> int:
        """How many handlers run."""
        return len(self._running)

    @property
    def held(self) -> list[ClaimedCommand]:
        """Everything claimed whose outcome is not recorded."""
        return [attempt.claimed for attempt in self._held.values()]

    def held_tokens(self) -> set[tuple[int, int]]:
        """The tokens of what is held, and of what was given up but may still count as held."""
        return {*self._held, *self._given_up}

    @property
    def _may_start(self) -> bool:
        return self.open and not self._state.is_stopping

    def room(self) -> int:
        """How many commands to claim now: for free slots, and in whole sets a little ahead."""
        if not self._may_start:
            return 0
        free = self._state.concurrency - len(self._running)
        ahead = self._ahead()
        if self._ready and len(self._ready) * 2 > ahead:
            return 0
        return min(self._state.batch_size, free + ahead - len(self._ready))

    def _ahead(self) -> int:
        if self._mean_run_seconds is None:
            return 0
        concurrency, batch_size = self._state.concurrency, self._state.batch_size
        if self._mean_run_seconds * batch_size <= AHEAD_SECONDS * concurrency:
            return batch_size
        return int(AHEAD_SECONDS * concurrency / self._mean_run_seconds)

    def add(self, attempts: list[Attempt]) -> None:
        """Take the attempts of a claim; those that can start do."""
        if not attempts:
            return
        self._context = contextvars.copy_context()
        for attempt in attempts:
            self._held[attempt.token] = attempt
        self._ready.extend(attempts)
        if not self._look_planned:
            self._plan_look(LOOK_SECONDS)
        self.start_ready()

    def start_ready(self) -> None:
        """Start what is ready while slots are free."""
        while self._ready and self._may_start and len(self._running) < self._state.concurrency:
            attempt = self._ready.popleft()
            if self._is_stale(attempt):
                self._put_aside(attempt)
            else:
                self.start(attempt)

    def start_alone(self) -> None:
        """Start what is ready, and close again."""
        self.open = True
        self.start_ready()
        self.open = False

    @staticmethod
    def _is_stale(attempt: Attempt) -> bool:
        """Whether too little is left of the lease for its handler to start."""
        return attempt.deadline - time.monotonic() < attempt.lease_seconds * START_MARGIN

    def _put_aside(self, attempt: Attempt) -> None:
        """Let the claim loop give it back."""
        self._stale.append(attempt)
        self._on_change()

    def start(self, attempt: Attempt) -> None:
        """Run the handler of an attempt in a task of its own.

        The end of another attempt may be what calls this: without a context given, what that
        handler left in context variables (a tenant, a trace) would be there for this one.
        """
        self._running[attempt.token] = attempt
        attempt.task = asyncio.create_task(self._run(attempt), context=self._context.copy())

    async def _run(self, attempt: Attempt) -> None:
        if self._is_stale(attempt):
            # Another handler has kept the event loop from going on since this was to start.
            self._running.pop(attempt.token, None)
            self._put_aside(attempt)
            return
        outcome = None
        try:
            outcome = await attempt.run(self._state.retry_policy)
        finally:
            # Whatever happens, the slot is free, and no lease of what has no outcome is renewed.
            if self._running.get(attempt.token) is attempt:
                del self._running[attempt.token]
            if attempt.gives_back:
                self._put_aside(attempt)
            elif attempt.was_cancelled:
                self._forget_given_up(attempt)
                self.put_cancelled([attempt.claimed])
            elif outcome is None:
                self._forget_given_up(attempt)
        if outcome is not None:
            attempt.ended = True
            seconds = outcome.run_us / 1_000_000
            mean = self._mean_run_seconds
            self._mean_run_seconds = seconds if mean is None else mean * 0.9 + seconds * 0.1
            self._on_outcome(outcome)
        if self._ready:
            self.start_ready()
        if len(self._ready) * 2 <= self._ahead():
            self._on_change()

    def _forget_given_up(self, attempt: Attempt) -> None:
        """Drop the attempt but remember its token for one more lease.

        In the database its lease may not be over yet.
        """
        self._held.pop(attempt.token, None)
        now = time.monotonic()
        self._given_up = {token: until for token, until in self._given_up.items() if until > now}
        self._given_up[attempt.token] = now + attempt.lease_seconds
        if attempt.abandoned and attempt.deadline <= now and not self._state.is_stopping:
            self._over.append(attempt)

    def recorded(self, outcome: Outcome) -> None:
        """The outcome is in the database: the attempt is not held any more."""
        self._held.pop(outcome.claimed.token, None)

    def take_stale(self) -> list[ClaimedCommand]:
        """What waited here until its lease was nearly over, and has to be given back."""
        stale, self._stale = self._stale, []
        return self._forget(stale)

    def take_over(self) -> list[ClaimedCommand]:
        """What outlasted its lease and has come to an end since."""
        over, self._over = self._over, []
        return [attempt.claimed for attempt in over]

    def request_cancel(self, tokens: set[tuple[int, int]], grace: float) -> None:
        """An operator asks to cancel these attempts: those that run get *grace* seconds."""
        ready = [each for each in self._ready if each.token in tokens]
        if ready:
            self._ready = deque(each for each in self._ready if each.token not in tokens)
            self.put_cancelled(self._forget(ready))
        for token in tokens & self._running.keys():
            attempt = self._running[token]
            if not attempt.cancel_requested:
                attempt.cancel_requested = True
                asyncio.get_running_loop().call_later(grace, attempt.cancel)

    def put_cancelled(self, cancelled: list[ClaimedCommand]) -> None:
        """Let the claim loop record that these were cancelled."""
        self._cancelled += cancelled
        self._on_change()

    def take_cancelled(self) -> list[ClaimedCommand]:
        """What was cancelled, as an operator asked for, and is still to be recorded."""
        cancelled, self._cancelled = self._cancelled, []
        return cancelled

    def take_ready(self) -> list[ClaimedCommand]:
        """Everything that has not started."""
        ready = [*self._stale, *self._ready]
        self._stale = []
        self._ready.clear()
        return self._forget(ready)

    def take_ready_of(self, chosen: Callable[[str], bool]) -> list[ClaimedCommand]:
        """What has not started of the types that are *chosen*."""
        taken = [each for each in self._ready if chosen(each.claimed.command.command_type)]
        if not taken:
            return []
        tokens = {attempt.token for attempt in taken}
        self._ready = deque(each for each in self._ready if each.token not in tokens)
        return self._forget(taken)

    def _forget(self, attempts: Iterable[Attempt]) -> list[ClaimedCommand]:
        forgotten = list(attempts)
        for attempt in forgotten:
            self._held.pop(attempt.token, None)
        return [attempt.claimed for attempt in forgotten]

    def abandon_running(self) -> int:
        """Cancel every handler; their commands come back when the leases end."""
        attempts = self.running
        self._running.clear()
        for attempt in attempts:
            attempt.abandon()
        return len(attempts)

    def _plan_look(self, seconds: float) -> None:
        self._look_planned = True
        asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Give back what has waited too long, give up what outlasts its lease, and look again.

        There is one timer for all, and it knows no attempts: what has ended is not kept for it.
        """
        self._look_planned = False
        now = time.monotonic()
        self._put_aside_waiting(now)
        next_end = self._give_up_overdue(now)
        if self._ready or self._running:
            self._plan_look(min(LOOK_SECONDS, next_end - now))

    def _put_aside_waiting(self, now: float) -> None:
        """Give back, at no cost in attempts, what something slow keeps from starting."""
        waited = [
            attempt
            for attempt in self._ready
            if attempt.deadline - now < attempt.lease_seconds * WAIT_PART
        ]
        if not waited:
            return
        tokens = {attempt.token for attempt in waited}
        self._ready = deque(each for each in self._ready if each.token not in tokens)
        # Else the same ones would be claimed ahead again.
        self._mean_run_seconds = waited[0].lease_seconds * WAIT_PART
        for attempt in waited:
            self._put_aside(attempt)

    def _give_up_overdue(self, now: float) -> float:
        """Give up attempts whose lease is over; when the next of those that run is."""
        overdue, next_end = [], math.inf
        for attempt in self._running.values():
            if attempt.deadline > now:
                next_end = min(next_end, attempt.deadline)
            else:
                overdue.append(attempt)
        if not overdue:
            return next_end
        for attempt in overdue:
            del self._running[attempt.token]
            asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._look_at_cancelled, attempt)
            logger.warning("lease_over_handler_cancelled", extra=attempt.claimed.log_fields)
            attempt.abandon()
        self.start_ready()
        self._on_change()
        return next_end

    @staticmethod
    def _look_at_cancelled(attempt: Attempt) -> None:
        if attempt.task is not None and not attempt.task.done():
            logger.error("handler_ignores_cancellation", extra=attempt.claimed.log_fields)
