"""How long requests wait for the database: each of them together, and all while it is silent.

A server has few threads, and where nothing answers each request holds one for as long as it waits.
So once a wait was in vain, only some requests go on to ask; the others are turned away at once,
until one was answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flask import g, has_app_context

LEAST_SECONDS = 0.05
PROBES = 4
"""So many requests, at most, wait for a silent database at once."""


class Patience:
    """The waiting of one process; *seconds*: what a request may spend with it, all in all."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._ask_again_at: float | None = None

    def turns_away(self) -> bool:
        """Whether the database is silent and somebody else is asking it."""
        with self._lock:
            now, due = time.monotonic(), self._ask_again_at
            if due is None or now < due:
                return due is not None
            self._ask_again_at = now + self.seconds / PROBES
            return False

    def waited_in_vain(self) -> None:
        """The database is silent; somebody should ask again soon."""
        with self._lock:
            if self._ask_again_at is None:
                self._ask_again_at = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[float]:
        """Something waits for the database, for at most so many seconds; an end is an answer."""
        spent = g.get("database_seconds", 0.0) if has_app_context() else 0.0
        began = time.monotonic()
        try:
            yield max(self.seconds - spent, LEAST_SECONDS)
        finally:
            if has_app_context():
                g.database_seconds = spent + time.monotonic() - began
        self._ask_again_at = None
