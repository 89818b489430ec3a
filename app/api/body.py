"""Request bodies: strict JSON, of which exactly one reading exists.

Python's own decoder accepts what other programs read differently (NaN, a key twice) or what
PostgreSQL cannot store (NUL, lone surrogates). What is not JSON is answered 400, what is JSON but
cannot be stored 422.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from flask import request
from pydantic import BaseModel

from app.errors import Problem

MAX_DEPTH = 64
MAX_DIGITS = 300
MAX_PAYLOAD_BYTES = 256 * 1024

ModelT = TypeVar("ModelT", bound=BaseModel)

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class _RefusedError(ValueError):
    """What the decoder's hooks refuse; the text is for the user."""


def read_body(model: type[ModelT]) -> ModelT:
    """The request's body as *model*.

    Raises Problem, and pydantic's ValidationError, which is answered 422.
    """
    if not request.is_json:
        raise Problem(415, detail="Send the body as application/json.")
    raw = request.get_data(cache=False)
    parse_json(raw)
    return model.model_validate_json(raw)


def parse_json(raw: bytes) -> Any:
    """The value that *raw* spells. Raises Problem for what is not JSON or cannot be stored."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        _malformed("The body is not valid UTF-8.")
    try:
        value = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_unique,
        )
    except _RefusedError as exc:
        _malformed(str(exc))
    except json.JSONDecodeError as exc:
        _malformed(f"The body is not valid JSON: {exc.msg} at character {exc.pos}.")
    except RecursionError:
        _malformed(f"The body is nested more than {MAX_DEPTH} deep.")
    _require_storable(value)
    return value


def require_payload_size(value: Any) -> None:
    """Raises Problem 413 where *value* takes more than MAX_PAYLOAD_BYTES as JSON."""
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_PAYLOAD_BYTES:
        raise Problem(413, "payload_too_large", "A payload may hold at most 256 KB of JSON.")


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold *text*."""
    return _UNSTORABLE.search(text) is None


def unstorable(field: str) -> Problem:
    """The answer to text that cannot be stored."""
    message = "Text must not hold NUL characters or lone surrogates"
    return Problem(
        422,
        "text_not_storable",
        f"{message}.",
        errors=[{"field": field, "code": "text_not_storable", "message": message}],
    )


def _require_storable(value: Any) -> None:
    for depth, path, item in _walk(value):
        if depth > MAX_DEPTH:
            _malformed(f"The body is nested more than {MAX_DEPTH} deep.")
        if isinstance(item, str) and not is_storable(item):
            raise unstorable(path)


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


def _malformed(detail: str) -> NoReturn:
    raise Problem(400, "malformed_json", detail)


def _no_constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is not JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedError("A number is too large.")
    return number


def _bounded(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _RefusedError(f"An integer has more than {MAX_DIGITS} digits.")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _RefusedError("A key stands twice in one object.")
    return value
