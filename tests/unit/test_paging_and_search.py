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
from app.models.search_texts import id_text, trimmed
from app.web.formats import short_id

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
def test_text_that_no_cursor_writes_is_refused(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except CursorError:
        return
    assert str(cursor) == text


def test_a_cursor_with_foreign_characters_is_refused() -> None:
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
    found = id_text(text)

    assert found is not None
    assert (found.first, found.last, found.tail) == (UUID(first), UUID(last), "")


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "x", "0190-f5b2", "0190f5b27-", f"{ID}0", "%", "_", "٣", "..", "…", "…6d"),
        *("0190…5c…6d", "0190…x", f"{ID}…6d", "{}", '"', "urn:uuid:", f"order {ID} failed"),
    ],
)
def test_what_no_id_begins_with_is_no_range(text: str) -> None:
    assert id_text(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *(f"{{{ID}}}", f'"{ID}"', f"'{ID}'", f"`{ID}`", f"\u201c{ID}\u201d", f"<{ID}>", f"({ID}),"),
        *(f"urn:uuid:{ID}", f"URN:UUID:{str(ID).upper()}", f"{ID}.", f'"{ID}",'),
        *(f"  {ID}\n", f"\u200b{ID}\ufeff", f"\t{{{ID.hex.upper()}}}\r\n"),
        str(ID).replace("-", "\u2011"),
        f"{str(ID)[:8]}\u200b{str(ID)[8:]}",
        f"{ID.hex[:20]}…{ID.hex[20:]}",
        *(f"http://localhost:5001/commands/{ID}", f"/audit/{ID}?domain=test", f"UUID('{ID}')"),
        *(f'"command_id": "{ID}",', f"command_id={ID}"),
    ],
)
def test_an_id_is_read_in_every_form_in_which_it_is_pasted(text: str) -> None:
    found = id_text(text)

    assert found is not None
    assert found.whole == ID
    assert found.names_one


@pytest.mark.parametrize(
    "text", [short_id(ID), short_id(ID).replace("…", "..."), f" “{short_id(ID).upper()}” "]
)
def test_an_id_is_read_as_lists_show_it(text: str) -> None:
    found = id_text(text)

    assert found is not None
    assert (str(found.first)[:8], found.tail, found.names_one) == ("0190f5b2", "5c6d", True)
    assert found.first < ID < found.last


def test_the_end_of_an_id_may_hold_its_hyphens() -> None:
    found = id_text("…8c2d-1e2f3a4b5c6d")

    assert found is not None
    assert (found.first.int, found.tail) == (0, "8c2d1e2f3a4b5c6d")


@given(st.text())
def test_a_search_text_is_read_without_what_nobody_sees_around_it(text: str) -> None:
    found = trimmed(f"\u200b \n{text}\ufeff\t\x00")

    assert found in text
    assert trimmed(found) == found
    id_text(text)


def test_json_that_cannot_be_shown_says_so() -> None:
    deep = "[" * (READABLE_DEPTH + 1) + "]" * (READABLE_DEPTH + 1)

    assert readable_json('{"a": [1]}') == {"a": [1]}
    assert "_unreadable" in readable_json(deep)
    assert "_unreadable" in readable_json("[" * 5000 + "]" * 5000)
    assert "_unreadable" in readable_json("9" * 5000)
