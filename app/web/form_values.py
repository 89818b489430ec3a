"""Values of posted forms that the database can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.actions import strict_json


class FormError(ValueError):
    """A value that cannot be taken; the text is for the person who gave it."""


def text_value(form: Mapping[str, Any], name: str, limit: int) -> str | None:
    """A text; None where there is nothing in it.

    Raises FormError above *limit* characters, and where the database cannot hold the text. A line
    break counts as one character, as browsers count it, though they send two.
    """
    text = str(form.get(name, "")).replace("\r\n", "\n").strip()
    if not strict_json.is_storable(text):
        raise FormError(str(strict_json.unstorable(name)))
    if len(text) > limit:
        raise FormError(f"At most {limit:,} characters, not {len(text):,}.")
    return text or None


def json_value(form: Mapping[str, Any], name: str) -> Any:
    """The JSON value that the field spells; None where it is empty. Raises FormError."""
    text = str(form.get(name, "")).strip()
    if not text:
        return None
    if len(text.encode(errors="replace")) > strict_json.MAX_BYTES:
        raise FormError("At most 256 KB of JSON.")
    try:
        return strict_json.parse(text)
    except strict_json.MalformedJsonError as exc:
        reason = str(exc)
        raise FormError(f"{reason[0].upper()}{reason[1:]}.") from exc
    except strict_json.UnstorableJsonError as exc:
        raise FormError(str(exc)) from exc
