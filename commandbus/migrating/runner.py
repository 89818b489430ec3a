"""Applying the migrations to a database, as Flyway would.

Flyway reads and writes the same history table, so either can continue the other's work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from commandbus.errors import MigrationError, one_line
from commandbus.migrating.files import MigrationFile, migrations_folder, read_migrations
from commandbus.migrating.history import CREATE_HISTORY, Comparison, compare, read_history

# The bytes of "cmdbus". Every release must take the same number.
_ADVISORY_LOCK = int.from_bytes(b"cmdbus")


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """What `migrate` did with one file."""

    script: str
    milliseconds: int


@contextmanager
def migration_lock(conn: Connection[TupleRow]) -> Iterator[None]:
    """Inside the block no other process of this project migrates this database.

    Waits for a process that does. The server frees the lock when the connection ends.
    """
    conn.execute("select pg_advisory_lock(%s)", (_ADVISORY_LOCK,))
    try:
        yield
    finally:
        if not conn.broken:
            conn.execute("select pg_advisory_unlock(%s)", (_ADVISORY_LOCK,))


def examine(conn: Connection[TupleRow], folder: Path | None = None) -> Comparison:
    """Compare the files in *folder* (by default the package's) with the database's history.

    Changes nothing.
    """
    return compare(read_migrations(folder or migrations_folder()), read_history(conn) or [])


def validate(conn: Connection[TupleRow], folder: Path | None = None) -> None:
    """Check that the database has exactly the migrations in *folder*.

    Raises MigrationError with every difference, pending migrations included.
    """
    comparison = examine(conn, folder)
    comparison.refuse_problems()
    if comparison.to_apply:
        pending = ", ".join(file.script for file in comparison.to_apply)
        raise MigrationError(f"Not applied yet: {pending}")


def _ignore_progress(_: AppliedMigration) -> None:
    """For callers that do not want to hear of each migration."""


def migrate(
    conn: Connection[TupleRow],
    folder: Path | None = None,
    *,
    on_applied: Callable[[AppliedMigration], None] = _ignore_progress,
) -> list[AppliedMigration]:
    """Apply the pending migrations in *folder*, each in its own transaction; return those applied.

    *conn* must be in autocommit mode and the caller must hold `migration_lock`. *on_applied* is
    called after each commit. Nothing is written where the database is up to date.

    Raises MigrationError, before anything is applied, where files and history disagree, and for
    the first file that fails; the files before it stay applied.
    """
    files = read_migrations(folder or migrations_folder())
    history = read_history(conn)
    comparison = compare(files, history or [])
    comparison.refuse_problems()
    if history is None:
        with conn.transaction():
            conn.execute(CREATE_HISTORY)
    applied = []
    for file in comparison.to_apply:
        applied.append(_apply(conn, file))
        on_applied(applied[-1])
    return applied


def _apply(conn: Connection[TupleRow], file: MigrationFile) -> AppliedMigration:
    """Run *file* and record it in one transaction."""
    started = time.monotonic()
    # Settings that one migration makes for its session must not reach the next. Tables belong in
    # public, also where the role has a schema of its own: as with Flyway's defaultSchema.
    conn.execute("reset all")
    conn.execute("set search_path to public")
    try:
        with conn.transaction():
            # Without parameters psycopg sends the text as it is, however many statements it holds.
            conn.execute(file.text.encode("utf-8"))
            milliseconds = round((time.monotonic() - started) * 1000)
            _record(conn, file, milliseconds)
    except psycopg.Error as exc:
        raise MigrationError(_failure(file, exc)) from exc
    return AppliedMigration(file.script, milliseconds)


def _record(conn: Connection[TupleRow], file: MigrationFile, milliseconds: int) -> None:
    conn.execute(
        "insert into public.flyway_schema_history (installed_rank, version, description, type,"
        " script, checksum, installed_by, execution_time, success)"
        " select coalesce(max(installed_rank), 0) + 1, %s, %s, 'SQL', %s, %s, current_user, %s,"
        " true from public.flyway_schema_history",
        (file.version, file.description, file.script, file.checksum, milliseconds),
    )


def _failure(file: MigrationFile, error: psycopg.Error) -> str:
    """The file, the line in it, the server's message and its hint."""
    position = error.diag.statement_position
    where = ""
    if position is not None:
        line = file.text.count("\n", 0, int(position) - 1) + 1
        where = f", line {line}"
    hint = f" ({one_line(error.diag.message_hint)})" if error.diag.message_hint else ""
    return f"{file.script}{where} failed and was undone: {one_line(error)}{hint}"
