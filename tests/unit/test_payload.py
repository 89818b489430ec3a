"""JSON in and out: whatever a handler returns can be stored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commandbus.payload import (
    MAX_RESULT_BYTES,
    MAX_TEXT,
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
def test_a_result_of_any_kind_becomes_json_that_can_be_stored(result: Any):
    storable(result_json(result))


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
def test_text_is_bounded(text: str, limit: int):
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
        (b"x", "b'x'"),
        ({1: {2: "x"}}, {"1": {"2": "x"}}),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ({1: "a", "1": "b"}, {"1": "a", "1 (2)": "b"}),
        (
            [{"a": ({None: 1, "null": 2, True: 3, "true": 4},)}],
            [{"a": [{"null": 1, "null (2)": 2, "true": 3, "true (2)": 4}]}],
        ),
        ({"\0": 1, "\ufffd": 2}, {"\ufffd": 1, "\ufffd (2)": 2}),
        (
            {"x" * 300: 1, "x" * 301: 2, "\0": 3},
            {"x" * 199 + "…": 1, "x" * 199 + "… (2)": 2, "\ufffd": 3},
        ),
    ],
)
def test_what_json_cannot_hold_becomes_something_close(value: Any, stored: Any):
    assert storable(result_json(value)) == stored


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


def test_a_huge_number_becomes_text():
    stored = storable(result_json({"n": 10**5000}))

    assert stored["n"].startswith("0x")
    assert len(stored["n"]) <= MAX_TEXT


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
        Poisoned(),
        [Poisoned(), {"a": Poisoned()}],
        Leaving(),
        BrokenMapping(),
        BrokenList([1]),
        {"deep": [BrokenMapping()]},
        10**5000,
        "x" * 10_000_000,
        {"a": "\0" * 2_000_000},
        [{"k": i} for i in range(300_000)],
    ],
    ids=lambda value: f"{type(value).__name__}",
)
@pytest.mark.timeout(20)
def test_what_is_endless_broken_or_too_large_is_noted_and_bounded(value: Any):
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
