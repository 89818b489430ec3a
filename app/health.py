"""Whether this process lives, and whether it can serve; for supervisors and load balancers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from app import access
from app.api.routing import Answer, ApiBlueprint
from app.errors import RETRY_AFTER_SECONDS
from app.models.readiness import readiness

# Nobody has to say who they are.
bp = ApiBlueprint("health", __name__, url_prefix="/health", abp_security=[{}])


class Health(Answer):
    """The process answers."""

    status: str


class Readiness(Answer):
    """Whether everything is there that serving needs."""

    status: str = Field(description="ready or not_ready")
    database: bool
    migrated: bool
    pgmq: bool


@bp.get("/live", responses={200: Health})
@access.public
def live() -> Any:
    """The process answers."""
    return Health(status="alive")


@bp.get("/ready", responses={200: Readiness, 503: Readiness})
@access.public
def ready() -> Any:
    """The database is reachable, migrated, and has PGMQ; 503 otherwise."""
    found = readiness()
    body = Readiness(
        status="ready" if found.is_ready else "not_ready",
        database=found.database,
        migrated=found.migrated,
        pgmq=found.pgmq,
    )
    if found.is_ready:
        return body
    return body, 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}
