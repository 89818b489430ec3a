"""What numbers may be: finite, within bounds, whole where something counts, and never a bool."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Whether *value* is a finite number; a bool, which Python counts as 0 or 1, is none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(name: str, value: object, low: float, high: float | None = None) -> None:
    """*value* is a number from *low* to *high*; raises ValueError otherwise."""
    if not is_number(value) or value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be a number {_bounds(low, high)}, not {value!r:.100}")


def check_positive(name: str, value: object) -> None:
    """*value* is a number above 0; raises ValueError otherwise."""
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be a number above 0, not {value!r:.100}")


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """*value* is a whole number from *low* to *high*; raises ValueError otherwise."""
    if type(value) is not int or value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be a whole number {_bounds(low, high)}, not {value!r:.100}")


def _bounds(low: float, high: float | None) -> str:
    return f"of at least {low}" if high is None else f"from {low} to {high}"
