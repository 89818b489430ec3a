"""Times in every form in which people and programs write them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.actions.moments import MomentError, is_repeated, is_skipped, parse_moment

BERLIN = ZoneInfo("Europe/Berlin")
HALF_PAST_MIDNIGHT = datetime(2024, 3, 31, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        *("2024-03-31T02:30:00+02:00", "2024-03-31T02:30:00 02:00", "2024-03-31 02:30:00 02:00"),
        *("2024-03-31 02:30:00+0200", "2024-03-31T02:30+02", "2024-03-31t02:30:00.000+02:00"),
        *("2024-03-31T00:30:00Z", "2024-03-31t00:30z", "2024-03-31 00:30:00 Z"),
        *("2024-03-31 00:30:00+00", "2024-03-31 00:30:00 00", "2024-03-31T00:30:00 00:00"),
        *("2024-03-30T19:30:00-05:00", "2024-03-30T19:30:00 -05:00", "2024-03-30T19:30-0500"),
        *("2024-03-31T00:30:00.000000000Z", " 2024-03-31T00:30Z\n", "2024-03-31T00:30:00-00:00"),
    ],
)
def test_a_moment_is_taken_in_every_form(text: str) -> None:
    assert parse_moment(text) == HALF_PAST_MIDNIGHT
    assert parse_moment(text, BERLIN) == HALF_PAST_MIDNIGHT


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("2024-03-31T02:30:00", "time_without_zone"),
        ("2024-03-31", "time_without_zone"),
        ("yesterday", "time_without_zone"),
        ("", "time_without_zone"),
        ("2024-03-31T02:30:00Z+02:00", "time_without_zone"),
        ("\uff12024-03-31T02:30:00Z", "time_without_zone"),
        ("2024-02-30T00:00:00Z", "time_impossible"),
        ("2024-03-31T24:00:00Z", "time_impossible"),
        ("2024-03-31T24:00Z", "time_impossible"),
        ("2024-03-31T24:00:00.0+01:00", "time_impossible"),
        ("2024-03-31T02:30:00+24:00", "time_impossible"),
        ("2024-03-31T02:30:00+02:60", "time_impossible"),
        ("0001-01-01T00:00:00+23:00", "time_out_of_range"),
        ("9999-12-31T23:59:59-23:00", "time_out_of_range"),
    ],
)
def test_what_is_no_moment_is_refused_with_its_reason(text: str, code: str) -> None:
    with pytest.raises(MomentError) as caught:
        parse_moment(text)

    assert caught.value.code == code
    if code == "time_without_zone":
        assert "%2B" in str(caught.value)


@given(st.integers(-2_208_988_800, 32_503_593_600).map(partial(datetime.fromtimestamp, tz=UTC)))
def test_a_moment_is_read_as_it_was_written(moment: datetime) -> None:
    assert parse_moment(moment.isoformat()) == moment
    assert parse_moment(moment.isoformat().replace("+", " ")) == moment


def test_local_times_that_clocks_skip_or_repeat_have_one_meaning() -> None:
    skipped = datetime.fromisoformat("2024-03-31T02:30")
    repeated = datetime.fromisoformat("2024-10-27T02:30")

    assert is_skipped(skipped, BERLIN)
    assert is_repeated(repeated, BERLIN)
    assert not is_skipped(repeated, BERLIN)
    assert not is_repeated(skipped, BERLIN)
    for is_end in (False, True):
        found = parse_moment(skipped.isoformat(), BERLIN, is_end=is_end)
        assert found.astimezone(BERLIN).isoformat() == "2024-03-31T03:30:00+02:00"
    first = parse_moment(repeated.isoformat(), BERLIN)
    second = parse_moment(repeated.isoformat(), BERLIN, is_end=True)
    assert (second - first).total_seconds() == 3600
    assert parse_moment("2024-03-31", BERLIN) == datetime(2024, 3, 30, 23, tzinfo=UTC)
