"""The form of the settings: what was typed, what is stored, what someone else saved meanwhile.

The form carries the values it was made from beside those typed. So it is known what the person
changed, and what others changed since, without keeping anything on the server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.actions.inputs import ConfigChange, RetrySection
from app.settings.configuration import RETRY_OPTIONS, WORKER_OPTIONS, RetryConfig, StoredConfig
from app.settings.options import Option, plain_number
from app.testcommand.store import ConfigurationChange
from app.web.forms import ABSENT, Form

OPTIONS = (*WORKER_OPTIONS, *RETRY_OPTIONS)
OPTION_OF = {option.name: option for option in OPTIONS}
DEFAULTS = {option.name: option.default for option in OPTIONS}
BEFORE = "was_"
"""The prefix of hidden fields that repeat the value from which the form was made."""
SHOWN_DELAYS = 9

Values = Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Field:
    """One setting as the form shows it."""

    option: Option
    value: str
    before: str
    error: str = ""

    @property
    def range_text(self) -> str:
        """Its range and its default."""
        option = self.option
        low, high, default = map(_readable, (option.low, option.high, option.default))
        return f"{low} to {high}; default {default}."

    @property
    def step(self) -> str:
        return "1" if self.option.whole else "any"


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that somebody else changed since the form was made, as texts."""

    option: Option
    before: str
    theirs: str
    yours: str | None
    """What the person typed, where they changed it too."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A form as it came back."""

    version: int | None
    texts: dict[str, str]
    before: dict[str, int | float]
    values: dict[str, Any]
    """The numbers that were typed; a text, with an error, where it is none."""
    errors: dict[str, str]

    @classmethod
    def read(cls, form: Mapping[str, str], stored: Values) -> Submitted:
        """What *form* says; what it leaves out is as *stored*."""
        texts = {name: form.get(name, plain_number(stored[name])).strip() for name in OPTION_OF}
        typed = Form(texts)
        values = _numbers(typed)
        typed.read(ConfigChange, by_section(values))
        hidden = Form(form)
        was = {name: hidden.number(BEFORE + name) for name in OPTION_OF}
        before = {
            name: number if isinstance(number, int | float) else stored[name]
            for name, number in was.items()
        }
        version = hidden.number("version")
        return cls(
            version if isinstance(version, int) else None, texts, before, values, typed.errors
        )

    def changes(self) -> dict[str, int | float]:
        """The values that the person changed."""
        return {name: value for name, value in self.values.items() if value != self.before[name]}

    def differences(self, stored: Values) -> list[Difference]:
        """What others changed since the form was made."""
        mine = self.changes()
        return [
            Difference(
                option,
                plain_number(self.before[name]),
                plain_number(stored[name]),
                plain_number(mine[name]) if name in mine else None,
            )
            for name, option in OPTION_OF.items()
            if stored[name] != self.before[name]
        ]

    def merged(self, stored: Values) -> list[Field]:
        """The form again: what the person typed, and for all else what is stored now."""
        return [
            Field(
                option,
                self.texts[name]
                if name in self.errors or self.values[name] != self.before[name]
                else plain_number(stored[name]),
                plain_number(stored[name]),
                self.errors.get(name, ""),
            )
            for name, option in OPTION_OF.items()
        ]


def _readable(number: int | float) -> str:
    return f"{number:,}".removesuffix(".0")


def _numbers(form: Form, options: Iterable[Option] = OPTIONS) -> dict[str, Any]:
    """What was typed for each setting; an empty field holds no number either."""
    typed = {option.name: form.number(option.name) for option in options}
    return {name: "" if value is ABSENT else value for name, value in typed.items()}


def all_values(stored: StoredConfig) -> dict[str, int | float]:
    """Every setting by name."""
    return {**dataclasses.asdict(stored.worker), **dataclasses.asdict(stored.retry)}


def fields_of(stored: Values) -> list[Field]:
    """The form before anyone has typed."""
    return [
        Field(option, plain_number(stored[name]), plain_number(stored[name]))
        for name, option in OPTION_OF.items()
    ]


def by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """*values* as `ConfigStore.update` takes them."""
    retry_names = {option.name for option in RETRY_OPTIONS}
    return {
        "worker": {name: value for name, value in values.items() if name not in retry_names},
        "retry": {name: value for name, value in values.items() if name in retry_names},
    }


# Delays


@dataclass(frozen=True, slots=True)
class Delay:
    """How long a command waits after a failed attempt, and how long it has waited by then."""

    attempt: int
    delay_ms: int
    total_ms: int


@dataclass(frozen=True, slots=True)
class Delays:
    """The delays that retry settings give."""

    shown: list[Delay]
    hidden: int
    """How many further ones are not listed."""
    total_ms: int
    max_attempts: int
    jitter: float


def delays_of(retry: RetryConfig) -> Delays:
    """What *retry* means for a command that fails every time."""
    policy = retry.to_policy()
    every: list[Delay] = []
    total = 0
    for attempt in range(1, policy.max_attempts):
        delay = policy.delay_ms(attempt)
        total += delay
        every.append(Delay(attempt, delay, total))
    shown = every[:SHOWN_DELAYS]
    return Delays(shown, len(every) - len(shown), total, policy.max_attempts, policy.jitter)


def retry_from(texts: Mapping[str, str]) -> RetryConfig | None:
    """The retry settings that *texts* spell, or None while one of them is not right."""
    form = Form(texts)
    retry = form.read(RetrySection, _numbers(form, RETRY_OPTIONS))
    return None if retry is None else RetryConfig(**retry.model_dump())


# History


@dataclass(frozen=True, slots=True)
class Version:
    """What one version changed: triples of setting, value before and value since."""

    change: ConfigurationChange
    changed: list[tuple[Option, str, str]]


def versions_of(history: Sequence[ConfigurationChange], limit: int) -> list[Version]:
    """The latest versions with what each changed. *history* is newest first, one more than needed
    where there are more; the version before the first is the defaults."""
    versions = []
    for position, change in enumerate(history[:limit]):
        earlier = history[position + 1] if position + 1 < len(history) else None
        before = _values_of(earlier)
        since = _values_of(change)
        changed = [
            (option, plain_number(before[name]), plain_number(since[name]))
            for name, option in OPTION_OF.items()
            if before[name] != since[name]
        ]
        versions.append(Version(change, changed))
    return versions


def _values_of(change: ConfigurationChange | None) -> dict[str, int | float]:
    if change is None:
        return dict(DEFAULTS)
    known = {**change.worker, **change.retry}
    return {name: known.get(name, default) for name, default in DEFAULTS.items()}
