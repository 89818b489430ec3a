"""Values of posted forms that the database can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from commandbus.payload import MAX_DEPTH, is_deep

MAX_JSON_BYTES = 256 * 1024

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class FormError(ValueError):
    """A value that cannot be taken; the text is for the person who gave it."""


def text_value(form: Mapping[str, Any], name: str, limit: int) -> str | None:
    """A text of at most *limit* characters; None where there is nothing in it."""
    return _UNSTORABLE.sub("", str(form.get(name, ""))).strip()[:limit] or None


def json_value(form: Mapping[str, Any], name: str) -> Any:
    """The JSON value that the field spells; None where it is empty. Raises FormError."""
    text = str(form.get(name, "")).strip()
    if not text:
        return None
    if len(text.encode(errors="replace")) > MAX_JSON_BYTES:
        raise FormError("At most 256 KB of JSON.")
    try:
        value = json.loads(text, parse_constant=_no_constant)
        again = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except json.JSONDecodeError as exc:
        raise FormError(
            f"Not valid JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}."
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise FormError("JSON that cannot be stored: too deep, or a number too large.") from exc
    if is_deep(again, value):
        raise FormError(f"Nested more than {MAX_DEPTH} deep.")
    if not _is_storable(value):
        raise FormError("Text must not hold NUL characters or lone surrogates.")
    return value


def _is_storable(value: Any) -> bool:
    match value:
        case str():
            return _UNSTORABLE.search(value) is None
        case list():
            return all(map(_is_storable, value))
        case dict():
            return all(map(_is_storable, [*value, *value.values()]))
        case _:
            return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
