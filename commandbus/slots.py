"""What a worker process holds, and which of it runs.

    held = ready (claimed ahead, in order) + running (at most *concurrency*) + not yet recorded

All methods run on the worker's event loop and never wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from commandbus.attempt import Attempt
from commandbus.models import ClaimedCommand, Outcome
from commandbus.retry import RetryPolicy

logger = logging.getLogger(__name__)

# How much work may be claimed ahead, in seconds of this worker's own speed. What is claimed ahead
# is lost to other workers, so slow handlers claim next to nothing in advance.
AHEAD_SECONDS = 0.25
# A command with less than this part of its lease left is given back instead of started.
START_MARGIN = 0.1


class Slots:
    """The attempts of one worker: *on_outcome* gets outcomes, *on_change* wakes the claim loop."""

    def __init__(
        self, *, on_outcome: Callable[[Outcome], None], on_change: Callable[[], None]
    ) -> None:
        self.concurrency = 1
        self.batch_size = 1
        self.retry_policy = RetryPolicy()
        self.open = True
        """Whether attempts may start; closed for ever by a stop, for a while by a suspect."""
        self._on_outcome = on_outcome
        self._on_change = on_change
        self._ready: deque[Attempt] = deque()
        self._running: dict[tuple[str, int], Attempt] = {}
        self._held: dict[tuple[str, int], Attempt] = {}
        self._stale: list[Attempt] = []
        self._mean_run_seconds: float | None = None

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

    def room(self) -> int:
        """How many commands to claim now: what slots can take, and in whole sets a little ahead."""
        if not self.open:
            return 0
        free = self.concurrency - len(self._running)
        ahead = self._ahead()
        if self._ready and len(self._ready) * 2 > ahead:
            return 0
        return min(self.batch_size, free + ahead - len(self._ready))

    def _ahead(self) -> int:
        if self._mean_run_seconds is None:
            return 0
        if self._mean_run_seconds * self.batch_size <= AHEAD_SECONDS * self.concurrency:
            return self.batch_size
        return int(AHEAD_SECONDS * self.concurrency / self._mean_run_seconds)

    def add(self, attempts: list[Attempt]) -> None:
        """Take the attempts of one claim, which share a deadline; those that can start do."""
        if not attempts:
            return
        for attempt in attempts:
            self._held[attempt.token] = attempt
        self._ready.extend(attempts)
        self._watch(attempts, attempts[0].deadline)
        self.start_ready()

    def start_ready(self) -> None:
        """Start what is ready while slots are free."""
        now = time.monotonic()
        while self._ready and self.open and len(self._running) < self.concurrency:
            attempt = self._ready.popleft()
            if attempt.deadline - now < attempt.lease_seconds * START_MARGIN:
                self._stale.append(attempt)
                self._on_change()
            else:
                self.start(attempt)

    def start(self, attempt: Attempt) -> None:
        """Run the handler of an attempt in a task of its own."""
        self._running[attempt.token] = attempt
        attempt.task = asyncio.create_task(self._run(attempt))

    async def _run(self, attempt: Attempt) -> None:
        outcome = await attempt.run(self.retry_policy)
        if self._running.get(attempt.token) is attempt:
            del self._running[attempt.token]
        if outcome is None:
            self._held.pop(attempt.token, None)
        else:
            seconds = outcome.run_us / 1_000_000
            mean = self._mean_run_seconds
            self._mean_run_seconds = seconds if mean is None else mean * 0.9 + seconds * 0.1
            self._on_outcome(outcome)
        if self._ready:
            self.start_ready()
        if len(self._ready) * 2 <= self._ahead():
            self._on_change()

    def recorded(self, outcome: Outcome) -> None:
        """The outcome is in the database: the attempt is not held any more."""
        claimed = outcome.claimed
        self._held.pop((str(claimed.command.command_id), claimed.claim_no), None)

    def take_stale(self) -> list[ClaimedCommand]:
        """What waited here until its lease was nearly over, and has to be given back."""
        stale, self._stale = self._stale, []
        return self._forget(stale)

    def take_ready(self) -> list[ClaimedCommand]:
        """Everything that has not started."""
        ready = [*self._stale, *self._ready]
        self._stale = []
        self._ready.clear()
        return self._forget(ready)

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

    def _watch(self, attempts: list[Attempt], deadline: float) -> None:
        """Look at attempts when their lease ends."""
        asyncio.get_running_loop().call_later(
            max(deadline - time.monotonic(), 0.0), self._on_lease_end, attempts
        )

    def _on_lease_end(self, attempts: list[Attempt]) -> None:
        """Give up attempts whose lease is over; look again later at those that were renewed."""
        now = time.monotonic()
        for attempt in attempts:
            if self._held.get(attempt.token) is not attempt:
                continue
            if attempt.deadline > now:
                self._watch([attempt], attempt.deadline)
            elif self._running.pop(attempt.token, None) is not None:
                logger.warning(
                    "lease_over_handler_cancelled",
                    extra={
                        "command_id": attempt.token[0],
                        "domain": attempt.claimed.command.domain,
                        "command_type": attempt.claimed.command.command_type,
                        "attempt": attempt.claimed.attempt,
                    },
                )
                attempt.abandon()
            elif attempt in self._ready:
                self._ready.remove(attempt)
                del self._held[attempt.token]
        self.start_ready()
        self._on_change()
