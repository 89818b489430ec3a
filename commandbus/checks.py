"""What numbers may be: finite, within bounds, whole where something counts, and never a bool.

They are checked where they are given, so that nothing is accepted that breaks later.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TypeGuard

from commandbus.texts import shown

_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)

MAX_INTEGER = 2_147_483_647
"""What the database's integers hold."""
MAX_BIGINT = 9_223_372_036_854_775_807
MAX_COUNT = 1_000_000
"""Of one call or set."""
MAX_SECONDS = 10 * 366 * 86_400
"""Ten years: no duration is longer."""
MAX_LEASE_SECONDS = 366 * 86_400


def is_number(value: object) -> TypeGuard[float]:
    """Whether *value* is a finite number; a bool, which Python counts as 0 or 1, is none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(name: str, value: object, low: float, high: float) -> None:
    """*value* is a number from *low* to *high*; raises ValueError otherwise."""
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a number {_bounds(low, high)}, not {shown(value)}")


def check_positive(name: str, value: object, high: float = MAX_SECONDS) -> None:
    """*value* is a number above 0 and at most *high*; raises ValueError otherwise."""
    if not is_number(value) or not 0 < value <= high:
        raise ValueError(f"{name} must be a number above 0 and at most {high}, not {shown(value)}")


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """*value* is a whole number from *low* to *high*; raises ValueError otherwise."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number {_bounds(low, high)}, not {shown(value)}")


def _bounds(low: float, high: float) -> str:
    return f"from {low} to {high}"


def utc(name: str, value: object) -> datetime:
    """The moment that *value* says, in UTC; a time without a zone stays as it is.

    PostgreSQL knows fewer zones than Python. Raises ValueError for what is no datetime.
    """
    if not isinstance(value, datetime):
        raise ValueError(f"{name} must be a datetime, not {shown(value)}")
    if value.utcoffset() is None:
        return value.replace(tzinfo=None)
    try:
        return value.astimezone(UTC)
    except OverflowError:  # within a day of the first or the last moment there is
        return _FIRST_MOMENT if value.year == 1 else _LAST_MOMENT
