"""Every error that the command bus raises, and the SQLSTATEs that turn into them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors as pg

from commandbus.texts import clean_text

if TYPE_CHECKING:
    from uuid import UUID

    from commandbus.models import CommandStatus


# A refused connection has no SQLSTATE, only words. Where the server speaks another language, its
# refusal looks like a fault that may pass.
_REFUSED_FOR_GOOD = re.compile(
    r"password authentication failed|authentication failed for user|no pg_hba\.conf entry"
    r"|pg_hba\.conf rejects|role \".*\" does not exist|is not permitted to log in"
    r"|certificate verify failed|does not support SSL|no password supplied"
)


class CommandBusError(Exception):
    """The root of the tree."""


class InvalidCommandError(CommandBusError, ValueError):
    """A value that the database cannot hold or look for; nothing was sent or changed."""


class InvalidDomainError(CommandBusError, ValueError):
    """The name of a domain does not match ``^[a-z][a-z0-9_]{0,39}$``."""


class UnknownDomainError(CommandBusError, LookupError):
    """The domain was never created; ``await bus.create_domain(name)`` creates it."""


class UnknownReplyQueueError(CommandBusError, LookupError):
    """No PGMQ queue has this name, or it takes the commands of a domain; nothing was sent."""


class DuplicateCommandError(CommandBusError):
    """A command with this id exists in the domain, with other content; nothing was sent."""


class CommandNotFoundError(CommandBusError, LookupError):
    """No command has this id in the domain."""

    def __init__(self, domain: str, command_id: UUID) -> None:
        super().__init__(f'command {command_id} does not exist in domain "{domain}"')
        self.domain = domain
        self.command_id = command_id


class InvalidStateError(CommandBusError):
    """The command is not in the state that the action needs; nothing was changed."""

    def __init__(self, command_id: UUID, current_status: CommandStatus) -> None:
        super().__init__(f"command {command_id} is {current_status}")
        self.command_id = command_id
        self.current_status = current_status


class DomainInUseError(CommandBusError):
    """The domain has open work, or replies that nobody has read; it was not deleted."""


class MissingQueueError(CommandBusError):
    """A table of a domain's queues is not there: somebody dropped or renamed the queue.

    Workers wait until it is back; ``command_bus.find_violations()`` names it.
    """


class TransitionHookError(CommandBusError):
    """The transition hook of a domain has failed, or is not there any more; nothing was changed.

    Workers try again until it is mended or taken away (``bus.set_transition_hook``).
    """


class LeaseLostError(CommandBusError):
    """The attempt is over: its lease ran out and somebody else may hold the command."""


class NoAnswerError(CommandBusError, psycopg.OperationalError):
    """The database did not answer in time; whether it did what it was asked is not known.

    Sending again with the same command id is safe.
    """


class TransactionRolledBackError(CommandBusError):
    """Nothing that was done in the transaction was saved.

    A statement in it had failed, or somebody had ended it, and the program went on nevertheless.
    """


class UnsuitableConnectionError(CommandBusError):
    """The pool's sessions have settings with which commands cannot be read, or others share them.

    With unreadable settings nothing was claimed.
    """


class UnsuitableDatabaseError(CommandBusError):
    """Nothing can work for this role in this database: PGMQ is too old, or rows are hidden.

    Nothing was claimed.
    """


class NotMigratedError(CommandBusError):
    """The database has no command bus, or one older than this library needs."""


class DatabaseSetupError(CommandBusError):
    """The database cannot be set up or reached; the message is one line and holds no password."""

    @property
    def may_pass(self) -> bool:
        """Whether waiting can help: the connection or the server failed, nothing was refused."""
        if not isinstance(self.__cause__, psycopg.OperationalError):
            return False
        return _REFUSED_FOR_GOOD.search(str(self.__cause__)) is None


class MigrationError(DatabaseSetupError):
    """A migration failed, or the database was migrated with other files; see the message."""


class HandlerAlreadyRegisteredError(CommandBusError):
    """Two handlers for one domain and command type."""


class HandlerError(CommandBusError):
    """What a handler raises to say how its command failed.

    *code* is a short constant for machines, *message* a sentence for people, *details* anything
    that JSON can hold. All three are stored, cleaned and bounded, and shown to operators.
    """

    default_code = "ERROR"

    def __init__(
        self, code: str | None = None, message: str = "", details: dict[str, Any] | None = None
    ) -> None:
        self.code = code or self.default_code
        self.message = message
        self.details = details
        # Whatever was given: an error whose making fails would be another error.
        told = clean_text(self.code), clean_text(message)
        super().__init__(": ".join(told) if told[1] else told[0])


class PermanentCommandError(HandlerError):
    """Trying again will not help: the command goes to the troubleshooting queue."""

    default_code = "PERMANENT"


class TransientCommandError(HandlerError):
    """Trying again may help: the command is retried after a backoff while its budget lasts."""

    default_code = "TRANSIENT"


class BusinessRuleError(HandlerError):
    """A business rule says no: the command ends FAILED, which no operator has to look at."""

    default_code = "BUSINESS_RULE"


_BY_SQLSTATE: dict[str, type[CommandBusError]] = {
    "QB001": UnknownDomainError,
    "QB002": InvalidDomainError,
    "QB003": DuplicateCommandError,
    "QB004": UnknownReplyQueueError,
    "QB009": DomainInUseError,
    "QH001": TransitionHookError,
}

# What the server says of values that no command can have: NUL in text, numbers out of range, ...
_INVALID_VALUES = (pg.DataError, pg.CheckViolation, pg.NotNullViolation, pg.ProgramLimitExceeded)

# What the server says when something of the bus is not there.
_MISSING = (pg.InvalidSchemaName, pg.UndefinedTable, pg.UndefinedColumn, pg.UndefinedFunction)

# What the server says when statements that were prepared in one session are looked for in another.
_SHARED_SESSIONS = (pg.InvalidSqlStatementName, pg.DuplicatePreparedStatement)

# Faults of the connection or the server: trying the same call again can help.
INFRASTRUCTURE_ERRORS: tuple[type[Exception], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # psycopg counts these as internal errors: the server ended a transaction that took too
    # long, or it is a standby that has not taken over yet.
    pg.IdleInTransactionSessionTimeout,
    pg.TransactionTimeout,
    pg.ReadOnlySqlTransaction,
    MissingQueueError,
)

# Whatever the database or a pool may answer to a call. A worker tries again, unless SETUP_ERRORS
# end it: a fault (a trigger's, a missing right, a server that is out of memory) can be mended.
DATABASE_ERRORS: tuple[type[Exception], ...] = (psycopg.Error, CommandBusError)

# The server has undone a transaction for the sake of another one; the same one again can succeed.
REFUSED_TRANSACTIONS: tuple[type[Exception], ...] = (pg.SerializationFailure, pg.DeadlockDetected)

# What only another set-up can change: a worker ends with it.
SETUP_ERRORS: tuple[type[Exception], ...] = (
    UnsuitableConnectionError,
    NotMigratedError,
    UnknownDomainError,
)

# The server says by it that a lock, or the end of a statement, was waited for too long.
LOCK_ERRORS: tuple[type[Exception], ...] = (pg.LockNotAvailable, pg.QueryCanceled, NoAnswerError)


def is_about_the_value(error: BaseException) -> bool:
    """Whether the database says of what it was given that it cannot hold it.

    Data exceptions (SQLSTATE class 22) and exceeded limits of the server (54), nothing else.
    """
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:
        return isinstance(cause, psycopg.DataError)  # psycopg itself refused to send it
    return cause.sqlstate[:2] in ("22", "54")


def one_line(error: BaseException | str) -> str:
    """The text of *error* on one line; of a server's error its message, without the SQL."""
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((said or str(error)).split())


def refusal_error(refusal: dict[str, str]) -> CommandBusError:
    """The error that a refusal stands for; SQL answers one where it raises none."""
    if refusal["sqlstate"] == pg.UndefinedTable.sqlstate:
        return _missing_queue(refusal["message"])
    hint = f". {refusal['hint']}" if refusal["hint"] else ""
    return _BY_SQLSTATE[refusal["sqlstate"]](f"{refusal['message']}{hint}")


def _missing_queue(message: str | None) -> MissingQueueError:
    return MissingQueueError(f"{message}: somebody dropped or renamed the queue")


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the server's errors into ours, with the server's own as the cause.

    Errors of infrastructure (``INFRASTRUCTURE_ERRORS``) and of privileges pass unchanged.
    """
    try:
        yield
    except psycopg.Error as exc:
        error = _BY_SQLSTATE.get(exc.sqlstate or "")
        if error is not None:
            hint = f". {exc.diag.message_hint}" if exc.diag.message_hint else ""
            raise error(f"{exc.diag.message_primary}{hint}") from exc
        if isinstance(exc, _MISSING) and "command_bus" in (exc.diag.message_primary or ""):
            raise NotMigratedError(
                f"{exc.diag.message_primary}: apply the migrations to this database"
            ) from exc
        if isinstance(exc, pg.UndefinedTable) and "pgmq." in (exc.diag.message_primary or ""):
            raise _missing_queue(exc.diag.message_primary) from exc
        if isinstance(exc, _SHARED_SESSIONS):
            raise UnsuitableConnectionError(
                f"{exc.diag.message_primary}: a pooler between here and the server seems to share"
                " sessions between transactions; let it share them between connections"
                " (pool_mode = session)"
            ) from exc
        if isinstance(exc, pg.DataError) and exc.diag.message_detail:
            text = f"{exc.diag.message_primary}: {exc.diag.message_detail}"
            raise InvalidCommandError(text) from exc
        if isinstance(exc, _INVALID_VALUES):
            raise InvalidCommandError(exc.diag.message_primary or str(exc)) from exc
        raise
