"""Strict JSON: one reading of each body, or a refusal that says why."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.actions.inputs import CancelCommand
from app.api.body import MAX_DEPTH, parse_json
from app.server.errors import Problem
from app.web.forms import ABSENT, Form
from app.web.send_form import read_single

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
        ('{"a": 12345678901234567.89}', 422),
        ('{"a": [0.1234567890123456789]}', 422),
        ('{"a": 1e-400}', 422),
        ('{"a": 1e-99999999999999999999}', 422),
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


def test_a_refused_body_names_the_place_of_the_error() -> None:
    with pytest.raises(Problem) as refused:
        parse_json(b'{"payload": {"items": ["fine", "\\u0000"]}}')
    assert refused.value.errors[0]["field"] == "payload.items.1"


def test_a_number_that_would_be_rounded_is_named_with_what_to_do() -> None:
    with pytest.raises(Problem) as refused:
        parse_json(b'{"payload": {"amount": 12345678901234567.89}}')
    [error] = refused.value.errors
    assert (error["field"], error["code"]) == ("payload.amount", "number_not_exact")
    assert (
        "12345678901234567.89 has more digits than are kept; write it as text" in error["message"]
    )


@pytest.mark.parametrize(
    "text",
    ["0.1", "1e5", "1E-7", "0.30000000000000004", "1.7976931348623157e308", "-0.0", "5e-324"],
)
def test_a_number_that_a_float_holds_is_taken_however_it_is_written(text: str) -> None:
    assert parse_json(text.encode()) == float(text)


# The fields of forms are read in the same way


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Not valid JSON"),
        ('{"a": NaN}', "NaN is no value of JSON"),
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ('{"a": 12345678901234567.89}', "has more digits than are kept"),
        ('{"a": "\\u0000"}', "NUL"),
        ("[" * 200_000, "Nested more than 64 deep"),
        ("[1]", "JSON object"),
        ("null", "JSON object"),
        ('"%s"' % ("x" * 262_144), "256 KB"),
    ],
    ids=lambda text: text[:20],
)
def test_the_payload_of_a_form_is_refused_for_its_reason(text: str, reason: str) -> None:
    form = Form({"type": "success", "payload": text})

    assert read_single(form, timeout_ms=35_000) is None
    assert reason in form.errors["payload"]


def test_a_form_without_a_payload_sends_an_empty_one() -> None:
    command = read_single(Form({"type": "success", "payload": " "}), timeout_ms=35_000)

    assert command is not None
    assert command.payload == {}


@pytest.mark.parametrize("text", ["1234567890.12345678901", '{"a": 1, "a": 2}', "{", "NaN"])
def test_the_result_of_a_form_is_refused_likewise(text: str) -> None:
    form = Form({"result": text})

    assert form.json("result") is ABSENT
    assert "result" in form.errors


def test_a_line_break_of_a_form_counts_as_one_character() -> None:
    lines = Form({"reason": "a\r\n" * 999 + "ab"})
    more = Form({"reason": "a\r\n" * 999 + "abc"})

    assert read_reason(lines) == "a\n" * 999 + "ab"
    assert read_reason(more) is None
    assert more.errors == {"reason": "At most 2,000 characters, not 2,001"}


def read_reason(form: Form) -> str | None:
    read = form.read(CancelCommand, {"reason": form.value("reason")})
    return None if read is None else read.reason
