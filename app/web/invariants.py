"""Invariants: what must hold at every moment, and whether it does."""

from __future__ import annotations

from functools import cached_property, partial

from flask import request
from flask.typing import ResponseReturnValue

from app.database.health import Check, look
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
from app.web.rendering import PageContext, render_page

CHECKED_AT_ONCE = 20_000
"""Up to this many commands the check is quick, so the page runs it when it opens."""


@bp.get("/invariants")
@access.viewer
def invariants() -> ResponseReturnValue:
    return render_page("pages/invariants.html", Invariants(), partials=("database_checks",))


class Invariants(PageContext):
    """The values of the page; with `?check=now`, or where it costs little, those of a check."""

    groups = GROUPS
    invariant_count = sum(len(group.invariants) for group in GROUPS)
    shown_violations = SHOWN_VIOLATIONS

    @cached_property
    def checks(self) -> list[Check]:
        """What is watched of the database."""
        return [*call(look, current_portal().pool), *recent_faults()]

    @cached_property
    def commands(self) -> int:
        """How many commands there are."""
        return sum(count_by_status().values())

    @property
    def report(self) -> Report | None:
        """The answer of the check; None where there was none."""
        return self._checked[0]

    @property
    def refusal(self) -> str:
        """Why there is no answer; empty where nobody asked for a check."""
        return self._checked[1]

    @cached_property
    def _checked(self) -> tuple[Report | None, str]:
        if request.args.get("check") != "now" and self.commands > CHECKED_AT_ONCE:
            return None, ""
        portal = current_portal()
        try:
            return portal.call_within(PATIENCE_SECONDS, partial(check, portal.pool)), ""
        except CheckRunningError:
            return None, "Another check is running. Try again in a moment."
        except CheckTooLongError:
            return None, (
                f"The check was stopped after {CHECK_SECONDS} seconds, so it says nothing about the"
                " invariants. Call command_bus.find_violations() in psql, which has no time limit."
            )
