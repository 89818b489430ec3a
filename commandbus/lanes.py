"""Settings of groups of lanes, checked where they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from commandbus.checks import is_number
from commandbus.errors import InvalidCommandError
from commandbus.names import MAX_LANE, check_text
from commandbus.texts import shown

ALL_GROUPS = "*"
"""Stands for the groups that have no settings of their own."""
MAX_LANE_LIMIT = 10_000
MAX_IN_FLIGHT = 1_000_000
WEIGHTS = (0.001, 1_000)
ON_TROUBLE = ("hold", "skip")


def check_lane_group(group: object) -> None:
    """*group* can be the group of a lane, or stands for all; raises InvalidCommandError."""
    check_text("group", group, 0, MAX_LANE)
    if "/" in str(group):
        raise InvalidCommandError(f"group must not hold a slash, and is {shown(group)}")


def lane_changes(given: Mapping[str, object]) -> dict[str, Any]:
    """The settings of *given* as the database takes them; raises InvalidCommandError."""
    checks = {
        "max_in_flight": lambda value: value is None or _is_whole(value, 0, MAX_IN_FLIGHT),
        "weight": lambda value: is_number(value) and WEIGHTS[0] <= value <= WEIGHTS[1],
        "lane_limit": lambda value: _is_whole(value, 1, MAX_LANE_LIMIT),
        "on_trouble": lambda value: isinstance(value, str) and value in ON_TROUBLE,
    }
    wanted = {
        "max_in_flight": "a whole number from 0 to 1,000,000, or None for no limit",
        "weight": "a number from 0.001 to 1,000",
        "lane_limit": "a whole number from 1 to 10,000",
        "on_trouble": "hold or skip",
    }
    for name, value in given.items():
        if not checks[name](value):
            raise InvalidCommandError(f"{name} must be {wanted[name]}, not {shown(value)}")
    return dict(given)


def _is_whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high
