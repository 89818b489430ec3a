"""JSON in and out: whatever a handler returns can be stored."""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commandbus.errors import InvalidCommandError
from commandbus.payload import (
    MAX_RESULT_BYTES,
    MAX_TEXT,
    UnstorableValueError,
    clean_text,
    decode_json,
    json_text,
    plain_json,
    result_json,
)

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.datetimes()
    | st.uuids()
    | st.decimals()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.frozensets(st.text() | st.integers())
        | st.dictionaries(st.text(st.characters(codec=None)) | st.integers() | st.none(), inner)
    ),
    max_leaves=20,
)


class Poisoned:
    """Nothing can be asked of it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Leaving:
    """Its text ends programs."""

    def __str__(self) -> str:
        raise SystemExit(3)


class BrokenMapping(Mapping[str, int]):
    """A mapping that cannot be walked."""

    def __getitem__(self, key: str) -> int:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no keys")

    def __len__(self) -> int:
        return 1


class BrokenDate(date):
    """A day that cannot be written."""

    def isoformat(self) -> str:
        raise RuntimeError("no day")

    __str__ = isoformat


class Colour(Enum):
    """A plain enum."""

    RED = (255, 0)


class Level(IntEnum):
    """An enum of numbers."""

    HIGH = 3


@dataclass
class Point:
    """A dataclass."""

    x: Any
    y: Any


class BrokenList(list[int]):
    """A list that cannot be walked."""

    def __iter__(self) -> Iterator[int]:
        raise RuntimeError("no items")


def storable(text: str) -> Any:
    """The value of JSON text that PostgreSQL takes as jsonb."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text.encode()
    found = json.loads(text, parse_constant=refuse)
    assert_storable(found)
    return found


def assert_storable(found: Any) -> None:
    match found:
        case str():
            found.encode()  # no lone surrogate
            assert "\0" not in found
        case dict():
            for key, item in found.items():
                assert_storable(key)
                assert_storable(item)
        case list():
            for item in found:
                assert_storable(item)
        case float():
            assert math.isfinite(found)


@given(anything)
def test_a_result_of_any_kind_becomes_json_that_can_be_stored_or_is_refused(result: Any):
    with suppress(UnstorableValueError):
        storable(result_json(result))
    assert_storable(plain_json(result))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50),
            inner,
        )
    ),
)


@given(json_values)
def test_a_result_that_is_json_is_stored_as_it_is(result: Any):
    assert plain_json(result) == result


@given(st.text(st.characters(codec=None), max_size=MAX_TEXT))
def test_text_keeps_its_length_and_loses_only_what_cannot_be_stored(text: str):
    cleaned = clean_text(text)

    assert len(cleaned) == len(text)
    assert "\0" not in cleaned
    cleaned.encode()


@given(st.text(st.characters(codec=None)), st.integers(1, 50))
def test_cleaned_text_is_never_longer_than_its_limit(text: str, limit: int):
    assert len(clean_text(text, limit)) <= limit


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\0b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("😀\0", "😀\ufffd"),
        ({"\0": 1}, {"\ufffd": 1}),
        (math.nan, None),
        ([math.inf, -math.inf, 1.5], [None, None, 1.5]),
        ({1, 2}, [1, 2]),
        ((1, (2,)), [1, [2]]),
        (deque([1, 2]), [1, 2]),
        ({"a": 1, "b": 2}.keys(), ["a", "b"]),
        ({"a": 1, "b": 2}.values(), [1, 2]),
        (b"\x00\xff", "AP8="),
        (bytearray(b"x"), "eA=="),
        (memoryview(b"x"), "eA=="),
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (Decimal("12345678901234567.890"), "12345678901234567.890"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PurePosixPath("a/b"), "a/b"),
        (ip_address("10.0.0.1"), "10.0.0.1"),
        (Colour.RED, [255, 0]),
        (Level.HIGH, 3),
        (Point(1, Point(b"x", None)), {"x": 1, "y": {"x": "eA==", "y": None}}),
        ({1: {2: "x"}}, {"1": {"2": "x"}}),
        ({None: 1, True: 2, 1.5: 3}, {"null": 1, "true": 2, "1.5": 3}),
        ({Level.HIGH: 1, UUID(int=1): 2}, {"3": 1, "00000000-0000-0000-0000-000000000001": 2}),
        ({"k": 10**400, "other": date(2026, 1, 2)}, {"k": 10**400, "other": "2026-01-02"}),
        ({"k" * 1000: date(2026, 1, 2)}, {"k" * 1000: "2026-01-02"}),
    ],
)
def test_what_json_cannot_hold_is_converted_by_a_rule(value: Any, stored: Any):
    assert storable(result_json(value)) == stored
    if len(str(stored)) < 900:
        assert plain_json(value) == stored


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12345678901234567.89", Decimal("12345678901234567.89")),
        ("-0.1234567890123456789", Decimal("-0.1234567890123456789")),
        ("0.1", 0.1),
        ("0.30000000000000004", 0.30000000000000004),
        ("0.00000010", 1e-7),
        ("1.50", 1.5),
        ("9" * 400, int("9" * 400)),
        ("9" * 400 + ".5", Decimal("9" * 400 + ".5")),
    ],
)
def test_stored_numbers_are_read_digit_by_digit(text: str, number: object):
    [found] = decode_json(f"[{text}]")

    assert (type(found), found) == (type(number), number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_was_sent_is_read_as_a_float(number: float):
    found = decode_json(json_text("data", number))

    assert (type(found), found) == (float, number)


async def coroutine() -> None:
    """Never awaited."""


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "result itself is of the type object, which JSON cannot hold"),
        ({"a": [1, object()]}, "result['a'][1] is of the type object"),
        ([coroutine], "result[0] is of the type function"),
        (Point, "result itself is of the type type"),
        (Point(1, 2j), "result['y'] is of the type complex"),
        (iter([1]), "result itself is of the type list_iterator"),
        (async_generator(), "result itself is of the type async_generator"),
        (ValueError("x"), "result itself is of the type ValueError"),
        ({(1, 2): 3}, "result itself is an object with a key of the type tuple"),
        ({1: "a", "1": "b"}, "result itself is an object with two keys '1'"),
        ([{"\0": 1, "\ufffd": 2}], "result[0] is an object with two keys"),
        (10**5000, "result itself is a number of more digits than can be read again"),
        ([Poisoned()], "result[0] is of the type Poisoned"),
        (Leaving(), "result itself is of the type Leaving"),
        ({"deep": [BrokenMapping()]}, "result['deep'][0] is a BrokenMapping that raises Runtime"),
        (BrokenList([1]), "result itself is a BrokenList that raises RuntimeError"),
        (BrokenDate(1, 1, 1), "result itself is a BrokenDate that raises RuntimeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_that_no_rule_converts_is_refused_and_says_where_it_is(value: Any, message: str):
    with pytest.raises(UnstorableValueError, match=re.escape(message)):
        result_json(value)
    assert_storable(plain_json(value))


@pytest.mark.filterwarnings("error")
def test_a_coroutine_inside_a_result_is_refused_and_closed():
    waiting = coroutine()

    with pytest.raises(UnstorableValueError, match=re.escape("result[0] is of the type coroutine")):
        result_json([waiting])
    assert inspect.getcoroutinestate(waiting) == inspect.CORO_CLOSED


def cycle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def wide_cycle() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made.update(left=made, right=made, more=[made, made])
    return made


def tangle() -> list[Any]:
    """Thirty lists, each of which holds all of them."""
    made: list[list[Any]] = [[] for _ in range(30)]
    for each in made:
        each.extend(made)
    return made


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize(
    "value",
    [
        cycle(),
        wide_cycle(),
        tangle(),
        nested(900),
        nested(3000),
        nested(100_000),
        "x" * 10_000_000,
        {"a": "\0" * 2_000_000},
        [{"k": i} for i in range(300_000)],
    ],
    ids=lambda value: f"{type(value).__name__}",
)
@pytest.mark.timeout(20)
def test_what_is_endless_or_too_large_is_noted_and_bounded(value: Any):
    text = result_json(value)

    assert len(text) <= MAX_RESULT_BYTES
    storable(text)


def test_a_truncated_result_says_how_large_it_was():
    stored = storable(result_json("x" * 2_000_000))

    assert stored["_truncated"] is True
    assert stored["size_bytes"] == 2_000_002


def test_a_result_at_the_limit_of_depth_is_kept():
    assert plain_json(nested(60)) == nested(60)


@pytest.mark.parametrize("value", [Poisoned(), Leaving()])
def test_the_text_of_a_poisoned_value_says_whose_it_is(value: object):
    assert type(value).__name__ in clean_text(value)


def shared_parts(part: Any) -> list[Any]:
    """A billion times *part*, in a few kilobytes of memory."""
    made = [part]
    for _ in range(3):
        made = made * 1000
        made = [made]
    return made


@pytest.mark.parametrize(
    "value",
    [
        shared_parts(1),
        {"a": shared_parts(1)},
        ["x" * 1_000_000] * 400_000,
        [b"x" * 1_000_000] * 400_000,
        [{"x" * 1_000_000: 1}] * 400_000,
        [Decimal("0." + "1" * 3_000)] * 50_000,
        [10**4_000] * 50_000,
        [object()] * 50_000,
        shared_parts(date(2026, 1, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.timeout(20)
def test_parts_that_stand_in_many_places_do_not_cost_more_than_the_limit(value: Any):
    with suppress(UnstorableValueError):
        assert len(result_json(value)) <= MAX_RESULT_BYTES
    assert len(json.dumps(plain_json(value))) <= MAX_RESULT_BYTES
    assert len(clean_text(value)) <= MAX_TEXT


def test_numbers_that_the_database_could_not_write_out_are_refused():
    with pytest.raises(InvalidCommandError, match="written out"):
        json_text("data", [1e300] * 2_800_000)
    assert len(json_text("data", ["ne+1", "e-mail"] * 100_000)) == 1_600_001


def test_a_number_has_as_many_digits_as_python_reads():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert len(json_text("data", 10**4_300 - 1)) == 4_300
        with pytest.raises(InvalidCommandError, match="more digits"):
            json_text("data", 10**4_300)
    finally:
        sys.set_int_max_str_digits(before)
