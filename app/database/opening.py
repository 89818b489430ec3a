"""From settings to a database that is there, has PGMQ in it and is migrated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from app.database.errors import DatabaseError, EmbeddedServerError
from app.database.urls import (
    MAINTENANCE_DATABASES,
    database_name,
    sqlalchemy_url,
    with_database,
    without_password,
)
from app.settings.configuration import Settings
from commandbus.errors import one_line
from commandbus.migrating import connect, connect_to_any_server, refuse_old_server, set_up

if TYPE_CHECKING:
    from app.database.embedded import EmbeddedServer


@dataclass(frozen=True, slots=True)
class Preparation:
    """What had to be done before the database could be used; all empty where it was ready."""

    database_created: bool = False
    installed_pgmq: str | None = None
    applied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Database:
    """A database that can be used until `close`; also a context manager."""

    url: str = field(repr=False)  # may hold a password
    preparation: Preparation = Preparation()
    _embedded: EmbeddedServer | None = field(default=None, repr=False)

    @property
    def sqlalchemy_url(self) -> str:
        """The URL as SQLAlchemy takes it."""
        return sqlalchemy_url(self.url)

    @property
    def is_embedded(self) -> bool:
        return self._embedded is not None

    def __str__(self) -> str:
        """Where the database is, without a password."""
        return without_password(self.url)

    @contextmanager
    def kept_running(self) -> Iterator[None]:
        """Meanwhile an embedded server that dies is started again; another is its keeper's."""
        if self._embedded is None:
            yield
            return
        from app.database.guard import ServerGuard

        with ServerGuard(self._embedded):
            yield

    def close(self) -> None:
        """This process no longer uses the database; an embedded server without users stops.

        Closing twice is harmless. What the process's end does not call, `atexit` does.
        """
        if self._embedded is not None:
            self._embedded.leave()

    def leave_running(self) -> None:
        """The same, but an embedded server runs on, as `EmbeddedServer.leave_running` says."""
        if self._embedded is not None:
            self._embedded.leave_running()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _say_nothing(_: str) -> None:
    """For callers that need no word on the way."""


def open_database(
    settings: Settings,
    *,
    folder: Path | None = None,
    on_step: Callable[[str], None] = _say_nothing,
) -> Database:
    """A database that exists, has PGMQ in it and is migrated by *folder*.

    It is the one of `settings.database_url`, else the embedded server's, which is started or
    joined and which this process uses until `close`. *on_step* hears what is being done.

    Raises DatabaseError with one line for the user.
    """
    if settings.database_url is not None:
        url = settings.database_url
        return Database(url, prepare(url, folder=folder, on_step=on_step))
    server = embedded_server(settings)
    server.join()
    try:
        url = server.url()
        return Database(url, prepare(url, folder=folder, on_step=on_step), server)
    except BaseException:
        server.leave()
        raise


def embedded_server(settings: Settings) -> EmbeddedServer:
    """The embedded server under `settings.data_dir`, not started.

    Raises EmbeddedServerError on a platform that has none.
    """
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "The embedded server runs on Linux and macOS; set DATABASE_URL to use another one"
        )
    from app.database.embedded import EmbeddedServer

    return EmbeddedServer(settings.data_dir)


def prepare(url: str, *, folder: Path | None = None, on_step: Callable[[str], None]) -> Preparation:
    """Create the database of *url* where it is missing, put PGMQ into it and migrate it.

    Raises DatabaseError, before anything is migrated, where PGMQ is too old or rows are hidden.
    """
    created = ensure_database(url)
    if created:
        on_step(f"Created database {database_name(url)}")
    with connect(url) as conn:
        done = set_up(conn, folder, on_step=on_step)
    return Preparation(created, done.installed_pgmq, done.applied)


def ensure_database(url: str) -> bool:
    """The database of *url* exists; True when it was created.

    Raises DatabaseError where the server cannot be reached, refuses the login, or the role may not
    create databases.
    """
    name = database_name(url)
    try:
        connect_to_any_server(url).close()
    except psycopg.OperationalError as exc:
        # The text of the refusal depends on the server's language, so ask its catalogue instead.
        conn = _connect_for_maintenance(url)
        if conn is None:
            raise _unreachable(url, exc) from exc
        with conn:
            refuse_old_server(conn)
            if not _exists(conn, name):
                return _create(conn, name)
        try:
            connect_to_any_server(url).close()  # another process may have created it meanwhile
        except psycopg.OperationalError as again:
            raise _unreachable(url, again) from again
    return False


def _connect_for_maintenance(url: str) -> Connection[TupleRow] | None:
    for name in MAINTENANCE_DATABASES:
        try:
            return connect_to_any_server(with_database(url, name))
        except psycopg.OperationalError:
            continue  # the first refusal, of the database itself, is the one to report
    return None


def _unreachable(url: str, error: psycopg.Error) -> DatabaseError:
    return DatabaseError(f"Cannot connect to {without_password(url)}: {one_line(error)}")


def _exists(conn: Connection[TupleRow], name: str) -> bool:
    found = conn.execute("select 1 from pg_database where datname = %s", (name,))
    return found.fetchone() is not None


def _create(conn: Connection[TupleRow], name: str) -> bool:
    """Create database *name* in UTF8; False when another process was first."""
    statement = sql.SQL("create database {}").format(sql.Identifier(name))
    template = conn.execute(
        "select pg_encoding_to_char(encoding) from pg_database where datname = 'template1'"
    ).fetchone()
    if template != ("UTF8",):
        statement += sql.SQL(" template template0 encoding 'UTF8' lc_collate 'C' lc_ctype 'C'")
    try:
        conn.execute(statement)
    except psycopg.errors.InsufficientPrivilege as exc:
        raise DatabaseError(
            f"Database {name} does not exist, and role {conn.info.user} may not create it; let an"
            " administrator create it, or grant CREATEDB"
        ) from exc
    except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        return False
    except psycopg.Error as exc:
        raise DatabaseError(f"Database {name} could not be created: {one_line(exc)}") from exc
    return True
