"""Waiting longer after each fault of the infrastructure."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds that double from 0.05 up to a limit, each shortened by a random part."""

    def __init__(self, limit: float = 0.5) -> None:
        self._limit = limit
        self._delay = 0.05

    def next_delay(self) -> float:
        """How long to wait before trying again."""
        delay = self._delay
        self._delay = min(delay * 2, self._limit)
        return round(delay * (0.5 + random.random() / 2), 4)

    def reset(self) -> None:
        """Start over, after a success."""
        self._delay = 0.05
