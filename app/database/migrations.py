"""Bringing a database to the state of the migrations folder, as Flyway would.

The real Flyway reads and writes the same history table, so either can continue the other's work.
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

from app.database.errors import MigrationError, one_line, server_message
from app.database.files import MigrationFile, read_migrations
from app.database.history import CREATE_HISTORY, Comparison, compare, read_history
from app.settings.configuration import PROJECT_ROOT

MIGRATIONS_FOLDER = PROJECT_ROOT / "migrations"

# Any number, as long as every process of this project takes the same: "cmdbus" in ASCII.
_ADVISORY_LOCK = int.from_bytes(b"cmdbus")


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """What `migrate` did with one file."""

    script: str
    milliseconds: int


@contextmanager
def migration_lock(conn: Connection[TupleRow]) -> Iterator[None]:
    """Inside the block no other process of this project changes this database's schema.

    Waits for the one that does; the server frees the lock when the connection ends.
    """
    conn.execute("select pg_advisory_lock(%s)", (_ADVISORY_LOCK,))
    try:
        yield
    finally:
        if not conn.broken:
            conn.execute("select pg_advisory_unlock(%s)", (_ADVISORY_LOCK,))


def examine(conn: Connection[TupleRow], folder: Path = MIGRATIONS_FOLDER) -> Comparison:
    """Hold the files in *folder* against the database's history; changes nothing."""
    return compare(read_migrations(folder), read_history(conn) or [])


def validate(conn: Connection[TupleRow], folder: Path = MIGRATIONS_FOLDER) -> None:
    """Return when the database is exactly what *folder* says.

    Raises MigrationError with every difference, pending migrations included.
    """
    comparison = examine(conn, folder)
    comparison.refuse_problems()
    if comparison.to_apply:
        pending = ", ".join(file.script for file in comparison.to_apply)
        raise MigrationError(f"Not applied yet: {pending}")


def _say_nothing(_: AppliedMigration) -> None:
    """For callers that need no word on the way."""


def migrate(
    conn: Connection[TupleRow],
    folder: Path = MIGRATIONS_FOLDER,
    *,
    on_applied: Callable[[AppliedMigration], None] = _say_nothing,
) -> list[AppliedMigration]:
    """Apply what is pending in *folder*, each file in a transaction of its own; tell what was done.

    *conn* must be in autocommit mode and the caller must hold `migration_lock`. *on_applied* is
    called after each commit. Nothing is written where the database is up to date.

    Raises MigrationError, before anything is applied, where files and history disagree, and for
    the first file that fails; the files before it stay applied.
    """
    files = read_migrations(folder)
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
    """Run *file* and record it, both or neither."""
    started = time.monotonic()
    # What one migration sets for its session must not reach the next; and the tables belong in
    # public also where the role has a schema of its own, as Flyway has it by its defaultSchema.
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
    """Which file, which line of it, what the server said, and its hint."""
    position = error.diag.statement_position
    where = ""
    if position is not None:
        line = file.text.count("\n", 0, int(position) - 1) + 1
        where = f", line {line}"
    hint = f" ({one_line(error.diag.message_hint)})" if error.diag.message_hint else ""
    return f"{file.script}{where} failed and was undone: {server_message(error)}{hint}"
