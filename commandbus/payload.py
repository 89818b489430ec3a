"""JSON in and out: what is stored is clean and bounded, what is read cannot spoil a batch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from commandbus.errors import InvalidCommandError

T = TypeVar("T")

MAX_DEPTH = 64
MAX_DATA_DEPTH = 200
MAX_ITEMS = 500_000
MAX_RESULT_BYTES = 1_000_000
MAX_TEXT = 4_000

# A call of json.dumps with options makes an encoder each time, which costs more than its work.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def decode_json(text: str) -> Any:
    """Read JSON; raises ValueError or RecursionError for what Python cannot hold."""
    return json.loads(text)


def decode_or_note(text: str | None) -> Any:
    """The value of stored JSON, or a note in its place where Python cannot hold it."""
    if text is None:
        return None
    try:
        return decode_json(text)
    except (ValueError, RecursionError) as exc:
        return {"_undecodable": clean_text(exc, 200), "start": text[:1000]}


def check_json(name: str, value: Any) -> None:
    """*value* can be sent as JSON, and read again; raises InvalidCommandError otherwise."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidCommandError(f"{name} cannot be stored as JSON: {exc}") from exc
    if is_deep(text, value, MAX_DATA_DEPTH):
        raise InvalidCommandError(f"{name} must not be nested more than {MAX_DATA_DEPTH} deep")


def clean_text(value: object, limit: int = MAX_TEXT) -> str:
    """*value* as text that PostgreSQL can store, at most *limit* characters; never raises."""
    try:
        text = value if isinstance(value, str) else str(value)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - __str__ may raise anything
        text = f"<text of {type(value).__name__} not available: {type(exc).__name__}>"
    text = _UNSTORABLE.sub("\ufffd", text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def result_json(value: Any) -> str:
    """A handler's result as JSON text that PostgreSQL can store.

    What JSON cannot hold becomes text; NUL and lone surrogates become U+FFFD, NaN and infinities
    become null. What is too large or too deep is replaced by a note that says so. Never raises.
    """
    try:
        text = _encode(value)
        plain = "\\u0000" not in text and "\\ud" not in text
        plain = plain and (len(text) > MAX_RESULT_BYTES or not is_deep(text, value))
    except Exception:  # noqa: BLE001 - not JSON, or what a value's own methods raise
        plain = False
    if not plain:
        text = _encode(_Copy().of(value, 0))
    if len(text) > MAX_RESULT_BYTES:
        return json.dumps({"_truncated": True, "size_bytes": len(text), "start": text[:1000]})
    return text


def plain_json(value: Any) -> Any:
    """*value* made of what JSON and PostgreSQL can hold, bounded; never raises."""
    return json.loads(result_json(value))


def is_deep(text: str, value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether *value*, whose JSON is *text*, is nested more than *limit* deep."""
    if text.count("[") + text.count("{") <= limit:
        return False
    level = [value]
    for _ in range(limit):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list, tuple))
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True


class _Copy:
    """A copy of a value, made of what JSON holds; anything else becomes text.

    Its size is bounded, since the parts of a value may hold each other in any number of ways.
    """

    def __init__(self) -> None:
        self._items_left = MAX_ITEMS
        self._holders: set[int] = set()

    def of(self, value: Any, depth: int) -> Any:
        match value:
            case None | bool():
                return value
            case int():
                return int(value) if -(10**300) < value < 10**300 else clean_text(f"{value:#x}")
            case float():
                return float(value) if math.isfinite(value) else None
            case str():
                return _UNSTORABLE.sub("\ufffd", value)
            case Mapping() | list() | tuple() | set() | frozenset():
                return self._container(value, depth)
            case _:
                return clean_text(value)

    def _container(self, value: Any, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            return "<nested too deep>"
        if id(value) in self._holders:
            return "<holds itself>"
        if self._items_left <= 0:
            return "<too large>"
        self._holders.add(id(value))
        try:
            if isinstance(value, Mapping):
                return {
                    clean_text(key, 200): self.of(item, depth + 1)
                    for key, item in self._bounded(value.items())
                }
            return [self.of(item, depth + 1) for item in self._bounded(value)]
        except Exception as exc:  # noqa: BLE001 - a container's own methods may raise anything
            return f"<{type(value).__name__} cannot be read: {type(exc).__name__}>"
        finally:
            self._holders.discard(id(value))

    def _bounded(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            if self._items_left <= 0:
                return
            self._items_left -= 1
            yield item
