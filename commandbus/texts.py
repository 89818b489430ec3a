"""Text as PostgreSQL can store it, of whatever value, and bounded."""

from __future__ import annotations

import re
from collections import deque
from reprlib import Repr

MAX_TEXT = 4_000

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MOST_ITEMS = 20_000
"""And characters, of a container that is written in full before it is cut."""
_excerpts = Repr()
_excerpts.maxlevel = 3


def clean_text(value: object, limit: int = MAX_TEXT) -> str:
    """*value* as text that PostgreSQL can store, at most *limit* characters; never raises."""
    try:
        text = value if isinstance(value, str) else str(_bounded(value))
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - __str__ may raise anything
        text = f"<text of {type(value).__name__} not available: {type(exc).__name__}>"
    text = storable(text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _Excerpt:
    """Stands for a container of which only the beginning is written."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        return _excerpts.repr(self._value)


def _bounded(value: object) -> object:
    """*value*, or an excerpt of a container: its parts may stand in many places of it."""
    if not isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        return value
    left: list[object] = [value]
    items = 0
    while left:
        part = left.pop()
        items += 1
        if isinstance(part, dict):
            left += part.keys()
            left += part.values()
        elif isinstance(part, (list, tuple, set, frozenset, deque)):
            left += part
        elif isinstance(part, (str, bytes)):
            items += len(part)
        elif isinstance(part, int):
            items += part.bit_length() >> 2
        if items + len(left) > _MOST_ITEMS:
            return _Excerpt(value)
    return value


def storable(text: str) -> str:
    """*text* with U+FFFD for what PostgreSQL cannot store."""
    return _UNSTORABLE.sub("\ufffd", text)


def why_unstorable(text: str) -> str | None:
    """What is in *text* that PostgreSQL cannot store; None: nothing."""
    found = _UNSTORABLE.search(text)
    if found is None:
        return None
    if found[0] == "\x00":
        return "a NUL character, which cannot be converted to text in the database"
    return f"a lone surrogate ({found[0]!a}), which is no character"


def shown(value: object) -> str:
    """*value* as an error names it, at most 100 characters; never raises."""
    try:
        return repr(_bounded(value))[:100]
    except (Exception, SystemExit):  # noqa: BLE001 - a number of too many digits, a poisoned repr
        return f"<{type(value).__name__}>"
