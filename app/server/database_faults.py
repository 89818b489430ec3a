"""What a failure of the database means to the caller: a status, a word and a sentence.

Whatever a server can answer is the world's doing and not a fault of this program: its disk, its
memory, somebody's lock, a role's rights, a table that was dropped. What is left, a value or a
statement that the server cannot read, would be ours.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import psycopg
import sqlalchemy.exc

from app.database.errors import DatabaseError
from commandbus.errors import (
    CommandBusError,
    MissingQueueError,
    NoAnswerError,
    NotMigratedError,
    TransitionHookError,
    UnsuitableConnectionError,
    one_line,
)

LONGEST_REASON = 300
REMEMBERED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of failure."""

    code: str
    sentence: str
    headline: str = "The database cannot do this now"
    status: int = 503
    may_pass: bool = True
    """Whether asking again a little later can help."""
    changed_nothing: bool = False
    """Whether it is certain that nothing was changed."""


AWAY: Final = Fault(
    "unavailable", "The database cannot be reached.", headline="The database is away"
)
SILENT: Final = Fault(
    "timeout", "The database did not answer in time.", headline="That took too long", status=504
)
LOCKED: Final = Fault("locked", "Something else holds what this needs.")
READ_ONLY: Final = Fault(
    "read_only",
    "The database takes no changes now: it is read-only. Nothing was changed.",
    changed_nothing=True,
)
CONFLICT: Final = Fault("busy", "Others changed the same at the same moment.")
INCOMPLETE: Final = Fault(
    "incomplete_database",
    "Something that this needs is missing in the database: a table, a column, a function or a"
    " queue. The log names it.",
    may_pass=False,
)
NO_RIGHTS: Final = Fault(
    "no_rights", "The role of the application may not do this in the database.", may_pass=False
)
HOOK: Final = Fault(
    "transition_hook",
    "The domain's transition hook has failed, so nothing was changed. The log says why.",
    may_pass=False,
    changed_nothing=True,
)
UNSUITABLE: Final = Fault(
    "unsuitable_connection",
    "The sessions of the database have settings that the application cannot work with.",
    may_pass=False,
)
BROKEN: Final = Fault("database_fault", "The database reported a fault of its own.")
REFUSED: Final = Fault(
    "database_refused", "The database refused this; the log says why.", may_pass=False
)

_BY_SQLSTATE = {
    "25006": READ_ONLY,
    "40003": AWAY,  # the connection ended, and what became of the statement is not known
    "42501": NO_RIGHTS,
    "42601": None,  # a statement that is no SQL is ours
    "53100": Fault("disk_full", "The database's disk is full."),
    "53200": Fault("out_of_memory", "The database is out of memory."),
    "53300": Fault("too_many_connections", "The database takes no more connections now."),
    "55000": REFUSED,
    "55P03": LOCKED,
    "57014": SILENT,
    "58030": Fault("io_error", "The database could not read or write its disk."),
}
_BY_CLASS = {
    "08": AWAY,
    "0A": Fault("changed_schema", "The database was changed a moment ago."),
    "22": None,  # a value that the server cannot read should have been refused before
    "25": Fault("ended_transaction", "The database ended this because it took too long."),
    "26": UNSUITABLE,
    "28": Fault("login_refused", "The database refused the application's login.", may_pass=False),
    "3D": INCOMPLETE,
    "3F": INCOMPLETE,
    "40": CONFLICT,
    "42": INCOMPLETE,
    "53": Fault("overloaded", "The database has too little of something that this needs."),
    "54": REFUSED,
    "55": LOCKED,
    "57": AWAY,
    "58": BROKEN,
    "F0": BROKEN,
    "XX": BROKEN,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as it is answered, and what the log says of it."""

    fault: Fault
    reason: str
    """What the server or the driver said, in one line and without the statement."""
    sqlstate: str | None = None


def failure_of(error: BaseException) -> Failure | None:
    """What *error* means; None where it is no failure of the database."""
    if isinstance(error, DatabaseError):
        return Failure(AWAY, _reason(error))
    if isinstance(error, NotMigratedError | MissingQueueError):
        return Failure(INCOMPLETE, _reason(error), _sqlstate(error.__cause__))
    if isinstance(error, TransitionHookError):
        return Failure(HOOK, _reason(error), _sqlstate(error.__cause__))
    if isinstance(error, UnsuitableConnectionError):
        return Failure(UNSUITABLE, _reason(error))
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return Failure(AWAY, "no connection became free")
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        return None if error.orig is None else failure_of(error.orig)
    if isinstance(error, sqlalchemy.exc.PendingRollbackError | sqlalchemy.exc.ResourceClosedError):
        return Failure(AWAY, "the connection was lost")
    if isinstance(error, NoAnswerError):
        return Failure(SILENT, _reason(error))
    if isinstance(error, CommandBusError):
        return None  # an answer of the bus
    if isinstance(error, psycopg.Error):
        return _answered(error)
    return None


def _answered(error: psycopg.Error) -> Failure | None:
    sqlstate = _sqlstate(error)
    if sqlstate is None:
        # A connection that was not made, or was lost; anything else is the program's use of it.
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Failure(AWAY, _reason(error)) if lost else None
    fault = _BY_SQLSTATE.get(sqlstate, _BY_CLASS.get(sqlstate[:2], REFUSED))
    if fault is None:
        return None
    return Failure(fault, _reason(error), sqlstate)


def _sqlstate(error: BaseException | None) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def _reason(error: BaseException) -> str:
    return (one_line(error) or type(error).__name__)[:LONGEST_REASON]


@dataclass(frozen=True, slots=True)
class Recent:
    """How often the database failed recently in a process, and how it failed last."""

    count: int
    last: Fault


class FaultMemory:
    """The failures of the last REMEMBERED_SECONDS in this process, for health checks.

    That a disk is full or a role lacks a right shows only when somebody needs it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, Fault]] = deque(maxlen=1000)

    def add(self, fault: Fault) -> None:
        """It happened just now."""
        with self._lock:
            self._seen.append((time.monotonic(), fault))

    def recent(self) -> Recent | None:
        """The recent failures; None if there were none."""
        with self._lock:
            since = time.monotonic() - REMEMBERED_SECONDS
            while self._seen and self._seen[0][0] < since:
                self._seen.popleft()
            return Recent(len(self._seen), self._seen[-1][1]) if self._seen else None
