"""JSON in and out: what is stored is clean and bounded, what is read cannot spoil a batch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from commandbus.errors import InvalidCommandError
from commandbus.texts import MAX_TEXT as MAX_TEXT
from commandbus.texts import clean_text as clean_text
from commandbus.texts import shown, storable, why_unstorable

T = TypeVar("T")

MAX_DEPTH = 64
MAX_DATA_DEPTH = 200
MAX_ITEMS = 500_000
MAX_RESULT_BYTES = 1_000_000
MAX_DATA_BYTES = 200_000_000
"""As JSON; the database takes a little more."""
_SURE_DIGITS = 15
"""A float holds every decimal number of so many digits, and of some more."""


def exact_number(text: str) -> float | Decimal:
    """The number that JSON spells: a Decimal where no float says the same."""
    number = float(text)
    if len(text) <= _SURE_DIGITS + 1 and "e" not in text and "E" not in text:
        return number
    try:
        exact = Decimal(text)
    except InvalidOperation as exc:
        raise ValueError(f"the number {text[:40]} is beyond all bounds") from exc
    return number if Decimal(repr(number)) == exact else exact


# A call of json.dumps with options makes an encoder each time, which costs more than its work.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_decode = json.JSONDecoder(parse_float=exact_number).decode


def decode_json(text: str) -> Any:
    """Read JSON; raises ValueError or RecursionError for what Python cannot hold.

    A number that no float holds digit by digit is a Decimal.
    """
    return _decode(text)


def decode_or_note(text: str | None) -> Any:
    """The value of stored JSON, or a note in its place where Python cannot hold it."""
    if text is None:
        return None
    try:
        return decode_json(text)
    except (ValueError, RecursionError) as exc:
        return {"_undecodable": clean_text(exc, 200), "start": text[:1000]}


def json_text(name: str, value: Any, most: int = MAX_DATA_BYTES) -> str:
    """*value* as JSON that can be stored, and read again as it was given.

    Keys that are no text become text, as in all of Python's JSON. Raises InvalidCommandError for
    what JSON or PostgreSQL cannot hold, and where two keys would become the same.
    """
    try:
        text = _encode(value)
        if len(text) > most:
            raise ValueError(f"it takes {len(text)} bytes as JSON, and may take {most}")
        if is_deep(text, value, MAX_DATA_DEPTH):
            raise ValueError(f"it is nested more than {MAX_DATA_DEPTH} deep")
        if (twice := key_given_twice(value)) is not None:
            raise ValueError(f"two keys of one object become {shown(twice)}")
        if "\\u0000" in text or "\\ud" in text:  # perhaps: characters beyond 16 bits have \ud, too
            _check_texts(value)
    except Exception as exc:  # a value's own methods may raise anything
        raise InvalidCommandError(f"{name} cannot be stored as JSON: {_reason(exc)}") from exc
    return text


def _reason(exc: Exception) -> str:
    text = clean_text(exc)
    if isinstance(exc, TypeError) and "Decimal" in text:
        return f"{text}. Send it as text, or as a float where it may be rounded"
    return text


def _check_texts(value: Any) -> None:
    """No text in *value*, which is JSON, holds what PostgreSQL cannot store."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            if (reason := why_unstorable(item)) is not None:
                raise ValueError(f"text must not hold {reason}")
        elif isinstance(item, dict):
            left.extend(item)
            left.extend(item.values())
        elif isinstance(item, (list, tuple)):
            left.extend(item)


def key_given_twice(value: Any) -> str | None:
    """The text that two keys of one object in *value*, which is JSON, become; None: there is none.

    1 and "1" are two keys for Python, and one for JSON.
    """
    if not isinstance(value, (dict, list, tuple)):
        return None
    left = [value]
    while left:
        container = left.pop()
        if isinstance(container, dict):
            for key in container:
                if not isinstance(key, str):
                    keys = Counter(map(_key_text, container))
                    [(text, count)] = keys.most_common(1)
                    if count > 1:
                        return text
                    break
            items: Iterable[Any] = container.values()
        else:
            items = container
        for item in items:
            if isinstance(item, (dict, list, tuple)):
                left.append(item)
    return None


def _key_text(key: object) -> str:
    return key if isinstance(key, str) else str(_encode(key)).strip('"')


def result_json(value: Any) -> str:
    """A handler's result as JSON text that PostgreSQL can store.

    What JSON cannot hold becomes text; NUL and lone surrogates become U+FFFD, NaN and infinities
    become null, and of two keys that would become the same the second gets a number. What is too
    large or too deep is replaced by a note that says so. Never raises.
    """
    try:
        text = _encode(value)
        plain = "\\u0000" not in text and "\\ud" not in text
        if plain and len(text) <= MAX_RESULT_BYTES:
            plain = not is_deep(text, value) and key_given_twice(value) is None
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


def _cleaned_key(key: object) -> str:
    """*key* as JSON would spell it, where it can."""
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    return clean_text(key, 200)


def _other_than(taken: Mapping[str, Any], key: str) -> str:
    """*key*, with a number where it is taken."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key} ({number})"
    return free


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
                return storable(value)
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
                copy: dict[str, Any] = {}
                for key, item in self._bounded(value.items()):
                    copy[_other_than(copy, _cleaned_key(key))] = self.of(item, depth + 1)
                return copy
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
