"""What can go wrong between a setting and a migrated database, each told in one line."""

from __future__ import annotations

import re

import psycopg

# A refused connection has no SQLSTATE, only words. A server with messages in another language is
# waited for, though it will refuse again.
_REFUSED_FOR_GOOD = re.compile(
    r"password authentication failed|authentication failed for user|no pg_hba\.conf entry"
    r"|pg_hba\.conf rejects|role \".*\" does not exist|is not permitted to log in"
    r"|certificate verify failed|does not support SSL|no password supplied"
)


class DatabaseError(Exception):
    """The database cannot be used; the message is one line for the user and holds no secret."""

    @property
    def may_pass(self) -> bool:
        """Whether waiting can help: a connection or the server failed, and nothing was refused."""
        if not isinstance(self.__cause__, psycopg.OperationalError):
            return False
        return _REFUSED_FOR_GOOD.search(str(self.__cause__)) is None


class EmbeddedServerError(DatabaseError):
    """The embedded server cannot be created, started, joined or stopped."""

    @property
    def may_pass(self) -> bool:
        return True


class MigrationError(DatabaseError):
    """A migration failed, or the files and the history of the database disagree."""


def one_line(error: BaseException | str) -> str:
    """The text of *error* on one line; libpq and the server like to use several."""
    return " ".join(str(error).split())


def server_message(error: psycopg.Error) -> str:
    """What the server said, without the SQL that it quotes; one line."""
    return one_line(error.diag.message_primary or error)
