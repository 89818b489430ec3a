"""Waking at the time when something is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Alarm:
    """Calls *ring* when the earliest is due of what it was told.

    A look at the database knows of everything, so each replaces the one before: a lease that was
    renewed meanwhile wakes nobody. What is told beside them (a retry that was just recorded, a
    notification) may be younger than a look under way, and stays until its time.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._looked: float | None = None
        self._told: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def looked(self, seconds: float | None) -> None:
        """A look found that the next is due in *seconds*; None: nothing is."""
        self._looked = None if seconds is None else time.monotonic() + max(seconds, 0.0)
        self._set()

    def told(self, seconds: float) -> None:
        """Something is due in *seconds*."""
        at = time.monotonic() + max(seconds, 0.0)
        self._told = at if self._told is None else min(self._told, at)
        self._set()

    def off(self) -> None:
        """Ring no more."""
        self._looked = self._told = None
        self._set()

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        times = [at for at in (self._looked, self._told) if at is not None]
        self._timer = None
        if times:
            seconds = max(min(times) - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._go_off)

    def _go_off(self) -> None:
        # A timer may be a little early; what is due by then rings now.
        now = time.monotonic() + 0.001
        self._looked = None if self._looked is None or self._looked <= now else self._looked
        self._told = None if self._told is None or self._told <= now else self._told
        self._set()
        self._ring()
