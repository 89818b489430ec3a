"""Groups of lanes: what waits in them, what holds them, and their settings."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from app.actions import inputs
from app.api import bp
from app.api.routing import Answer
from app.models import lanes
from app.server import access
from app.server.portal import call, current_bus


class LaneSettingsItem(Answer):
    """The settings that hold for a group."""

    max_in_flight: int | None
    weight: float
    lane_limit: int
    on_trouble: str


class LaneGroupItem(LaneSettingsItem):
    """A group of lanes."""

    domain: str
    group: str
    waiting: int
    in_flight: int
    held: int = Field(description="Lanes that commands in the troubleshooting queue hold")
    oldest_at: datetime | None
    oldest_is_exact: bool = Field(description="false: only the first 1,000 lanes were looked at")
    rate_per_second: float = Field(description="Commands ended in the last minute")
    is_own: bool = Field(description="Whether the settings are its own")
    changed_at: datetime | None
    changed_by: str | None


class LaneGroups(Answer):
    """Groups of lanes, by domain and name."""

    groups: list[LaneGroupItem]


class HeldLaneItem(Answer):
    """A lane, and the command that holds it."""

    domain: str
    lane: str
    command_id: UUID
    taken_at: datetime
    waiting: int = Field(description="How many wait in the lane; 1000 means: at least")


class HeldLanes(Answer):
    """Lanes that are held, the longest held first."""

    lanes: list[HeldLaneItem]


class LaneSettingsWereReset(Answer):
    """Whether there was anything to take back."""

    reset: bool


@bp.get("/lanes/groups", responses={200: LaneGroups})
@access.viewer
def lane_groups(query: inputs.DomainQuery) -> Any:
    """The groups that have something to do, had a short time ago, or have settings."""
    found = lanes.lane_groups(query.domain)
    fields = LaneGroupItem.model_fields.keys() - {"group"}
    items = [
        LaneGroupItem(group=row.lane_group, **{name: getattr(row, name) for name in fields})
        for row in found
    ]
    return LaneGroups(groups=items)


@bp.put("/lanes/groups", responses={200: LaneSettingsItem})
@access.operator
def set_lane_group(body: inputs.LaneSettingsChange) -> Any:
    """Change settings of a group; workers follow at once."""
    given = body.model_dump(exclude_unset=True)
    domain, group = body.domain, body.group
    for name in ("domain", "group", "operator"):
        given.pop(name, None)
    return LaneSettingsItem.model_validate(
        call(current_bus().set_lane_group, domain, group, operator=body.operator, **given),
        from_attributes=True,
    )


@bp.post("/lanes/groups/reset", responses={200: LaneSettingsWereReset})
@access.operator
def reset_lane_group(body: inputs.LaneSettingsReset) -> Any:
    """Take a group's own settings back: those of "*" hold again."""
    done = call(current_bus().reset_lane_group, body.domain, body.group)
    return LaneSettingsWereReset(reset=done)


@bp.get("/lanes/held", responses={200: HeldLanes})
@access.viewer
def held_lanes(query: inputs.HeldLanesQuery) -> Any:
    """The lanes that commands in the troubleshooting queue hold."""
    found = lanes.held_lanes(query.domain, limit=query.limit)
    return HeldLanes(
        lanes=[HeldLaneItem.model_validate(each, from_attributes=True) for each in found]
    )
