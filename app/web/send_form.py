"""The forms of the send page, as the models that read the API's bodies."""

from __future__ import annotations

from typing import Any

from app.actions.inputs import LoadTest, SendCommand
from app.actions.load_tests import order_of
from app.loadtest.generating import MIXED, BulkOrder
from app.testcommand.behaviors import PUBLIC_TYPES, BehaviorType
from app.web.forms import ABSENT, Form, given

MIXES = {"success": {BehaviorType.SUCCESS: 100}, "mixed": MIXED}
"""The mixes on offer beside one of the user's own; percentages."""
# Which behaviours use which field; the others do not show it.
ERROR_TYPES = "|".join(
    kind.value for kind in PUBLIC_TYPES if kind not in (BehaviorType.SUCCESS, BehaviorType.TIMEOUT)
)
SHARES = {kind: f"share_{kind.value}" for kind in PUBLIC_TYPES}
"""The field of each behaviour's percentage."""
LOAD_PLACES = {
    "max_attempts": "load_max_attempts",
    "behavior_distribution": "mix",
    **{f"behavior_distribution.{kind.value}": name for kind, name in SHARES.items()},
}


def read_single(form: Form, *, timeout_ms: int) -> SendCommand | None:
    """The command that was asked for; None with errors in *form* where it cannot be.

    *timeout_ms*: how long a timeout runs for which no time is given.
    """
    behavior = given(
        {
            "type": form.value("type"),
            "execution_time_ms": form.number("execution_time_ms"),
            "transient_failures": form.number("transient_failures"),
            "error_code": form.value("error_code"),
            "error_message": form.value("error_message"),
        }
    )
    if behavior.get("type") == BehaviorType.TIMEOUT and not behavior.get("execution_time_ms"):
        behavior["execution_time_ms"] = timeout_ms
    values = {
        "behavior": behavior,
        "payload": form.json("payload"),
        "command_id": form.uuid("command_id"),
        "correlation_id": form.uuid("correlation_id"),
        "reply_to": form.value("reply_to"),
        "lane": form.value("lane"),
        "max_attempts": form.number("max_attempts"),
    }
    return form.read(SendCommand, values)


def read_load(form: Form, *, timeout_ms: int) -> BulkOrder | None:
    """The load test that was asked for; None with errors in *form* where it cannot be.

    *timeout_ms*: how long its timeouts run where no time is given.
    """
    values = {
        "count": form.number("count"),
        "behavior_distribution": _shares(form),
        "delay_ms": form.number("delay_ms"),
        "timeout_ms": form.number("timeout_ms"),
        "max_attempts": form.number("load_max_attempts"),
        "name": form.value("name"),
        "lanes": form.number("lanes"),
        "groups": form.number("groups"),
    }
    load = form.read(LoadTest, values, LOAD_PLACES)
    return None if load is None else order_of(load, lambda: load.timeout_ms or timeout_ms)


def _shares(form: Form) -> dict[str, Any]:
    """The percentages of the chosen mix, without those that are empty or 0."""
    if form.text("mix") != "custom":
        mix = MIXES.get(form.text("mix"), MIXES["success"])
        return {kind.value: share for kind, share in mix.items()}
    typed = {kind.value: form.number(name, point=".,") for kind, name in SHARES.items()}
    return {kind: share for kind, share in typed.items() if share not in (ABSENT, 0)}
