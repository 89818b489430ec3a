"""Lanes: what waits in each group, what holds it, and its settings."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue

from app.actions import inputs
from app.models import domains, lanes
from app.models.lanes import MOST_BEHIND, HeldLane, LaneGroupRow
from app.server import access
from app.server.portal import call, current_bus
from app.web import bp
from app.web.forms import ABSENT, Form
from app.web.remembered import recorded_operator
from app.web.rendering import PageContext, render_page
from commandbus import UnknownDomainError
from commandbus.lanes import ALL_GROUPS, MAX_LANE_LIMIT, WEIGHTS
from commandbus.names import MAX_LANE

LIVE_SECONDS = 3
SHOWN_HELD = 50
LABELS = {
    "max_in_flight": "Limit of the group",
    "weight": "Weight",
    "lane_limit": "Limit of each lane",
    "on_trouble": "On trouble",
    "group": "Group",
    "domain": "Domain",
}


@bp.get("/lanes")
@access.viewer
def lane_groups() -> ResponseReturnValue:
    return render_page("pages/lanes.html", Lanes(), partials=("lanes_list",))


@bp.post("/lanes/settings")
@access.operator
def set_lane_group() -> ResponseReturnValue:
    form = Form(request.form)
    values = {"domain": form.value("domain"), "group": form.text("group")}
    try:
        if request.form.get("reset"):
            reset = form.read(inputs.LaneSettingsReset, values)
            if reset is not None:
                call(current_bus().reset_lane_group, reset.domain, reset.group)
                flash(f"{name_of(reset.group)} has the settings of all groups again.", "success")
        elif (change := _change(form, values)) is not None:
            given = change.model_dump(exclude={"domain", "group"})
            call(current_bus().set_lane_group, change.domain, change.group, **given)
            flash(f"{name_of(change.group)} has new settings. They hold at once.", "success")
    except UnknownDomainError:
        form.errors["domain"] = "There is no such domain"
    for name, message in form.errors.items():
        flash(f"Nothing was changed: {LABELS.get(name, name)}: {message}.", "error")
    return redirect(url_for("web.lane_groups"), 303)


def _change(form: Form, values: dict[str, Any]) -> inputs.LaneSettingsChange | None:
    most = form.number("max_in_flight")
    values = {
        **values,
        "max_in_flight": None if most is ABSENT else most,
        "weight": form.number("weight", point=".,"),
        "lane_limit": form.number("lane_limit"),
        "on_trouble": form.value("on_trouble"),
        "operator": recorded_operator(),
    }
    return form.read(inputs.LaneSettingsChange, values)


class Lanes(PageContext):
    """The values of the page and its refresh."""

    live_seconds = LIVE_SECONDS
    most_behind = MOST_BEHIND
    ranges: ClassVar[dict[str, float]] = {
        "group": MAX_LANE,
        "lane_limit": MAX_LANE_LIMIT,
        "least_weight": WEIGHTS[0],
        "most_weight": WEIGHTS[1],
    }

    @cached_property
    def groups(self) -> list[LaneGroupRow]:
        """The groups with work or settings."""
        return lanes.lane_groups()

    @cached_property
    def held(self) -> list[HeldLane]:
        """The lanes that commands in the troubleshooting queue hold, the first ones."""
        return lanes.held_lanes(limit=SHOWN_HELD)

    @property
    def totals(self) -> dict[str, float]:
        """The figures of all groups together."""
        return {
            "waiting": sum(row.waiting for row in self.groups),
            "in_flight": sum(row.in_flight for row in self.groups),
            "held": sum(row.held for row in self.groups),
            "rate": sum(row.rate_per_second for row in self.groups),
        }

    @property
    def domain_choices(self) -> list[tuple[str, str]]:
        """The domains, for the form."""
        return [(name, name) for name in domains()]

    @staticmethod
    def name_of(group: str) -> str:
        """What a group is called on the page."""
        return name_of(group)


def name_of(group: str) -> str:
    """What a group is called on the page."""
    if group == ALL_GROUPS:
        return "Every other group"
    return group or "Lanes without a group"
