"""Waiting, within a bound, for a database that is away or starting up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from app.database.errors import DatabaseError
from app.database.opening import Database, open_database
from app.settings.configuration import Settings

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 5.0
_LOOK_SECONDS = 0.1


def _say_nothing(_: str) -> None:
    """For callers that need no word on the way."""


def wait_for_database(
    settings: Settings,
    seconds: float,
    *,
    on_away: Callable[[DatabaseError, float], None],
    on_step: Callable[[str], None] = _say_nothing,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Database:
    """The database, migrated; while it is away, try again for up to *seconds*.

    *on_away* hears why, and after how many seconds it is tried again. Raises DatabaseError with the
    last reason, immediately if waiting does not help, and KeyboardInterrupt once *is_stopped*.
    """
    deadline = time.monotonic() + seconds
    delay = FIRST_RETRY_SECONDS
    while True:
        try:
            return open_database(settings, on_step=on_step)
        except DatabaseError as exc:
            left = deadline - time.monotonic()
            if not exc.may_pass or left <= 0:
                raise
            pause = min(delay, left)
            on_away(exc, pause)
        _sleep(pause, is_stopped)
        delay = min(delay * 2, LONGEST_RETRY_SECONDS)


def open_patiently(
    settings: Settings,
    *,
    on_step: Callable[[str], None] = _say_nothing,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Database:
    """The database for a program of the command line, migrated.

    A server of DATABASE_URL is waited for as long as DATABASE_WAIT says, with one line on standard
    error; the embedded one is started here, which has bounds of its own. Raises as
    `wait_for_database` does.
    """
    told = False

    def tell(error: DatabaseError, _: float) -> None:
        nonlocal told
        if not told:
            told = True
            sys.stderr.write(
                f"Waiting for the database, for {settings.database_wait} s at most: {error}\n"
            )
            sys.stderr.flush()

    seconds = 0 if settings.database_url is None else settings.database_wait
    return wait_for_database(
        settings, seconds, on_away=tell, on_step=on_step, is_stopped=is_stopped
    )


def _sleep(seconds: float, is_stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if is_stopped():
            raise KeyboardInterrupt
        time.sleep(min(left, _LOOK_SECONDS))
