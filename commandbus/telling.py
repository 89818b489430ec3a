"""Log why something fails once, and again only when the reason changes or time has passed."""

from __future__ import annotations

import time

import psycopg

AGAIN_SECONDS = 60.0


class Telling:
    """What was said last, of one thing that is tried again and again."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._at = 0.0

    def is_news(self, error: Exception) -> bool:
        """Whether to log *error*: it is a new reason, or was last logged a while ago."""
        cause = error if isinstance(error, psycopg.Error) else error.__cause__
        sqlstate = cause.sqlstate if isinstance(cause, psycopg.Error) else None
        reason = sqlstate or f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if reason == self._reason and now - self._at < AGAIN_SECONDS:
            return False
        self._reason, self._at = reason, now
        return True

    def reset(self) -> None:
        """It works again: the next failure is news."""
        self._reason = None
