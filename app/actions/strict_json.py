"""JSON from outside, of which exactly one reading exists, kept as it was written or refused.

Python's own decoder accepts what other programs read differently (NaN, a key twice), what it rounds
itself (numbers of more digits than a float holds), and what PostgreSQL cannot store (NUL, lone
surrogates). Bodies of the API and fields of forms are both read here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn

from commandbus.payload import exact_number

MAX_BYTES = 256 * 1024
"""How much JSON a payload or a result may hold."""
MAX_DEPTH = 64
MAX_DIGITS = 300

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_TEXT = "Text must not hold NUL characters or lone surrogates"


class MalformedJsonError(ValueError):
    """It is no JSON, or can be read in two ways; the text is for the user."""


class UnstorableJsonError(ValueError):
    """It is JSON that would not be kept as it is; the text is for the user."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(f"{message}.")
        self.field = field
        self.code = code
        self.message = message


class TooLargeJsonError(ValueError):
    """It is more JSON than is kept; the text is for the user."""


class _Rounded(float):
    """A number that no float holds as it was written."""

    text: str


def parse(text: str) -> Any:
    """The value that *text* spells. Raises MalformedJsonError and UnstorableJsonError."""
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as exc:
        raise MalformedJsonError(
            f"not valid JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}"
            f" (character {exc.pos})"
        ) from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    for depth, path, item in _walk(value):
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(item, str) and not is_storable(item):
            raise unstorable(path)
        if isinstance(item, _Rounded):
            raise UnstorableJsonError(
                path,
                "number_not_exact",
                f"The number {item.text[:40]} has more digits than are kept; write it as text",
            )
    return value


def require_size(value: Any) -> None:
    """Raises TooLargeJsonError where *value* takes more than MAX_BYTES as JSON."""
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_BYTES:
        raise TooLargeJsonError(f"At most {MAX_BYTES // 1024} KB of JSON")


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold *text*."""
    return _UNSTORABLE.search(text) is None


def unstorable(field: str) -> UnstorableJsonError:
    """The refusal of text that cannot be stored."""
    return UnstorableJsonError(field, "text_not_storable", _TEXT)


def _walk(value: Any) -> Iterator[tuple[int, str, Any]]:
    """Every value and key in *value* with its depth and path, without recursion."""
    stack: list[tuple[int, str, Any]] = [(0, "", value)]
    while stack:
        depth, path, item = stack.pop()
        if isinstance(item, dict):
            yield depth + 1, path, None
            for key, inner in item.items():
                yield depth + 1, path, key
                stack.append((depth + 1, f"{path}.{key}" if path else key, inner))
        elif isinstance(item, list):
            yield depth + 1, path, None
            stack.extend((depth + 1, f"{path}.{n}", inner) for n, inner in enumerate(item))
        else:
            yield depth, path, item


def _too_deep() -> MalformedJsonError:
    return MalformedJsonError(f"nested more than {MAX_DEPTH} deep")


def _no_constant(name: str) -> NoReturn:
    raise MalformedJsonError(f"not valid JSON: {name} is no value of JSON")


def _exact(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedJsonError("not usable: a number is too large")
    try:
        is_exact = not isinstance(exact_number(text), Decimal)
    except ValueError:  # not even a Decimal holds it
        is_exact = False
    if is_exact:
        return number
    rounded = _Rounded(number)
    rounded.text = text
    return rounded


def _bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise MalformedJsonError(f"not usable: an integer has more than {MAX_DIGITS} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise MalformedJsonError("not usable: a key stands twice in one object")
    return value


_decoder = json.JSONDecoder(
    parse_constant=_no_constant, parse_float=_exact, parse_int=_bounded, object_pairs_hook=_unique
)
