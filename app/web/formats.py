"""Template filters: values as people read them. None is always an en dash."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from markupsafe import Markup, escape

from app.models.paging import TOTAL_LIMIT
from app.server.clock import now
from app.visible import visible, visible_json
from commandbus.failures import as_text as failure_text

NOTHING = "\N{EN DASH}"
SHORT_ID_LENGTH = 13


def number(value: float | None, digits: int = 0) -> str:
    """1234567 → 1,234,567"""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def count_text(count: int, is_exact: bool) -> str:
    """16,060; more than 10,000, where counting ended at that; at least 7, where a look ended."""
    if is_exact:
        return f"{count:,}"
    return f"more than {count:,}" if count >= TOTAL_LIMIT else f"at least {count:,}"


def percent(value: float | None, digits: int = 0) -> str:
    """0.125 → 12.5%, as far as *digits* allow."""
    return NOTHING if value is None else f"{value:.{digits}%}"


def milliseconds(value: float | None) -> str:
    """45 → 45 ms, 1234 → 1.23 s, 90000 → 1 min 30 s"""
    if value is None:
        return NOTHING
    if value < 1000:
        return f"{value:.1f} ms" if 0 < value < 10 else f"{value:.0f} ms"
    if value < 60_000:
        return f"{value / 1000:.2f} s" if value < 10_000 else f"{value / 1000:.1f} s"
    return seconds(value / 1000)


def seconds(value: float | timedelta | None) -> str:
    """The two largest units: 3 → 3 s, 3725 → 1 h 2 min"""
    if value is None:
        return NOTHING
    total = int(value.total_seconds() if isinstance(value, timedelta) else value)
    for size, unit, smaller, smaller_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if total >= size:
            rest = total % size // smaller
            return (
                f"{total // size} {unit} {rest} {smaller_unit}"
                if rest
                else f"{total // size} {unit}"
            )
    return f"{total} s"


def clock(value: float | timedelta | None) -> str:
    """A running time: 3725 → 01:02:05"""
    if value is None:
        return NOTHING
    total = int(value.total_seconds() if isinstance(value, timedelta) else value)
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"


def utc(value: datetime | None) -> str:
    """2026-01-31 14:02:10 UTC"""
    if value is None:
        return NOTHING
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def moment(value: datetime) -> str:
    """31 Jan, 14:02:10, with the year where it is another one; in UTC, as times.js writes it."""
    value = value.astimezone(UTC)
    year = "" if value.year == now().year else f" {value.year}"
    return f"{value.day} {value:%b}{year}, {value:%H:%M:%S}"


def age(value: datetime) -> str:
    """3 s ago, in 10 s: as times.js writes it, so that nothing moves when it takes over."""
    past = round((now() - value).total_seconds())
    if past == 0:
        return "now"
    length, unit = _largest_unit(abs(past))
    return f"{length} {unit} ago" if past > 0 else f"in {length} {unit}"


def elapsed(value: datetime) -> str:
    """How long it has been, as times.js writes it: 1 min 12 s"""
    return seconds(max(timedelta(), now() - value))


def iso(value: datetime) -> str:
    """What a time element's datetime attribute holds; milliseconds, always UTC."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix_iso(value: float) -> str:
    """The same for a moment given in Unix seconds."""
    return iso(datetime.fromtimestamp(value, UTC))


def short_id(value: object) -> str:
    """Beginning and end of an id: ids of one minute begin alike, as they start with the time."""
    text = str(value)
    return text if len(text) <= SHORT_ID_LENGTH else f"{text[:8]}…{text[-4:]}"


def pretty_json(value: Any) -> str:
    """JSON as people read it, each number digit by digit; else what JSON cannot say is its text."""
    numbers: dict[str, str] = {}
    mark = uuid4().hex

    def spelled(other: object) -> str:
        if not isinstance(other, Decimal):
            return str(other)
        key = f"{mark}-{len(numbers)}"
        numbers[f'"{key}"'] = f"{other:f}"
        return key

    text = json.dumps(value, indent=2, ensure_ascii=False, default=spelled)
    for key, number_text in numbers.items():
        text = text.replace(key, number_text)
    return visible_json(text)


def as_given(value: object) -> Markup:
    """A value that a form sends again, and that so must stay as it is."""
    return escape(value)


def shown(value: Any) -> Any:
    """What a template puts into the page: markup as it is, text so that all of it is seen."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value) if is_text else value


def error_details(value: Any) -> str:
    """The details of an error: a traceback as lines, anything else as JSON."""
    try:
        return failure_text(value)
    except (TypeError, KeyError, AttributeError):
        return pretty_json(value)


def _largest_unit(total: int) -> tuple[int, str]:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if total >= size:
            return total // size, unit
    return total, "s"


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "count_text": count_text,
    "percent": percent,
    "milliseconds": milliseconds,
    "seconds": seconds,
    "clock": clock,
    "utc": utc,
    "moment": moment,
    "age": age,
    "elapsed": elapsed,
    "iso": iso,
    "unix_iso": unix_iso,
    "short_id": short_id,
    "pretty_json": pretty_json,
    "error_details": error_details,
    "as_given": as_given,
}
