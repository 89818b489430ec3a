"""Ids that the bus makes."""

from __future__ import annotations

import time

from commandbus import uuid7


def test_ids_are_of_version_7():
    made = uuid7()

    assert made.version == 7
    assert made.variant == "specified in RFC 4122"


def test_ids_begin_with_the_milliseconds_of_now():
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000

    assert before <= made.int >> 80 <= after


def test_many_new_ids_are_all_different():
    assert len({uuid7() for _ in range(10_000)}) == 10_000


def test_later_ids_sort_after_earlier_ones():
    first = uuid7()
    while time.time_ns() // 1_000_000 <= first.int >> 80:
        pass

    assert first < uuid7()
