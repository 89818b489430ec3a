"""JSON in and out: what is stored is clean and bounded, what is read cannot spoil a batch."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PurePath
from types import CoroutineType
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from commandbus.errors import InvalidCommandError
from commandbus.texts import MAX_TEXT as MAX_TEXT
from commandbus.texts import clean_text as clean_text
from commandbus.texts import shown, storable, why_unstorable

T = TypeVar("T")

MAX_DEPTH = 64
MAX_DATA_DEPTH = 200
MAX_ITEMS = 500_000
MAX_CHARACTERS = 10_000_000
"""Of a result's texts, before it is cut."""
MAX_RESULT_BYTES = 1_000_000
MAX_DATA_BYTES = 200_000_000
"""As JSON; the database takes a little more."""
MAX_HEADERS_BYTES = 8_192
"""As JSON."""
MAX_DATA_VALUES = 8_000_000
"""PostgreSQL reads no object of more than 8,388,608 members."""
MAX_WRITTEN = 900_000_000
"""Characters of JSON as PostgreSQL writes it; it writes no text of more than 1 GB."""
_LONGEST_NUMBER = 330
"""So many characters has a float with an exponent, written out."""
_EXPONENT = re.compile(r"\d[eE][+-]\d")
_MANY = 1_000_000
_TOO_LONG = 10**4_300
"""The first whole number with more digits than Python reads, 4,300."""
_MOST_BITS = _TOO_LONG.bit_length()
_SURE_DIGITS = 15
"""A float holds every decimal number with this many digits, and some with more."""


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

# Types whose text says all, and can be read again.
_AS_TEXT = (
    Decimal,
    UUID,
    PurePath,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

_Path = tuple[Any, ...]


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


class SizedJson(NamedTuple):
    """JSON, and how many values are in it."""

    text: str
    values: int


def json_text(name: str, value: Any, most: int = MAX_DATA_BYTES) -> str:
    """*value* as JSON that can be stored, and read again as it was given.

    Keys that are no text become text, as in all of Python's JSON. Raises InvalidCommandError for
    what JSON or PostgreSQL cannot hold, and where two keys would become the same.
    """
    return sized_json(name, value, most).text


def sized_json(name: str, value: Any, most: int = MAX_DATA_BYTES) -> SizedJson:
    """What ``json_text`` says, and how many values are in it."""
    try:
        # First: parts that stand in many places make more JSON than any memory holds.
        values = measured(value, MAX_DATA_DEPTH, MAX_DATA_VALUES, most)
        text = _encode(value)
        if len(text) > most:
            raise ValueError(f"it takes {len(text)} bytes as JSON, and may take {most}")
        if len(text) > _MANY:
            _check_written(text)
        if "\\u0000" in text or "\\ud" in text:  # perhaps: characters beyond 16 bits have \ud, too
            _check_texts(value)
    except Exception as exc:  # a value's own methods may raise anything
        raise InvalidCommandError(f"{name} cannot be stored as JSON: {_reason(exc)}") from exc
    return SizedJson(text, values)


def checked_headers(headers: object) -> dict[str, Any]:
    """The headers of a command, which are JSON by themselves.

    Raises InvalidCommandError unless they are a mapping from text to what JSON holds, of at most
    MAX_HEADERS_BYTES.
    """
    if not isinstance(headers, Mapping) or not all(isinstance(name, str) for name in headers):
        raise InvalidCommandError(
            f"headers must be a mapping with text as keys, not {shown(headers)}"
        )
    given = dict(headers)
    json_text("headers", given, MAX_HEADERS_BYTES)
    return given


def measured(value: Any, depth: int, values: int, characters: int) -> int:
    """How many values are in *value*, which is JSON; what stands in two places counts twice.

    Raises ValueError, before it has looked at more than that, where it is nested more than *depth*
    deep, holds more than so many *values* or (counted low) *characters*, a number that nobody
    could read, or an object of which two keys become the same text: 1 and "1" are two keys for
    Python, not for JSON.
    """
    level: list[Any] = [(value,)]
    count = 0
    size = 0
    for _ in range(depth + 1):
        below: list[Any] = []
        for container in level:
            count += len(container)
            if count > values:
                raise ValueError(f"it holds more than {values:,} values")
            items: Iterable[Any] = container
            if isinstance(container, dict):
                items = container.values()
                try:
                    size += len("".join(container))
                except TypeError:
                    _check_keys(container)
            for item in items:
                kind = type(item)
                if kind is str:
                    size += len(item)
                elif kind is dict or kind is list:
                    below.append(item)
                elif isinstance(item, int):
                    if (bits := item.bit_length()) >= _MOST_BITS and abs(item) >= _TOO_LONG:
                        raise ValueError("it holds a number of more digits than can be read again")
                    size += bits >> 2
                elif isinstance(item, str):
                    size += len(item)
                elif isinstance(item, (dict, list, tuple)):
                    below.append(item)
            if size > characters:
                raise ValueError(f"it takes more than {characters} bytes as JSON")
        if not below:
            return count
        level = below
    raise ValueError(f"it is nested more than {depth} deep, or holds itself")


def _check_keys(container: dict[Any, Any]) -> None:
    [(text, count)] = Counter(map(_key_text, container)).most_common(1)
    if count > 1:
        raise ValueError(f"two keys of one object become {shown(text)}")


def _check_written(text: str) -> None:
    """PostgreSQL writes 1e300 with all of its digits."""
    most = (MAX_WRITTEN - len(text)) // _LONGEST_NUMBER
    if text.count("e+") + text.count("e-") <= most:  # some may be text
        return
    if sum(1 for _ in _EXPONENT.finditer(text)) > most:
        raise ValueError(f"its numbers take more than {MAX_WRITTEN} characters written out")


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


def _key_text(key: object) -> str:
    return key if isinstance(key, str) else str(_encode(key)).strip('"')


class UnstorableValueError(ValueError):
    """A value that JSON cannot hold, and that no rule turns into one; the text says which part."""


def result_json(value: Any) -> str:
    """A handler's result as JSON text that PostgreSQL can store.

    What JSON cannot hold is converted as docs/handlers.md says (moments, sets, dataclasses, ...);
    NUL and lone surrogates become U+FFFD, NaN and infinities null. What is too large, too deep or
    holds itself is replaced by a note that says so. Raises UnstorableValueError for all else.
    """
    return _json(value, strict=True)


def plain_json(value: Any) -> Any:
    """*value* made of what JSON and PostgreSQL can hold, bounded; never raises.

    It is converted as a result is; what cannot be becomes its text.
    """
    return json.loads(_json(value, strict=False))


def _json(value: Any, *, strict: bool) -> str:
    try:
        measured(value, MAX_DEPTH, MAX_ITEMS, MAX_CHARACTERS)
        text = _encode(value)
        plain = "\\u0000" not in text and "\\ud" not in text
    except Exception:  # noqa: BLE001 - not JSON, or what a value's own methods raise
        plain = False
    if not plain:
        text = _encode(_copied(value, strict=strict))
    if len(text) > MAX_RESULT_BYTES:
        return json.dumps({"_truncated": True, "size_bytes": len(text), "start": text[:1000]})
    return text


def _copied(value: Any, *, strict: bool) -> Any:
    try:
        return _Copy(strict=strict).of(value, 0, ())
    except UnstorableValueError:
        raise
    except Exception as exc:  # a value's own methods may raise anything
        name, error = _type_name(value), _type_name(exc)
        if strict:
            raise UnstorableValueError(f"result itself is a {name} that raises {error}") from exc
        return f"<{name} cannot be read: {error}>"


def _other_than(taken: Mapping[str, Any], key: str) -> str:
    """*key*, with a number where it is taken."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key} ({number})"
    return free


def _type_name(value: object) -> str:
    return clean_text(type(value).__name__, 200)


class _Copy:
    """A copy of a value, made of what JSON holds; of what no rule converts, an error or its text.

    Its size is bounded, since the parts of a value may hold each other in any number of ways.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._items_left = MAX_ITEMS
        self._characters_left = MAX_CHARACTERS
        self._holders: set[int] = set()

    def of(self, value: Any, depth: int, path: _Path) -> Any:
        match value:
            case None | bool():
                return value
            case Enum():
                return self._inside(value, depth, lambda: self.of(value.value, depth + 1, path))
            case int():
                self._characters_left -= value.bit_length() // 3
                return self._whole(int(value), path)
            case float():
                return float(value) if math.isfinite(value) else None
            case str():
                return self._text(value)
            case date() | time():
                return value.isoformat()
            case timedelta():
                return value.total_seconds()
            case bytes() | bytearray() | memoryview():
                return self._text("" if self._is_spent() else b64encode(value).decode())
            case _ if isinstance(value, _AS_TEXT):
                return self._text(clean_text(value))
            case Mapping() | list() | tuple() | Set() | deque() | ValuesView():
                return self._container(value, depth, path)
            case _ if is_dataclass(value) and not isinstance(value, type):
                named = {each.name: getattr(value, each.name, None) for each in fields(value)}
                return self._inside(value, depth, lambda: self._container(named, depth, path))
            case _:
                return self._other(value, path)

    def _is_spent(self) -> bool:
        return self._characters_left <= 0

    def _text(self, value: str) -> str:
        if self._is_spent():
            return "<too large>"
        self._characters_left -= len(value)
        return storable(value)

    def _whole(self, value: int, path: _Path) -> Any:
        try:
            if value.bit_length() >= _MOST_BITS and abs(value) >= _TOO_LONG:
                raise ValueError
            str(value)
        except ValueError:  # longer than Python would read again
            what = "a number of more digits than can be read again"
            return self._refused(what, path, clean_text(f"{value:#x}"))
        return value

    def _other(self, value: Any, path: _Path) -> Any:
        if isinstance(value, CoroutineType):
            value.close()  # nobody will await it
        return self._refused(f"of the type {_type_name(value)}", path, value)

    def _refused(self, what: str, path: _Path, instead: object) -> str:
        """The text of *instead*, where nothing is to be refused."""
        if self._strict:
            where = "".join(f"[{clean_text(repr(key), 60)}]" for key in path) or " itself"
            raise UnstorableValueError(f"result{where} is {what}, which JSON cannot hold")
        return self._text(clean_text(instead))

    def _inside(self, value: Any, depth: int, read: Callable[[], Any]) -> Any:
        """What *read* makes of the inside of *value*, unless that never ends or cannot be read."""
        if depth >= MAX_DEPTH:
            return "<nested too deep>"
        if id(value) in self._holders:
            return "<holds itself>"
        if self._items_left <= 0 or self._is_spent():
            return "<too large>"
        self._holders.add(id(value))
        try:
            return read()
        finally:
            self._holders.discard(id(value))

    def _container(self, value: Any, depth: int, path: _Path) -> Any:
        def read() -> Any:
            try:
                if isinstance(value, Mapping):
                    return self._object(value, depth, path)
                return [
                    self.of(item, depth + 1, (*path, position))
                    for position, item in enumerate(self._bounded(value))
                ]
            except UnstorableValueError:
                raise
            except Exception as exc:  # noqa: BLE001 - a container's own methods may raise anything
                name, error = _type_name(value), _type_name(exc)
                note = f"<{name} cannot be read: {error}>"
                return self._refused(f"a {name} that raises {error}", path, note)

        return self._inside(value, depth, read)

    def _object(self, value: Mapping[Any, Any], depth: int, path: _Path) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, item in self._bounded(value.items()):
            name = self._name(key, path)
            if name in made:
                self._refused(f"an object with two keys {clean_text(name, 60)!r}", path, "")
                name = _other_than(made, name)
            made[name] = self.of(item, depth + 1, (*path, name))
        return made

    def _name(self, key: Any, path: _Path) -> str:
        """A key as text: numbers, true, false and null as JSON writes them."""
        if isinstance(key, Enum):
            return self._name(key.value, path)
        if isinstance(key, str):
            text = self._text(key)
        elif key is None or isinstance(key, (bool, int, float)):
            text = json.dumps(key)
        elif isinstance(key, (date, time)):
            text = key.isoformat()
        elif isinstance(key, _AS_TEXT):
            text = str(key)
        else:
            what = f"an object with a key of the type {_type_name(key)}"
            text = self._refused(what, path, key)
        return text if self._strict else clean_text(text, 200)

    def _bounded(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            if self._items_left <= 0 or self._is_spent():
                return
            self._items_left -= 1
            yield item
