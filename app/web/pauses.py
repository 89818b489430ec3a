"""Pauses: what is paused now, pause a domain or a command type, resume."""

from __future__ import annotations

from functools import cached_property

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue

from app.actions import inputs
from app.actions import pauses as actions
from app.actions.orders import MAX_REASON
from app.models import domains, parked
from app.server import access
from app.server.errors import Problem
from app.web import bp
from app.web.forms import Form
from app.web.remembered import recorded_operator
from app.web.rendering import PageContext, render_page

LIVE_SECONDS = 2
SHOWN_ENDED = 20
LONGEST_TYPE = 200
DURATIONS = (
    ("", "Until resumed"),
    ("900", "15 minutes"),
    ("3600", "1 hour"),
    ("14400", "4 hours"),
    ("86400", "1 day"),
)


@bp.get("/pauses")
@access.viewer
def pauses() -> ResponseReturnValue:
    return render_page("pages/pauses.html", PausesPage(), partials=("pauses_list",))


@bp.post("/pauses")
@access.operator
def pause() -> ResponseReturnValue:
    page = PausesPage()
    wanted = page.read()
    if wanted is None:
        return render_page("pages/pauses.html", page, status=422)
    made = actions.pause(
        wanted.domain,
        wanted.command_type,
        reason=wanted.reason,
        operator=wanted.operator,
        seconds=wanted.seconds,
    )
    what = made.command_type or f"Domain {made.domain}"
    flash(f"{what} is paused. What runs goes on.", "success")
    return _back()


@bp.post("/pauses/<int:pause_id>/resume")
@access.operator
def resume_pause(pause_id: int) -> ResponseReturnValue:
    try:
        actions.resume(pause_id, recorded_operator())
    except Problem as problem:
        if problem.code != 404:
            raise
        flash("It was resumed already.", "info")
    else:
        flash("Resumed. What waited goes on.", "success")
    return _back()


class PausesPage(PageContext):
    """The values of the page and its refresh."""

    live_seconds = LIVE_SECONDS
    durations = DURATIONS
    most_type = LONGEST_TYPE
    most_reason = MAX_REASON

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}
        self.given = {"domain": "test", "command_type": "", "reason": "", "seconds": ""}

    def read(self) -> inputs.NewPause | None:
        """Take the posted form; None, with errors, where it says what cannot be."""
        form = Form(request.form)
        self.given = {name: form.text(name) for name in self.given}
        values = {name: form.value(name) for name in ("domain", "command_type", "reason")}
        values |= {"seconds": form.number("seconds"), "operator": recorded_operator()}
        wanted = form.read(inputs.NewPause, values)
        if not self.given["reason"]:
            form.errors["reason"] = "Say why, so that others know when it may go on."
        if self.given["domain"] not in domains():
            form.errors["domain"] = "There is no such domain."
        self.errors = form.errors
        return None if self.errors else wanted

    @cached_property
    def in_force(self) -> list[parked.PauseRow]:
        """What is paused now."""
        return parked.pauses()

    @cached_property
    def ended(self) -> list[parked.PauseRow]:
        """The latest pauses that are over."""
        return parked.ended_pauses(SHOWN_ENDED)

    @property
    def domain_choices(self) -> list[tuple[str, str]]:
        """Which domains there are."""
        return [(name, name) for name in domains()]


def _back() -> ResponseReturnValue:
    return redirect(url_for("web.pauses"), 303)
