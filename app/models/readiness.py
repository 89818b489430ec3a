"""Whether the database is reachable, migrated, and has PGMQ."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import cast

import psycopg
import sqlalchemy.exc
from psycopg import Connection
from psycopg.rows import TupleRow

from app.database import DatabaseError
from app.database.migrations import validate
from app.database.obstacles import find_obstacles
from app.database.pgmq import pgmq_is_installed
from app.models.base import db

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is there of what serving needs."""

    database: bool = False
    migrated: bool = False
    pgmq: bool = False
    obstacles: tuple[str, ...] = ()
    """What keeps this role from working there, a sentence for each kind."""

    @property
    def is_ready(self) -> bool:
        """Whether everything is there."""
        return self.database and self.migrated and self.pgmq and not self.obstacles


def readiness() -> Readiness:
    """Ask the database; never raises for what it answers."""
    try:
        with db.engine.connect() as session:
            conn = cast(Connection[TupleRow], session.connection.driver_connection)
            obstacles = tuple(find_obstacles(conn))
            found = Readiness(
                database=True,
                migrated=_is_migrated(conn),
                pgmq=_has_pgmq(conn) and not any(text.startswith("PGMQ") for text in obstacles),
                obstacles=obstacles,
            )
    except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error, DatabaseError) as exc:
        logger.warning("not_ready", extra={"reason": type(exc).__name__})
        return Readiness()
    if found.obstacles:
        logger.warning("not_ready", extra={"reason": "; ".join(found.obstacles)})
    return found


def _is_migrated(conn: Connection[TupleRow]) -> bool:
    try:
        validate(conn)
    except DatabaseError:
        return False
    return True


def _has_pgmq(conn: Connection[TupleRow]) -> bool:
    try:
        return pgmq_is_installed(conn)
    except DatabaseError:
        return False
