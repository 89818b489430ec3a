"""How often one may fail to sign in within a minute.

A guess holds a place until its result is known, so that many at a time are no more
than the limit. What turns out right gives its place back: only failures count.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
MOST_KEYS = 50_000
"""How many are remembered; beyond that, the oldest window is forgotten."""


class TooManyFailuresError(Exception):
    """No further guess is taken now."""

    def __init__(self, limit: int, seconds: int) -> None:
        super().__init__(f"no more than {limit} in a minute; again in {seconds} s")
        self.limit = limit
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Bound:
    """Whose failures are counted together, and how many of them there may be."""

    key: tuple[str, ...]
    limit: int


@dataclass(slots=True)
class Attempt:
    """A guess that is being tried."""

    failed: bool = True


@dataclass(slots=True)
class _Window:
    ends_at: float
    failures: int = 0
    trying: int = 0


class SignInLimits:
    """The failures of one process, in windows of a minute that begin with the first of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._windows: OrderedDict[tuple[str, ...], _Window] = OrderedDict()

    def count(self, bound: Bound) -> None:
        """Somebody failed. Raises TooManyFailuresError instead where there were enough before."""
        with self.attempt(bound):
            pass

    @contextmanager
    def attempt(self, bound: Bound) -> Iterator[Attempt]:
        """A guess is tried meanwhile; it counts as a failure unless it is said not to be one.

        Waits where the guesses that are being tried might reach the limit. Raises
        TooManyFailuresError where failures have reached it.
        """
        with self._changed:
            while not self._has_room(bound):
                self._changed.wait()
            window = self._window(bound.key)
            window.trying += 1
        attempt = Attempt()
        try:
            yield attempt
        except BaseException:
            attempt.failed = False  # it was never known whether it is right
            raise
        finally:
            with self._changed:
                window.trying -= 1
                window.failures += attempt.failed
                self._changed.notify_all()

    def _has_room(self, bound: Bound) -> bool:
        window = self._window(bound.key)
        if window.failures >= bound.limit:
            raise TooManyFailuresError(
                bound.limit, max(1, round(window.ends_at - time.monotonic() + 0.5))
            )
        return window.failures + window.trying < bound.limit

    def _window(self, key: tuple[str, ...]) -> _Window:
        now = time.monotonic()
        known = self._windows.get(key)
        if known is not None and (now < known.ends_at or known.trying):
            return known
        self._windows[key] = window = _Window(now + WINDOW_SECONDS)
        self._windows.move_to_end(key)
        while len(self._windows) > MOST_KEYS or next(iter(self._windows.values())).ends_at <= now:
            self._windows.popitem(last=False)
        return window
