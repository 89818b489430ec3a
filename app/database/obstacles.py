"""What about a database keeps the application from working in it, for the role that asks."""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import TupleRow, tuple_row

from app.database.errors import DatabaseError
from commandbus.obstacles import FIND_OBSTACLES, TABLES, obstacle_texts

_OWN_TABLES = (
    f"{TABLES}|^test_command$|^app_config|^operator_job|^load_test_|^flow_|^flyway_schema_history$"
)


def find_obstacles(conn: Connection[TupleRow]) -> list[str]:
    """A sentence for each kind of obstacle; empty where nothing keeps it from working."""
    with conn.cursor(row_factory=tuple_row) as cur:
        return obstacle_texts(cur.execute(FIND_OBSTACLES, {"tables": _OWN_TABLES}).fetchall())


def refuse_obstacles(conn: Connection[TupleRow]) -> None:
    """Raise DatabaseError with every reason why the application cannot work in the database."""
    if texts := find_obstacles(conn):
        raise DatabaseError(f"Database {conn.info.dbname} cannot be used: {'; '.join(texts)}")
