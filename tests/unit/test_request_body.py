"""Strict JSON: one reading of each body, or a refusal that says why."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.body import MAX_DEPTH, parse_json
from app.errors import Problem

STORABLE = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | STORABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STORABLE, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_what_json_can_say_is_read_as_it_was_said(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_no_bytes_are_a_fault_of_ours(raw: bytes) -> None:
    with suppress(Problem):
        parse_json(raw)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 400),
        (" ", 400),
        ("{} {}", 400),
        ("{'a': 1}", 400),
        ('{"a": 1,}', 400),
        ('{"a": 01}', 400),
        ('{"a": NaN}', 400),
        ('{"a": Infinity}', 400),
        ('{"a": 1e400}', 400),
        ('{"a": %s}' % ("9" * 301), 400),
        ('{"a": 1, "a": 1}', 400),
        ('{"b": {"a": 1, "\\u0061": 2}}', 400),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 400),
        ("[" * 200_000, 400),
        ('"a\tb"', 400),
        ('"\\u0000"', 422),
        ('{"a": ["\\ud800"]}', 422),
        ('{"\\udc00": 1}', 422),
    ],
)
def test_what_is_refused_is_refused_for_its_reason(text: str, status: int) -> None:
    with pytest.raises(Problem) as refused:
        parse_json(text.encode())
    assert refused.value.code == status


def test_the_bounds_themselves_are_accepted() -> None:
    nested = parse_json(("[" * MAX_DEPTH + "]" * MAX_DEPTH).encode())
    assert isinstance(nested, list)
    assert parse_json(b"9" * 300) == int("9" * 300)
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_the_refused_place_is_named() -> None:
    with pytest.raises(Problem) as refused:
        parse_json(b'{"payload": {"items": ["fine", "\\u0000"]}}')
    assert refused.value.errors[0]["field"] == "payload.items.1"
