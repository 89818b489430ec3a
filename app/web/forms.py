"""Posted forms: what was typed, read by the models that read the API's bodies, and what is wrong.

So a rule and its message are written once. A field that is left empty is not given to the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError

from app.actions import strict_json
from app.server.errors import refusals

ModelT = TypeVar("ModelT", bound=BaseModel)

ABSENT: Any = object()
"""The value of a field that is empty."""

_ALL: Mapping[str, str] = MappingProxyType({})
_WHOLE = re.compile(r"-?[0-9]{1,99}")
_NUMBER = re.compile(r"-?([0-9]{1,99}(\.[0-9]{0,99})?|\.[0-9]{1,99})(e[+-]?[0-9]{1,3})?", re.I)


@dataclass
class Form:
    """The texts as they were typed, and the error of each field."""

    texts: Mapping[str, str]
    errors: dict[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """What was typed, without the blanks around it.

        A line break is one character, as browsers count it, though they send two.
        """
        return self.texts.get(name, "").replace("\r\n", "\n").strip()

    def value(self, name: str) -> Any:
        """A text; ABSENT where it is empty or, with an error, where it cannot be stored."""
        text = self.text(name)
        if not strict_json.is_storable(text):
            self.errors[name] = strict_json.unstorable(name).message
            return ABSENT
        return text or ABSENT

    def number(self, name: str, *, point: str = ".") -> Any:
        """The number that was typed. What is no number stays a text, which the model refuses.

        *point*: the characters that may stand before a fraction.
        """
        text = self.value(name)
        if text is ABSENT:
            return text
        text = re.sub(f"[{point}]", ".", text)
        if _WHOLE.fullmatch(text):
            return int(text)
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
        return number if math.isfinite(number) else text

    def uuid(self, name: str) -> Any:
        """The id that was typed, in its canonical form. What is no id stays as it is."""
        text = self.value(name)
        try:
            return text if text is ABSENT else str(UUID(text))
        except ValueError:
            return text

    def json(self, name: str) -> Any:
        """The JSON value that was typed; ABSENT with an error where there is none to be kept."""
        text = self.text(name)
        if not text:
            return ABSENT
        try:
            value = strict_json.parse(text)
            strict_json.require_size(value)
        except strict_json.UnstorableJsonError as exc:
            self.errors[name] = exc.message
        except (strict_json.MalformedJsonError, strict_json.TooLargeJsonError) as exc:
            reason = str(exc)
            self.errors[name] = f"{reason[0].upper()}{reason[1:]}"
        else:
            return value
        return ABSENT

    def read(
        self,
        model: type[ModelT],
        values: Mapping[str, Any],
        places: Mapping[str, str] = _ALL,
    ) -> ModelT | None:
        """*values* as *model*; None with errors where they are refused or errors were known.

        *places*: the field at which the form shows an error, by the model's own dotted name; where
        that names none, its last part does.
        """
        try:
            read = model.model_validate(given(values))
        except ValidationError as exc:
            for refused in refusals(exc):
                name = refused["field"]
                place = places.get(name) or name.rpartition(".")[2] or "form"
                self.errors.setdefault(place, refused["message"])
            return None
        return None if self.errors else read


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """*values* without those that are ABSENT."""
    return {name: value for name, value in values.items() if value is not ABSENT}
