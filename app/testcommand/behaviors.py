"""What a test command does: one model for the API, the forms and the worker."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

CRASH_VARIABLE = "ALLOW_CRASH_BEHAVIOR"
"""Set to "true" in the environment of tests that stage crashes; nothing else may kill a worker."""

LONGEST_QUEUE_NAME = 200
"""How long the name of a reply queue may be, in characters."""
MAX_EXECUTION_MS = 3_600_000
MAX_LEASE_SECONDS = 43_200
"""The longest visibility timeout that can be set."""
MAX_REPEATS = 1_000
MAX_CODE = 200
MAX_MESSAGE = 2_000
TIMEOUT_MARGIN_MS = 5_000
MAX_TIMEOUT_MS = MAX_LEASE_SECONDS * 1000 + TIMEOUT_MARGIN_MS
"""Only what outlasts its lease may run for longer than MAX_EXECUTION_MS."""
_EXECUTION_TIME_NAMES = ("execution_time_ms", "delay_ms", "timeout_ms")


class BehaviorType(StrEnum):
    """How a test command ends."""

    SUCCESS = "success"
    FAIL_PERMANENT = "fail_permanent"
    FAIL_TRANSIENT = "fail_transient"
    FAIL_TRANSIENT_THEN_SUCCEED = "fail_transient_then_succeed"
    TIMEOUT = "timeout"
    FAIL_BUSINESS = "fail_business"
    CRASH_PROCESS = "crash_process"


PUBLIC_TYPES = tuple(kind for kind in BehaviorType if kind is not BehaviorType.CRASH_PROCESS)
"""The types offered to people; `crash_process` exists only for tests."""

DEFAULT_ERRORS: dict[BehaviorType, tuple[str, str]] = {
    BehaviorType.FAIL_PERMANENT: ("PERMANENT", "Simulated permanent failure"),
    BehaviorType.FAIL_TRANSIENT: ("TRANSIENT", "Simulated transient failure"),
    BehaviorType.FAIL_TRANSIENT_THEN_SUCCEED: ("TRANSIENT", "Transient failure {attempt}"),
    BehaviorType.FAIL_BUSINESS: ("BUSINESS_RULE", "Simulated business rule failure"),
}

LABELS: dict[BehaviorType, tuple[str, str]] = {
    BehaviorType.SUCCESS: ("Success", "Completes after the execution time."),
    BehaviorType.FAIL_PERMANENT: (
        "Permanent failure",
        "Goes to the troubleshooting queue immediately.",
    ),
    BehaviorType.FAIL_TRANSIENT: (
        "Transient failure",
        "Fails on every attempt until none remains.",
    ),
    BehaviorType.FAIL_TRANSIENT_THEN_SUCCEED: (
        "Fails, then succeeds",
        "Fails a few times, then completes if attempts remain.",
    ),
    BehaviorType.TIMEOUT: (
        "Timeout",
        "Outlasts its lease once; is delivered again if attempts remain.",
    ),
    BehaviorType.FAIL_BUSINESS: ("Business rule", "Ends as failed; needs no operator."),
}
"""What a type is called on the send page, and what it does."""


def _offered(given: Any) -> Any:
    """The given type, if it is offered here."""
    with_crashes = os.environ.get(CRASH_VARIABLE) == "true"
    offered = tuple(BehaviorType) if with_crashes else PUBLIC_TYPES
    if isinstance(given, str) and given not in offered:
        names = ", ".join(kind.value for kind in PUBLIC_TYPES)
        raise PydanticCustomError("enum", "Input should be one of {names}", {"names": names})
    return given


def _storable(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("text_with_nul", "Text must not hold a NUL character")
    return text


# Strict would refuse the plain string that JSON and forms bring.
_Type = Annotated[
    BehaviorType,
    Field(strict=False),
    BeforeValidator(_offered),
    WithJsonSchema({"type": "string", "enum": [kind.value for kind in PUBLIC_TYPES]}),
]
_Code = Annotated[str, Field(min_length=1, max_length=MAX_CODE), AfterValidator(_storable)]
_Message = Annotated[str, Field(min_length=1, max_length=MAX_MESSAGE), AfterValidator(_storable)]


class Behavior(BaseModel):
    """What one test command does when it runs; the type alone is a complete behaviour.

    `delay_ms` and `timeout_ms` are accepted as other names of `execution_time_ms`.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: _Type
    transient_failures: int = Field(
        1, ge=0, le=MAX_REPEATS, description="How many attempts fail before one succeeds"
    )
    execution_time_ms: int = Field(
        0,
        ge=0,
        le=MAX_TIMEOUT_MS,
        description="How long each attempt runs, in milliseconds;"
        f" more than {MAX_EXECUTION_MS:,} only where the type is timeout",
    )
    error_code: _Code | None = None
    error_message: _Message | None = None
    timeouts: int = Field(
        1, ge=0, le=MAX_REPEATS, description="How many attempts of a timeout outlast their lease"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_execution_time(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        names = [name for name in _EXECUTION_TIME_NAMES if name in given]
        if len(names) > 1:
            raise PydanticCustomError(
                "execution_time_twice",
                "{names} mean the same; give one of them",
                {"names": " and ".join(names)},
            )
        if names in ([], ["execution_time_ms"]):
            return given
        rest = {name: value for name, value in given.items() if name != names[0]}
        return {**rest, "execution_time_ms": given[names[0]]}

    @field_validator("execution_time_ms")
    @classmethod
    def _bounded_time(cls, given: int, known: ValidationInfo) -> int:
        if given > MAX_EXECUTION_MS and known.data.get("type") != BehaviorType.TIMEOUT:
            raise PydanticCustomError(
                "less_than_equal",
                "Input should be less than or equal to {le}",
                {"le": MAX_EXECUTION_MS},
            )
        return given

    def to_json(self) -> dict[str, Any]:
        """The behaviour as it is stored and answered: what was given, without empty values."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def same_as(self, other: Behavior) -> bool:
        """Whether both make a command do the same, whatever was spelt out."""
        return self.model_dump() == other.model_dump()

    def error(self, attempt: int) -> tuple[str, str]:
        """The code and the message with which *attempt* fails."""
        code, message = DEFAULT_ERRORS.get(self.type, ("ERROR", "Simulated failure"))
        return (
            self.error_code or code,
            self.error_message or message.format(attempt=attempt),
        )


def default_timeout_ms(visibility_timeout: int) -> int:
    """How long a timeout runs that names no time of its own: longer than a lease, in seconds."""
    return visibility_timeout * 1000 + TIMEOUT_MARGIN_MS


DEFAULT_BEHAVIOR = Behavior(type=BehaviorType.SUCCESS)

SMALLEST_PERCENT = 0.000_001


def _noticeable(percent: float) -> float:
    """A share that makes a difference to a sum of 100; the sum is exact then."""
    if 0 < percent < SMALLEST_PERCENT:
        raise PydanticCustomError("percent_too_small", "Must be 0 or at least 0.000001")
    return percent


_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), AfterValidator(_noticeable)]


class BehaviorDistribution(RootModel[dict[_Type, _Percent]]):
    """Percent of commands by behaviour type; the values add up to exactly 100."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="after")
    def _adds_up(self) -> BehaviorDistribution:
        total = sum(map(_exact, self.root.values()), Decimal())
        if total != 100:
            raise PydanticCustomError(
                "distribution_not_100",
                "The percentages add up to {total}, not to 100",
                {"total": f"{total.normalize():f}"},
            )
        return self

    def to_json(self) -> dict[str, float]:
        """The percentages by the name of the type, whole ones as whole numbers."""
        return {
            kind.value: int(percent) if percent.is_integer() else percent
            for kind, percent in self.root.items()
        }

    def allocate(self, count: int) -> dict[BehaviorType, int]:
        """How many of *count* commands get each type; the numbers add up to exactly *count*.

        By largest remainder: each type is less than one command away from its percentage. The
        same call always gives the same answer.
        """
        exact = {
            kind: _exact(self.root[kind]) * count / 100
            for kind in BehaviorType
            if kind in self.root
        }
        counts = {kind: int(share) for kind, share in exact.items()}
        by_remainder = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
        for kind in by_remainder[: count - sum(counts.values())]:
            counts[kind] += 1
        return counts

    def shuffled(self, count: int, *, seed: int | None = None) -> Iterator[BehaviorType]:
        """The types of *count* commands, allocated exactly and in random order.

        A byte for each command is all that is kept. The same *seed* gives the same order.
        """
        counts = self.allocate(count)
        kinds = list(counts)
        order = bytearray()
        for position, kind in enumerate(kinds):
            order += bytes([position]) * counts[kind]
        random.Random(seed).shuffle(order)  # nosec B311
        return map(kinds.__getitem__, order)


def _exact(percent: float) -> Decimal:
    """The number that was written, not its binary approximation."""
    return Decimal(str(percent))
