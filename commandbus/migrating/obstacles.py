"""What in a database keeps the current role from working with it, before the bus is started."""

from __future__ import annotations

from psycopg import Connection
from psycopg.rows import TupleRow, tuple_row

from commandbus.errors import DatabaseSetupError
from commandbus.obstacles import FIND_OBSTACLES, TABLES, obstacle_texts

# The migrations make the application's tables, too, so all of them are looked at.
_MIGRATED_TABLES = (
    f"{TABLES}|^test_command$|^app_config|^operator_job|^load_test_|^flow_|^flyway_schema_history$"
)


def find_obstacles(conn: Connection[TupleRow]) -> list[str]:
    """A sentence for each kind of obstacle; empty where there is none."""
    with conn.cursor(row_factory=tuple_row) as cur:
        return obstacle_texts(cur.execute(FIND_OBSTACLES, {"tables": _MIGRATED_TABLES}).fetchall())


def refuse_obstacles(conn: Connection[TupleRow]) -> None:
    """Raise DatabaseSetupError with every obstacle in the database."""
    if texts := find_obstacles(conn):
        raise DatabaseSetupError(f"Database {conn.info.dbname} cannot be used: {'; '.join(texts)}")
