"""Options of a worker, each declared once: what it means, its unit, range, flag and variable.

The settings page, the API and the command line all read these declarations. A value comes from the
first of: flag, environment, stored configuration, default.
"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_METADATA_KEY = "option"


class InvalidOptionError(ValueError):
    """Values that an option does not take; *errors* says for each option by name what is wrong."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name} {text}" for name, text in errors.items()))
        self.errors = dict(errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One number that can be set."""

    name: str
    label: str
    help: str
    unit: str
    default: int | float
    low: int | float
    high: int | float
    whole: bool
    variable: str
    """Its name in the environment."""

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def range_text(self) -> str:
        """What it takes, in words."""
        unit = f" {self.unit}" if self.unit else ""
        kind = "whole number" if self.whole else "number"
        return f"a {kind} from {plain_number(self.low)} to {plain_number(self.high)}{unit}"

    def check(self, value: Any) -> int | float:
        """*value* where it is one that the option takes; ValueError with the reason otherwise."""
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        # In its range it is finite; an integer too large for a float cannot be asked that.
        in_range = numeric and self.low <= value <= self.high
        if not in_range or (self.whole and value != int(value)):
            raise ValueError(f"must be {self.range_text}")
        return int(value) if self.whole else float(value)

    def parse(self, text: str) -> int | float:
        """The value that *text* spells; ValueError with the reason otherwise."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            raise ValueError(f"must be {self.range_text}, not {text!r:.40}") from None
        return self.check(value)


def plain_number(value: int | float) -> str:
    """*value* without exponent, and without a fraction where it has none."""
    return str(int(value)) if value == int(value) else str(value)


def option(
    default: int | float,
    label: str,
    *,
    unit: str = "",
    low: int | float,
    high: int | float,
    variable: str,
    help: str,  # noqa: A002 - the word that argparse and forms use for it
) -> Any:
    """A dataclass field that is an option."""
    metadata = {
        "default": default,
        "whole": isinstance(default, int),
        "label": label,
        "help": help,
        "unit": unit,
        "low": low,
        "high": high,
        "variable": variable,
    }
    return dataclasses.field(default=default, metadata={_METADATA_KEY: metadata})


def options_of(section: Any) -> tuple[Option, ...]:
    """The options that a dataclass declares, in its order."""
    return tuple(
        Option(name=field.name, **field.metadata[_METADATA_KEY])
        for field in dataclasses.fields(section)
        if _METADATA_KEY in field.metadata
    )


def checked(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """*values* where each is one that its option takes.

    Raises InvalidOptionError that names all which are not, unknown names included.
    """
    by_name = {option.name: option for option in options}
    accepted: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name, value in values.items():
        if name not in by_name:
            errors[name] = "is not an option"
            continue
        try:
            accepted[name] = by_name[name].check(value)
        except ValueError as exc:
            errors[name] = str(exc)
    if errors:
        raise InvalidOptionError(errors)
    return accepted


class Source(StrEnum):
    """Where a value comes from; earlier ones win."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    STORED = "stored"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The value that an option has, and where it comes from."""

    value: int | float
    source: Source

    def to_json(self) -> dict[str, Any]:
        """As it is shown beside a worker."""
        return {"value": self.value, "source": self.source.value}


def choose(
    options: Iterable[Option],
    *,
    flags: Mapping[str, int | float | None],
    environ: Mapping[str, str],
    stored: Mapping[str, Any],
) -> dict[str, Chosen]:
    """The value of each option, and which source won.

    Raises InvalidOptionError for a value of any source that its option does not take, also where
    an earlier source hides it.
    """
    chosen: dict[str, Chosen] = {}
    errors: dict[str, str] = {}
    for item in options:
        try:
            candidates = {
                Source.FLAG: flags.get(item.name),
                Source.ENVIRONMENT: _from_environment(item, environ),
                Source.STORED: stored.get(item.name),
                Source.DEFAULT: item.default,
            }
            values = {
                source: item.check(value)
                for source, value in candidates.items()
                if value is not None
            }
        except ValueError as exc:
            errors[item.name] = str(exc)
            continue
        source = next(iter(values))
        chosen[item.name] = Chosen(values[source], source)
    if errors:
        raise InvalidOptionError(errors)
    return chosen


def _from_environment(item: Option, environ: Mapping[str, str]) -> int | float | None:
    text = (environ.get(item.variable) or "").strip()
    if not text:
        return None
    try:
        return item.parse(text)
    except ValueError as exc:
        raise ValueError(f"({item.variable} in the environment) {exc}") from None


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """What reads an argument of a command line: a whole number from *low* to *high*."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return parse
