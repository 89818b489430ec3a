"""Request bodies: strict JSON, of which exactly one reading exists.

What is not JSON is answered 400, what is JSON but would not be kept as it is 422.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from flask import request
from pydantic import BaseModel

from app.actions import strict_json
from app.actions.strict_json import MAX_DEPTH as MAX_DEPTH
from app.actions.strict_json import is_storable as is_storable
from app.server.errors import Problem

ModelT = TypeVar("ModelT", bound=BaseModel)

JSON = "application/json"
"""Its relatives (application/problem+json, ...) are other formats, with meanings of their own."""


def read_body(model: type[ModelT]) -> ModelT:
    """The request's body as *model*.

    Raises Problem, and pydantic's ValidationError, which is answered 422.
    """
    if request.mimetype != JSON:
        raise Problem(415, detail="Send the body as application/json.")
    raw = request.get_data(cache=False)
    parse_json(raw)
    return model.model_validate_json(raw)


def parse_json(raw: bytes) -> Any:
    """The value that *raw* spells. Raises Problem for what is not JSON or would not be kept."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        _malformed("The body is not valid UTF-8.")
    try:
        return strict_json.parse(text)
    except strict_json.MalformedJsonError as exc:
        _malformed(f"The body is {exc}.")
    except strict_json.UnstorableJsonError as exc:
        raise _problem(exc) from exc


def require_payload_size(value: Any) -> None:
    """Raises Problem 413 where *value* takes more than strict_json.MAX_BYTES as JSON."""
    try:
        strict_json.require_size(value)
    except strict_json.TooLargeJsonError as exc:
        raise Problem(413, "payload_too_large", f"{exc}.") from exc


def unstorable(field: str) -> Problem:
    """The answer to text that cannot be stored."""
    return _problem(strict_json.unstorable(field))


def _problem(refused: strict_json.UnstorableJsonError) -> Problem:
    error = {"field": refused.field, "code": refused.code, "message": refused.message}
    return Problem(422, refused.code, str(refused), errors=[error])


def _malformed(detail: str) -> NoReturn:
    raise Problem(400, "malformed_json", detail)
