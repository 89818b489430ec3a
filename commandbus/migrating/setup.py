"""Making an existing database ready for the bus in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from commandbus.errors import DatabaseSetupError, one_line
from commandbus.migrating.obstacles import refuse_obstacles
from commandbus.migrating.pgmq import install_pgmq
from commandbus.migrating.runner import migrate, migration_lock
from commandbus.migrating.urls import parameters, without_password
from commandbus.texts import shown

OLDEST_SERVER = 150000
CONNECT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class DatabaseSetup:
    """What `setup_database` had to do; empty where the database was ready."""

    installed_pgmq: str | None = None
    """The version of PGMQ that was installed; None: PGMQ was there before."""
    applied: tuple[str, ...] = ()
    """The names of the migrations that were applied, in order."""


def _ignore_step(_: str) -> None:
    """For callers that do not want to hear of the steps."""


def setup_database(url: str, *, on_step: Callable[[str], None] = _ignore_step) -> DatabaseSetup:
    """Install PGMQ in the database of *url* where it is missing, and apply pending migrations.

    Blocks until the database is ready: call it from a plain script, at deployment, or from a thread
    of an async program. The database must exist. Calling it again changes nothing; several
    processes may call it at once. *on_step* is called with a sentence after each step. Needs a role
    that may create schemas and tables, and the package's extra ``setup`` where the server does not
    offer PGMQ as an extension.

    Raises DatabaseSetupError, with one line for the user and no password in it, for a server that
    cannot be reached or is too old, for a PGMQ that is too old and for tables whose rows are hidden
    from the role; its subclass MigrationError where a migration fails, or where the database was
    migrated with other files.
    """
    if not callable(on_step):
        raise TypeError(f"on_step is a function, not {shown(on_step)}")
    with connect(url) as conn:
        return set_up(conn, on_step=on_step)


def set_up(
    conn: Connection[TupleRow],
    folder: Path | None = None,
    *,
    on_step: Callable[[str], None] = _ignore_step,
) -> DatabaseSetup:
    """Do what `setup_database` does on *conn*, which must be in autocommit mode.

    *folder* holds other migrations than those of the package.
    """
    with migration_lock(conn):
        pgmq = install_pgmq(conn)
        if pgmq is not None:
            on_step(f"Installed PGMQ {pgmq.version} by {pgmq.source}")
        refuse_obstacles(conn)  # rows that are hidden would be migrated again
        applied = migrate(
            conn,
            folder,
            on_applied=lambda done: on_step(f"Applied {done.script} in {done.milliseconds} ms"),
        )
        if applied:
            # An event trigger of the server may put row-level security on every new table.
            refuse_obstacles(conn)
    return DatabaseSetup(
        None if pgmq is None else pgmq.version, tuple(done.script for done in applied)
    )


@contextmanager
def connect(url: str) -> Iterator[Connection[TupleRow]]:
    """A connection in autocommit mode to a supported server.

    Raises DatabaseSetupError for a server that cannot be reached or used, and in place of every
    psycopg error that leaves the block.
    """
    try:
        with connect_to_any_server(url) as conn:
            refuse_old_server(conn)
            _refuse_other_encodings(conn)
            yield conn
    except psycopg.Error as exc:
        raise DatabaseSetupError(f"{without_password(url)}: {one_line(exc)}") from exc


def connect_to_any_server(url: str) -> Connection[TupleRow]:
    """A connection in autocommit mode, whatever the server's version; raises psycopg's errors."""
    timeout = parameters(url).get("connect_timeout", CONNECT_SECONDS)
    return psycopg.connect(url, autocommit=True, connect_timeout=timeout)


def refuse_old_server(conn: Connection[TupleRow]) -> None:
    """Raise DatabaseSetupError where the server is older than the bus needs."""
    version = conn.info.server_version
    if version < OLDEST_SERVER:
        raise DatabaseSetupError(
            f"The server is PostgreSQL {version // 10000};"
            f" {OLDEST_SERVER // 10000} or newer is needed"
        )


def _refuse_other_encodings(conn: Connection[TupleRow]) -> None:
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise DatabaseSetupError(
            f"Database {conn.info.dbname} is encoded in {encoding}; UTF8 is needed"
        )
