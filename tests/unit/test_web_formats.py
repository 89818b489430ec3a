"""How values, statuses and events are written for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.models.base import readable_json
from app.web import formats
from app.web.vocabulary import EVENTS, STATUSES, event_of, status_of
from commandbus.models import AuditEventType, CommandStatus


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0 ms"),
        (4.25, "4.2 ms"),
        (999, "999 ms"),
        (1234, "1.23 s"),
        (12_345, "12.3 s"),
        (90_000, "1 min 30 s"),
    ],
)
def test_milliseconds_use_the_unit_that_reads_best(value, text):
    assert formats.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3725, "1 h 2 min"),
        (timedelta(days=2, hours=3), "2 d 3 h"),
    ],
)
def test_seconds_show_their_two_largest_units(value, text):
    assert formats.seconds(value) == text


def test_a_running_time_counts_on_after_a_day():
    assert formats.clock(3725) == "01:02:05"
    assert formats.clock(100 * 3600) == "100:00:00"


def test_moments_are_written_in_utc():
    moment = datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=2)))

    assert formats.utc(moment) == "2026-01-31 21:30:00 UTC"
    assert formats.iso(moment) == "2026-01-31T21:30:00.000Z"
    assert formats.unix_iso(0) == formats.iso(datetime(1970, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("past", "text"), [(0, "now"), (3, "3 s ago"), (-10, "in 10 s"), (7300, "2 h ago")]
)
def test_ages_show_their_largest_unit(past, text):
    assert formats.age(datetime.now(UTC) - timedelta(seconds=past)) == text


def test_a_moment_of_another_year_says_so():
    now = datetime.now(UTC)

    assert formats.moment(datetime(2020, 3, 1, 4, 5, 6, tzinfo=UTC)) == "1 Mar 2020, 04:05:06"
    assert str(now.year) not in formats.moment(now)


def test_numbers_are_shown_with_thousands_separators():
    assert formats.number(1234567) == "1,234,567"
    assert formats.percent(0.125, 1) == "12.5%"


def test_every_status_and_event_has_a_look():
    assert set(STATUSES) == set(CommandStatus)
    assert set(EVENTS) == set(AuditEventType)
    assert len({status.tone for status in STATUSES.values()}) == len(STATUSES)
    assert len({status.icon for status in STATUSES.values()}) == len(STATUSES)


def test_what_this_version_does_not_know_is_shown_by_its_own_name():
    assert status_of("ON_HOLD").label == "On hold"
    assert event_of("PAUSED_BY_OPERATOR").label == "Paused by operator"
    assert event_of("SENT") is EVENTS["SENT"]


def test_stored_json_is_shown_with_its_numbers_digit_by_digit():
    text = '{\n  "amount": 12345678901234567.89,\n  "share": 0.5,\n  "name": "Ä"\n}'

    assert formats.pretty_json(readable_json(text)) == text
