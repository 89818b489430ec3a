"""Whether this process lives, and whether it can serve; for supervisors and load balancers."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout
from pydantic import Field

from app.api.routing import Answer, ApiBlueprint
from app.database import DatabaseError
from app.database.health import look
from app.models.readiness import readiness
from app.server import access
from app.server.database_faults import failure_of
from app.server.errors import RETRY_AFTER_SECONDS, recent_faults
from app.server.portal import DatabaseSlowError, call, current_portal

logger = logging.getLogger(__name__)

# These need no sign-in.
bp = ApiBlueprint("health", __name__, url_prefix="/health", abp_security=[{}])


class Health(Answer):
    """The process answers."""

    status: str


class HealthCheck(Answer):
    """A figure of the database that decides speed or safety; who holds what is on the pages."""

    name: str
    level: str = Field(description="ok, unknown, warning or critical")
    value: float | None
    unit: str
    limit: float | None = Field(description="From where on it is a warning")


class Readiness(Answer):
    """Whether everything is there that serving needs."""

    status: str = Field(
        description="ready; read_only: reading works, changes are answered 503; or not_ready"
    )
    database: bool
    migrated: bool
    pgmq: bool
    complete: bool = Field(
        description="Whether all tables, columns and functions are there and may be used"
    )
    read_only: bool = Field(description="Whether the database takes no changes now")
    problems: list[str] = Field(description="What is missing, a sentence each")
    checks: list[HealthCheck] = Field(description="Warnings; they do not make it not ready")


@bp.get("/live", responses={200: Health})
@access.public
def live() -> Any:
    """The process answers."""
    return Health(status="alive")


@bp.get("/ready", responses={200: Readiness, 503: Readiness})
@access.public
def ready() -> Any:
    """The database is reachable, migrated, complete, hides no rows, and has a new enough PGMQ.

    503 otherwise.
    """
    found = readiness()
    body = Readiness(
        status=found.status,
        database=found.database,
        migrated=found.migrated,
        pgmq=found.pgmq,
        complete=found.complete,
        read_only=found.read_only,
        problems=list(found.problems),
        checks=_checks() if found.is_ready else [],
    )
    if found.is_ready:
        return body
    return body, 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}


def _checks() -> list[HealthCheck]:
    try:
        found = [*call(look, current_portal().pool), *recent_faults()]
    except (psycopg.Error, PoolTimeout, DatabaseError, DatabaseSlowError) as exc:
        failure = failure_of(exc)
        reason = type(exc).__name__ if failure is None else failure.reason
        logger.warning("database_health_not_seen", extra={"reason": reason})
        found = recent_faults()
    return [HealthCheck.model_validate(check) for check in found]
