"""How long requests wait for the database: each of them together, and all while it is silent.

A server has few threads, and where nothing answers each request holds one for as long as it waits.
After one wait in vain only some requests go on to ask; the others are refused immediately,
until one is answered. At most ASKING requests ask at a time, fewer than a server has threads:
whatever holds them up, requests that need no database are answered.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from flask import g, has_app_context

from commandbus.errors import NoAnswerError

IN_VAIN = (NoAnswerError, psycopg.errors._WaitTimeout, psycopg.errors.ConnectionTimeout)
"""How a wait ends that nothing has answered."""
LEAST_SECONDS = 0.05
PROBES = 4
"""The most requests that wait for a silent database at the same time."""
ASKING = 8
"""The most requests that ask the database at the same time; the next ones wait for a turn."""
STALLED_SECONDS = 1.0
"""If all of them ask and none was answered for this long, no request waits for a turn."""
WAITING = 4
CROWDED_SECONDS = 0.25
"""Requests behind WAITING others give up their turn after this long: threads stay free."""


class Patience:
    """The waiting of one process; *seconds*: the total time that a request may spend on it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._answered_at = -math.inf
        self._ask_again_at: float | None = None

    def turns_away(self) -> bool:
        """Whether the database is silent and somebody else is asking it."""
        with self._lock:
            now, due = time.monotonic(), self._ask_again_at
            if due is None or now < due:
                return due is not None
            self._ask_again_at = now + self.seconds / PROBES
            return False

    def is_spent(self) -> bool:
        """Whether the current request has waited for as long as it may."""
        return has_app_context() and bool(g.get("database_seconds", 0.0) >= self.seconds)

    def answered(self) -> None:
        """The database is there: everybody may ask."""
        with self._lock:
            self._answered_at = time.monotonic()
            self._ask_again_at = None

    def waited_in_vain(self, began: float) -> None:
        """Somebody has waited since *began*, by the monotonic clock, for an answer that is missing.

        The database is silent then, and somebody should ask again soon; unless it has answered
        since: it is slow or overloaded.
        """
        with self._lock:
            if self._answered_at <= began and self._ask_again_at is None:
                self._ask_again_at = time.monotonic()

    @contextmanager
    def waiting(self, seconds: float | None = None) -> Iterator[float]:
        """Something waits for the database, for at most this many seconds.

        They are what is left of the request's, or *seconds* for what is known to take long, which
        does not count among them. The end tells whether the database is silent: an error that it
        answers is an answer, too.
        """
        began = asking_since = time.monotonic()
        spent = 0.0
        if has_app_context():
            asking_since = g.setdefault("database_asked_at", began)
            spent = g.get("database_seconds", 0.0)
        try:
            yield max(self.seconds - spent, LEAST_SECONDS) if seconds is None else seconds
        except IN_VAIN:
            # What the request asked before may have been answered, and left little time for this.
            self.waited_in_vain(asking_since)
            raise
        except Exception as exc:
            if _is_answer(exc):
                self.answered()
            raise
        else:
            self.answered()
        finally:
            if has_app_context() and seconds is None:
                g.database_seconds = spent + time.monotonic() - began


class Turns:
    """Turns for asking the database: at most *most* at a time."""

    def __init__(self, most: int = ASKING, stalled_seconds: float = STALLED_SECONDS) -> None:
        self._most = most
        self._stalled_seconds = stalled_seconds
        self._left = threading.Condition()
        self._asking = 0
        self._waiting = 0
        self._moved_at = 0.0

    def take(self) -> bool:
        """Have a turn, which `give_back` ends; False where those who have one get no answer."""
        with self._left:
            patience = self._stalled_seconds
            if self._waiting >= WAITING:
                patience = min(patience, CROWDED_SECONDS)
            self._waiting += 1
            try:
                while self._asking >= self._most:
                    seconds = self._moved_at + patience - time.monotonic()
                    if seconds <= 0:
                        return False
                    self._left.wait(seconds)
            finally:
                self._waiting -= 1
            self._asking += 1
            if self._asking == self._most:
                self._moved_at = time.monotonic()
            return True

    def give_back(self) -> None:
        """The turn is over."""
        with self._left:
            self._asking -= 1
            self._moved_at = time.monotonic()
            self._left.notify()


def _is_answer(error: Exception) -> bool:
    """Whether the database has answered; a connection that fails says nothing."""
    return not isinstance(error, psycopg.Error) or error.sqlstate is not None
