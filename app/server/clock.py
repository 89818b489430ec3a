"""What time it is, by the database's clock, since every time on a page is the database's.

This host's own clock may be wrong; it is not used after the database was asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import cast

from flask import Flask, Response, current_app, has_app_context


class DatabaseClock:
    """Goes on from what the database's clock said last."""

    def __init__(self) -> None:
        self._read: tuple[datetime, float] | None = None

    def read(self, ask: Callable[[], datetime]) -> None:
        """Take the time from *ask*, which asks the database."""
        asked_at = time.monotonic()
        answer = ask()
        # The answer is of some moment between the question and its arrival.
        self._read = (answer.astimezone(UTC), (asked_at + time.monotonic()) / 2)

    def now(self) -> datetime:
        """The time in UTC; this host's as long as the database was not asked."""
        if self._read is None:
            return datetime.now(UTC)
        moment, read_at = self._read
        return moment + timedelta(seconds=time.monotonic() - read_at)


def init_app(app: Flask) -> None:
    """Give *app* a clock; browsers learn it from the header `Date` (see times.js)."""
    app.extensions["clock"] = DatabaseClock()
    app.after_request(_set_date)


def now() -> datetime:
    """The current application's time in UTC; without an application, this host's."""
    if not has_app_context():
        return datetime.now(UTC)
    return cast(DatabaseClock, current_app.extensions["clock"]).now()


def _set_date(response: Response) -> Response:
    response.date = now()
    return response
