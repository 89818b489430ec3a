"""How long a failed command waits for its next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass

from commandbus.checks import MAX_INTEGER, MAX_SECONDS, check_number, check_whole

__all__ = ["RetryPolicy"]

MAX_DELAY_MS = MAX_SECONDS * 1000
MAX_MULTIPLIER = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff: attempt in, delay out; no I/O.

    A command's own ``max_attempts`` wins over the policy's. Raises ValueError for values that make
    no sense: delays are from 0 to ten years, the multiplier from 1 to 1,000,000,000, the jitter
    from 0 to 1, attempts from 1 to 2,147,483,647.
    """

    max_attempts: int = 3
    base_delay_ms: int = 1000
    max_delay_ms: int = 60_000
    backoff_multiplier: float = 2.0
    jitter: float = 0.1
    """The delay is lengthened by a random part of up to this fraction, so that commands that
    failed together do not come back together."""

    def __post_init__(self) -> None:
        check_whole("max_attempts", self.max_attempts, 1, MAX_INTEGER)
        check_whole("base_delay_ms", self.base_delay_ms, 0, MAX_DELAY_MS)
        check_whole("max_delay_ms", self.max_delay_ms, 0, MAX_DELAY_MS)
        check_number("backoff_multiplier", self.backoff_multiplier, 1, MAX_MULTIPLIER)
        check_number("jitter", self.jitter, 0, 1)

    def delay_ms(self, attempt: int) -> int:
        """The delay after the failed *attempt* (from 1), in milliseconds, without jitter."""
        check_whole("attempt", attempt, 1, MAX_INTEGER)
        if self.base_delay_ms == 0:
            return 0
        try:
            delay = self.base_delay_ms * float(self.backoff_multiplier) ** (attempt - 1)
        except OverflowError:
            return self.max_delay_ms
        return round(min(delay, self.max_delay_ms))

    def jittered_delay_ms(self, attempt: int) -> int:
        """The delay to use after the failed *attempt*, never above ``max_delay_ms``."""
        delay = self.delay_ms(attempt)
        return min(round(delay * (1 + random.random() * self.jitter)), self.max_delay_ms)
