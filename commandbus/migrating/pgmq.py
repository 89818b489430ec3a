"""PGMQ in a database: the server's extension if it offers one, else the SQL of package `pgmq`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from commandbus.errors import DatabaseSetupError, one_line


class PgmqSource(StrEnum):
    """Where a PGMQ comes from."""

    EXTENSION = "extension"
    SQL = "SQL"


@dataclass(frozen=True, slots=True)
class PgmqInstallation:
    """A PGMQ that was installed in a database."""

    version: str
    source: PgmqSource


def pgmq_is_installed(conn: Connection[TupleRow]) -> bool:
    """Whether schema pgmq is there.

    Raises DatabaseSetupError where the schema is there without PGMQ in it.
    """
    # Asked of the catalogue, which every role may read.
    row = conn.execute(
        "select count(distinct schema.oid), count(meta.oid) from pg_namespace as schema"
        " left join pg_class as meta on meta.relnamespace = schema.oid and meta.relname = 'meta'"
        " where schema.nspname = 'pgmq'"
    ).fetchone()
    if row == (1, 0):
        raise DatabaseSetupError(
            f"Database {conn.info.dbname} has a schema pgmq without PGMQ in it; drop or rename it"
        )
    return row == (1, 1)


def installed_pgmq(conn: Connection[TupleRow]) -> str | None:
    """How PGMQ came into the database, for people; None where it is not there."""
    if not pgmq_is_installed(conn):
        return None
    extension = conn.execute("select extversion from pg_extension where extname = 'pgmq'")
    row = extension.fetchone()
    return "installed by SQL" if row is None else f"extension {row[0]}"


def install_pgmq(conn: Connection[TupleRow]) -> PgmqInstallation | None:
    """Make sure that PGMQ is in the database; None when it was there before.

    *conn* must be in autocommit mode and the caller must hold `migration_lock`.

    Raises DatabaseSetupError where the role lacks the right to install it.
    """
    if pgmq_is_installed(conn):
        return None
    offered = conn.execute(
        "select default_version from pg_available_extensions where name = 'pgmq'"
    ).fetchone()
    try:
        if offered is not None:
            conn.execute("create extension pgmq")
            return PgmqInstallation(str(offered[0]), PgmqSource.EXTENSION)
        return _install_sql(conn)
    except psycopg.errors.InsufficientPrivilege as exc:
        what = "create extension pgmq" if offered is not None else "install PGMQ's SQL"
        raise DatabaseSetupError(
            f"Role {conn.info.user} may not {what} in database {conn.info.dbname}"
            f" ({one_line(exc)}); let an administrator run"
            " `python -m app.database install-pgmq` there, or grant the right"
        ) from exc
    except psycopg.Error as exc:
        raise DatabaseSetupError(f"PGMQ could not be installed: {one_line(exc)}") from exc


def _install_sql(conn: Connection[TupleRow]) -> PgmqInstallation:
    # The package is an extra, and slow to import; a worker rarely needs it.
    try:
        from pgmq.install import get_embedded_install_sql, get_embedded_sql_version
    except ModuleNotFoundError as exc:
        raise DatabaseSetupError(
            "The server offers no extension pgmq, and the Python package pgmq, which has PGMQ's"
            " SQL, is not installed: pip install 'commandbus[setup]'"
        ) from exc

    with conn.transaction():
        conn.execute(get_embedded_install_sql().encode("utf-8"))
    return PgmqInstallation(get_embedded_sql_version(), PgmqSource.SQL)
