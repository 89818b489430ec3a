"""The forms of the send page: what was typed, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from app.loadtest.generating import MAX_COUNT, MIXED, BulkOrder
from app.loadtest.runs import LONGEST_NAME, is_name
from app.testcommand.behaviors import (
    LONGEST_QUEUE_NAME,
    MAX_EXECUTION_MS,
    MAX_REPEATS,
    PUBLIC_TYPES,
    Behavior,
    BehaviorDistribution,
    BehaviorType,
)
from app.web.form_values import FormError, json_value, text_value
from commandbus import uuid7
from commandbus.bus import MAX_ATTEMPTS_LIMIT

MIXES = {"success": {BehaviorType.SUCCESS: 100}, "mixed": MIXED}
"""The mixes on offer beside one of the user's own; percentages."""
MOST_DIGITS = 12
_PERCENT = re.compile(r"[0-9]{1,12}(\.[0-9]{0,3})?|\.[0-9]{1,3}")
# Which behaviours use which field; the others do not show it.
ERROR_TYPES = "|".join(
    kind.value for kind in PUBLIC_TYPES if kind not in (BehaviorType.SUCCESS, BehaviorType.TIMEOUT)
)


@dataclass
class Form:
    """The texts as they were typed, and the error of each field."""

    values: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        return self.values.get(name, "").strip()

    def number(self, name: str, low: int, high: int) -> int | None:
        """A whole number in its range; None where the field is empty or wrong."""
        text = self.text(name)
        if not text:
            return None
        digits = text.lstrip("0") or "0"
        is_whole = digits.isascii() and digits.isdigit() and len(digits) <= MOST_DIGITS
        if not is_whole or not low <= int(digits) <= high:
            self.errors[name] = f"A whole number from {low:,} to {high:,}"
            return None
        return int(digits)

    def percent(self, name: str) -> Decimal | None:
        """A number from 0 to 100, as it was written; None where the field is empty or wrong."""
        text = self.text(name).replace(",", ".")
        if not text:
            return None
        if not _PERCENT.fullmatch(text) or Decimal(text) > 100:
            self.errors[name] = "A number from 0 to 100, with at most 3 decimals"
            return None
        return Decimal(text)

    def uuid(self, name: str) -> UUID | None:
        text = self.text(name)
        if not text:
            return None
        try:
            return UUID(text)
        except ValueError:
            self.errors[name] = "This is not a UUID"
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleCommand:
    """One command to send."""

    behavior: Behavior
    payload: dict[str, Any]
    command_id: UUID | None
    correlation_id: UUID | None
    reply_to: str | None
    max_attempts: int | None


def read_single(form: Form, *, timeout_ms: int) -> SingleCommand | None:
    """The command that was asked for; None with errors in *form* where it cannot be.

    *timeout_ms*: how long a timeout runs for which no time is given.
    """
    behavior = _behavior(form, timeout_ms)
    if behavior is None:
        return None
    command = SingleCommand(
        behavior=behavior,
        payload=_payload(form),
        command_id=form.uuid("command_id"),
        correlation_id=form.uuid("correlation_id"),
        reply_to=_reply_to(form),
        max_attempts=form.number("max_attempts", 1, MAX_ATTEMPTS_LIMIT),
    )
    return None if form.errors else command


def _behavior(form: Form, timeout_ms: int) -> Behavior | None:
    given: dict[str, Any] = {"type": form.text("type")}
    for name in ("execution_time_ms", "transient_failures"):
        most = MAX_EXECUTION_MS if name == "execution_time_ms" else MAX_REPEATS
        number = form.number(name, 0, most)
        if number is not None:
            given[name] = number
    if given["type"] == BehaviorType.TIMEOUT and not given.get("execution_time_ms"):
        given["execution_time_ms"] = timeout_ms
    for name in ("error_code", "error_message"):
        if form.text(name):
            given[name] = form.text(name)
    try:
        return Behavior.model_validate(given)
    except ValidationError as exc:
        for error in exc.errors():
            form.errors.setdefault(str(error["loc"][0]) if error["loc"] else "type", error["msg"])
        return None


def _reply_to(form: Form) -> str | None:
    try:
        return text_value(form.values, "reply_to", LONGEST_QUEUE_NAME)
    except FormError as exc:
        form.errors["reply_to"] = str(exc)
        return None


def _payload(form: Form) -> dict[str, Any]:
    try:
        payload = json_value(form.values, "payload")
    except FormError as exc:
        form.errors["payload"] = str(exc)
        return {}
    if payload is None and not form.text("payload"):
        return {}
    if not isinstance(payload, dict):
        form.errors["payload"] = "The payload is a JSON object: {…}"
        return {}
    return payload


def read_load(form: Form, *, timeout_ms: int) -> BulkOrder | None:
    """The load test that was asked for; None with errors in *form* where it cannot be.

    *timeout_ms*: how long its timeouts run where no time is given.
    """
    count = form.number("count", 1, MAX_COUNT)
    if count is None:
        form.errors.setdefault("count", "How many commands?")
    delay = form.number("delay_ms", 0, MAX_EXECUTION_MS)
    timeout = form.number("timeout_ms", 0, MAX_EXECUTION_MS)
    budget = form.number("load_max_attempts", 1, MAX_ATTEMPTS_LIMIT)
    if form.text("name") and not is_name(form.text("name")):
        form.errors["name"] = f"At most {LONGEST_NAME} characters, all printable"
    distribution = _distribution(form)
    if form.errors or count is None or distribution is None:
        return None
    return BulkOrder(
        count=count,
        distribution=distribution,
        delay_ms=delay or 0,
        timeout_ms=(timeout or timeout_ms) if BehaviorType.TIMEOUT in distribution.root else None,
        max_attempts=budget,
        batch_id=uuid7(),
    )


def _distribution(form: Form) -> BehaviorDistribution | None:
    shares: Mapping[BehaviorType, int | Decimal]
    if form.text("mix") == "custom":
        typed = {kind: form.percent(f"share_{kind.value}") for kind in PUBLIC_TYPES}
        shares = {kind: share for kind, share in typed.items() if share}
    else:
        shares = dict(MIXES.get(form.text("mix"), MIXES["success"]))
    if any(name.startswith("share_") for name in form.errors):
        return None
    try:
        return BehaviorDistribution({kind: float(share) for kind, share in shares.items()})
    except ValidationError as exc:
        form.errors["mix"] = exc.errors()[0]["msg"]
        return None
