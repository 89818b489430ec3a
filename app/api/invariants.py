"""What must hold at every moment, checked over the rows."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import Field

from app.api import bp
from app.api.routing import Answer
from app.database.invariants import (
    CHECK_SECONDS,
    PATIENCE_SECONDS,
    SHOWN_VIOLATIONS,
    CheckRunningError,
    CheckTooLongError,
    Concern,
    check,
)
from app.server import access
from app.server.errors import Problem
from app.server.portal import current_portal


class ViolationItem(Answer):
    """Something that must not be."""

    domain: str | None
    subject_id: UUID | None = Field(description="The command concerned, or the run")
    detail: str


class FindingItem(Answer):
    """What the check says of one invariant."""

    name: str
    meaning: str
    concern: Concern = Field(description="What subject_id names")
    violations_count: int
    violations: list[ViolationItem] = Field(description=f"The first {SHOWN_VIOLATIONS}")


class InvariantReport(Answer):
    """The answer of one check over one snapshot."""

    holds: bool
    violations_count: int
    checked_at: datetime
    duration_ms: float
    invariants: list[FindingItem]


@bp.get("/invariants", responses={200: InvariantReport})
@access.viewer
def invariants() -> Any:
    """Check over all rows what must hold at every moment.

    It reads everything, so it takes as long as there are commands; at most a minute. One check at
    a time: 409 while another runs, 504 where it was given up.
    """
    try:
        report = current_portal().call_within(
            PATIENCE_SECONDS, partial(check, current_portal().pool)
        )
    except CheckRunningError as exc:
        raise Problem(409, "check_running", "Another check runs just now.") from exc
    except CheckTooLongError as exc:
        raise Problem(504, "check_too_long", f"Given up after {CHECK_SECONDS} s.") from exc
    return InvariantReport(
        holds=report.holds,
        violations_count=report.count,
        checked_at=report.checked_at,
        duration_ms=round(report.seconds * 1000, 1),
        invariants=[
            FindingItem(
                name=finding.invariant.name,
                meaning=finding.invariant.meaning,
                concern=finding.invariant.concern,
                violations_count=finding.count,
                violations=[ViolationItem.model_validate(each) for each in finding.violations],
            )
            for finding in report.findings
        ],
    )
