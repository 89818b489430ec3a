"""Cursors that only pages give, and what a search text can mean."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models.audit import parse_event_cursor
from app.models.base import READABLE_DEPTH, readable_json
from app.models.paging import Cursor, CursorError, Key
from app.models.search import id_range

ID = UUID("0190f5b2-7c1e-7a3b-8c2d-1e2f3a4b5c6d")


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.uuids(),
    st.booleans(),
)
def test_a_cursor_is_read_as_it_was_given(at: datetime, command_id: UUID, backward: bool) -> None:
    cursor = Cursor(Key(at, command_id), backward)

    assert Cursor.parse(str(cursor)) == cursor


@given(st.text(max_size=80))
def test_any_other_text_is_refused(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except CursorError:
        return
    assert str(cursor) == text


def test_what_base64_forgives_is_refused() -> None:
    text = str(Cursor(Key(datetime(2026, 1, 31, tzinfo=UTC), ID)))

    for spoilt in (text + "=", f"{text[:5]}!{text[5:]}", text + "\n", f"~~{text}"):
        with pytest.raises(CursorError):
            Cursor.parse(spoilt)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "01", "1e3", "x", "²", "9" * 19])
def test_an_event_cursor_is_a_plain_number(text: str) -> None:
    with pytest.raises((CursorError, IndexError)):
        parse_event_cursor(text)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        (str(ID), str(ID), str(ID)),
        (str(ID).upper(), str(ID), str(ID)),
        (ID.hex, str(ID), str(ID)),
        ("0190", "01900000-0000-0000-0000-000000000000", "0190ffff-ffff-ffff-ffff-ffffffffffff"),
        (
            "0190f5b2-7c",
            "0190f5b2-7c00-0000-0000-000000000000",
            "0190f5b2-7cff-ffff-ffff-ffffffffffff",
        ),
    ],
)
def test_the_beginning_of_an_id_is_a_range_of_ids(text: str, first: str, last: str) -> None:
    assert id_range(text) == (UUID(first), UUID(last))


@pytest.mark.parametrize("text", ["", "-", "x", "0190-f5b2", "0190f5b27-", f"{ID}0", "%", "_", "٣"])
def test_what_no_id_begins_with_is_no_range(text: str) -> None:
    assert id_range(text) is None


def test_json_that_cannot_be_shown_says_so() -> None:
    deep = "[" * (READABLE_DEPTH + 1) + "]" * (READABLE_DEPTH + 1)

    assert readable_json('{"a": [1]}') == {"a": [1]}
    assert "_unreadable" in readable_json(deep)
    assert "_unreadable" in readable_json("[" * 5000 + "]" * 5000)
    assert "_unreadable" in readable_json("9" * 5000)
