"""Whether the database is reachable, takes changes, and has everything that the bus needs."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import cast

import psycopg
import sqlalchemy.exc
from psycopg import Connection
from psycopg.rows import TupleRow

from app.database import DatabaseError
from app.database.health import some_of
from app.models.base import db
from app.server.database_faults import failure_of
from commandbus.migrating import find_obstacles, migrations_folder, pgmq_is_installed, validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is there of what serving needs."""

    database: bool = False
    migrated: bool = False
    pgmq: bool = False
    complete: bool = False
    """Whether all tables, columns and functions are there, and the role may read the tables."""
    read_only: bool = False
    """Whether the database takes no changes: reading works all the same."""
    problems: tuple[str, ...] = ()
    """What is missing, a sentence each."""

    @property
    def is_ready(self) -> bool:
        """Whether everything is there."""
        return self.database and self.migrated and self.pgmq and self.complete

    @property
    def status(self) -> str:
        """All in one word."""
        if not self.is_ready:
            return "not_ready"
        return "read_only" if self.read_only else "ready"


def readiness() -> Readiness:
    """Ask the database; never raises for what it answers."""
    try:
        with db.engine.connect() as session:
            return _examined(cast(Connection[TupleRow], session.connection.driver_connection))
    except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error, DatabaseError) as exc:
        failure = failure_of(exc)
        reason = type(exc).__name__ if failure is None else failure.reason
        logger.warning("not_ready", extra={"reason": reason})
        sentence = "The database cannot be asked." if failure is None else failure.fault.sentence
        return Readiness(problems=(sentence,))


def _examined(conn: Connection[TupleRow]) -> Readiness:
    problems = []
    migrated, pgmq = True, False
    try:
        validate(conn)
    except DatabaseError:
        migrated = False
        problems.append("The migrations of the database are not those of this version.")
    with suppress(DatabaseError):
        pgmq = pgmq_is_installed(conn)
    if not pgmq:
        problems.append("PGMQ is not installed in the database.")
    missing, forbidden = _incomplete(conn)
    if missing:
        problems.append(f"Missing in the database: {some_of(missing)}.")
    if forbidden:
        problems.append(f"The application's role may not use: {some_of(forbidden)}.")
    if missing or forbidden:
        logger.warning("not_ready", extra={"missing": missing, "forbidden": forbidden})
    obstacles = find_obstacles(conn)
    if obstacles:
        logger.warning("not_ready", extra={"reason": "; ".join(obstacles)})
        problems += obstacles
    read_only = conn.execute(
        "select pg_is_in_recovery() or current_setting('default_transaction_read_only')::boolean"
    ).fetchone()
    return Readiness(
        database=True,
        migrated=migrated,
        pgmq=pgmq and not any(text.startswith("PGMQ") for text in obstacles),
        complete=not missing and not forbidden and not obstacles,
        read_only=read_only == (True,),
        problems=tuple(problems),
    )


def _incomplete(conn: Connection[TupleRow]) -> tuple[list[str], list[str]]:
    """The tables, columns and functions that are missing, and those that the role may not use."""
    rows = conn.execute(
        _LOOK,
        {
            "tables": [table.name for table in db.metadata.tables.values()],
            "columns": [
                f"{table.name}.{column.name}"
                for table in db.metadata.tables.values()
                for column in table.columns
            ],
            "functions": list(_functions()),
        },
    ).fetchall()
    missing = [name for name, is_missing in rows if is_missing]
    return missing, [name for name, is_missing in rows if not is_missing]


@cache
def _functions() -> tuple[str, ...]:
    """The functions that the migrations make."""
    made = re.compile(r"^create or replace function command_bus\.(\w+)", re.MULTILINE)
    texts = (path.read_text() for path in sorted(migrations_folder().glob("R__*.sql")))
    return tuple(dict.fromkeys(name for text in texts for name in made.findall(text)))


# A schema whose use is forbidden hides what is in it, so schemas come first.
_LOOK = """
select format('schema %%s', n.nspname), false
from pg_namespace as n
where n.nspname in ('public', 'command_bus', 'pgmq') and not has_schema_privilege(n.oid, 'usage')
union all
select t.name, to_regclass('public.' || t.name) is null
from unnest(%(tables)s::text[]) as t (name)
where case when to_regclass('public.' || t.name) is null then true
           else not has_table_privilege(to_regclass('public.' || t.name), 'select') end
union all
select c.name, true
from unnest(%(columns)s::text[]) as c (name)
where to_regclass('public.' || split_part(c.name, '.', 1)) is not null
    and not exists (
        select from pg_attribute as a
        where a.attrelid = to_regclass('public.' || split_part(c.name, '.', 1))
            and a.attname = split_part(c.name, '.', 2) and not a.attisdropped
    )
union all
select format('command_bus.%%s()', f.name), true
from unnest(%(functions)s::text[]) as f (name)
where not exists (
    select from pg_proc as p
    join pg_namespace as n on n.oid = p.pronamespace
    where n.nspname = 'command_bus' and p.proname = f.name
)
union all
select format('command_bus.%%s()', p.proname), false
from pg_proc as p
join pg_namespace as n on n.oid = p.pronamespace
where n.nspname = 'command_bus' and p.proname = any (%(functions)s)
    and not has_function_privilege(p.oid, 'execute') and not p.prosecdef
"""
