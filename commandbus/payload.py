"""JSON in and out: what is stored is clean and bounded, what is read cannot spoil a batch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 64
MAX_RESULT_BYTES = 1_000_000
MAX_TEXT = 4_000

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def decode_json(text: str) -> Any:
    """Read JSON; raises ValueError or RecursionError for what Python cannot hold."""
    return json.loads(text)


def clean_text(value: object, limit: int = MAX_TEXT) -> str:
    """*value* as text that PostgreSQL can store, at most *limit* characters; never raises."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception as exc:  # noqa: BLE001 - __str__ may raise anything
        text = f"<text of {type(value).__name__} not available: {type(exc).__name__}>"
    text = _UNSTORABLE.sub("\ufffd", text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def result_json(value: Any) -> str:
    """A handler's result as JSON text that PostgreSQL can store.

    What JSON cannot hold becomes text; NUL and lone surrogates become U+FFFD, NaN and infinities
    become null. What is too large or too deep is replaced by a note that says so. Never raises.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except Exception:  # noqa: BLE001 - not JSON, or what a value's own methods raise
        text = json.dumps(_plain(value, 0), separators=(",", ":"))
    if "\\u0000" in text or "\\ud" in text:
        text = json.dumps(_plain(value, 0), separators=(",", ":"))
    if len(text) > MAX_RESULT_BYTES:
        return json.dumps({"_truncated": True, "size_bytes": len(text), "start": text[:1000]})
    return text


def plain_json(value: Any) -> Any:
    """*value* made of what JSON and PostgreSQL can hold, bounded; never raises."""
    return json.loads(result_json(value))


def _plain(value: Any, depth: int) -> Any:
    """*value* made of what JSON holds, by copying; anything else becomes text."""
    if depth > MAX_DEPTH:
        return "<nested too deep>"
    match value:
        case None | bool():
            return value
        case int():
            return int(value) if -(10**300) < value < 10**300 else clean_text(f"{value:#x}")
        case float():
            return float(value) if math.isfinite(value) else None
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case Mapping():
            return {clean_text(key, 200): _plain(item, depth + 1) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item, depth + 1) for item in value]
        case _:
            return clean_text(value)
