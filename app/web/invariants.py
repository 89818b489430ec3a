"""Invariants: what must hold at every moment, and whether it does."""

from __future__ import annotations

from functools import partial
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue

from app.database.health import look
from app.database.invariants import (
    CHECK_SECONDS,
    GROUPS,
    PATIENCE_SECONDS,
    SHOWN_VIOLATIONS,
    CheckRunningError,
    CheckTooLongError,
    Report,
    check,
)
from app.models import count_by_status
from app.server import access
from app.server.errors import recent_faults
from app.server.portal import call, current_portal
from app.web import bp
from app.web.rendering import PARTIAL, render_page

CHECKED_AT_ONCE = 20_000
"""Up to this many commands the check is quick, so the page runs it when it opens."""


@bp.get("/invariants")
@access.viewer
def invariants() -> ResponseReturnValue:
    if request.args.get(PARTIAL) == "database_checks":  # which needs no check of the rows
        context = {"checks": [*call(look, current_portal().pool), *recent_faults()]}
        return render_page("pages/invariants.html", context, partials=("database_checks",))
    return render_page("pages/invariants.html", invariants_context())


def invariants_context() -> dict[str, Any]:
    """What the page shows; with `?check=now`, or where it costs little, after a check."""
    commands = sum(count_by_status().values())
    report: Report | None = None
    refusal = ""
    if request.args.get("check") == "now" or commands <= CHECKED_AT_ONCE:
        try:
            report = current_portal().call_within(
                PATIENCE_SECONDS, partial(check, current_portal().pool)
            )
        except CheckRunningError:
            refusal = "Another check is running. Try again in a moment."
        except CheckTooLongError:
            refusal = (
                f"The check was stopped after {CHECK_SECONDS} seconds, so it says nothing about the"
                " invariants. Call command_bus.find_violations() in psql, which has no time limit."
            )
    return {
        "checks": [*call(look, current_portal().pool), *recent_faults()],
        "groups": GROUPS,
        "invariant_count": sum(len(group.invariants) for group in GROUPS),
        "commands": commands,
        "report": report,
        "refusal": refusal,
        "shown_violations": SHOWN_VIOLATIONS,
    }
