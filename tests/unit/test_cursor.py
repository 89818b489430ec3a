"""Cursors: a key that clients pass back without looking into it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commandbus.cursors import decode_cursor, encode_cursor

zones = st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@given(st.datetimes(timezones=zones), st.uuids())
def test_what_is_encoded_is_decoded(at: datetime, command_id: UUID):
    assert decode_cursor(encode_cursor(at, command_id)) == (at, command_id)


@given(st.datetimes(timezones=zones), st.uuids())
def test_a_cursor_fits_into_a_url_as_it_is(at: datetime, command_id: UUID):
    assert encode_cursor(at, command_id).replace("-", "").replace("_", "").isalnum()


def test_no_cursor_is_the_first_page():
    assert decode_cursor(None) is None


@given(st.text())
def test_any_other_text_is_refused_with_one_error(text: str):
    try:
        key = decode_cursor(text)
    except ValueError:
        return
    assert key is not None
    assert key[0].tzinfo is not None


NO_ZONE = encode_cursor(datetime(2026, 1, 1), UUID(int=7))  # noqa: DTZ001


@pytest.mark.parametrize("text", ["", "x", "AAAA", "ä", "\ud800", NO_ZONE])
def test_a_cursor_of_arbitrary_text_is_refused(text: str):
    with pytest.raises(ValueError, match="cursor"):
        decode_cursor(text)


def test_a_cut_cursor_is_refused():
    cursor = encode_cursor(datetime.now(UTC), uuid4())

    with pytest.raises(ValueError, match="cursor"):
        decode_cursor(cursor[:-4])
