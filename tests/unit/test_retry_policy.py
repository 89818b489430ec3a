"""The retry policy: attempt in, delay out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commandbus import RetryPolicy

policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 1000),
    base_delay_ms=st.integers(0, 10**9),
    max_delay_ms=st.integers(0, 10**9),
    backoff_multiplier=st.floats(1, 1e9),
    jitter=st.floats(0, 1),
)


def test_the_default_delays_double_up_to_a_minute():
    policy = RetryPolicy()

    assert [policy.delay_ms(attempt) for attempt in (1, 2, 3, 6, 7, 100)] == [
        1000,
        2000,
        4000,
        32000,
        60000,
        60000,
    ]


@given(policies, st.integers(1, 10**6))
def test_no_delay_is_longer_than_the_limit(policy: RetryPolicy, attempt: int):
    assert 0 <= policy.delay_ms(attempt) <= policy.max_delay_ms
    assert 0 <= policy.jittered_delay_ms(attempt) <= policy.max_delay_ms


@given(policies, st.integers(1, 10**6))
def test_retry_delays_never_become_shorter(policy: RetryPolicy, attempt: int):
    assert policy.delay_ms(attempt) <= policy.delay_ms(attempt + 1)


@given(policies, st.integers(1, 1000))
def test_jitter_only_lengthens_by_its_fraction(policy: RetryPolicy, attempt: int):
    plain, jittered = policy.delay_ms(attempt), policy.jittered_delay_ms(attempt)

    assert plain <= jittered <= plain * (1 + policy.jitter) + 1


def test_jitter_spreads_commands_that_failed_together():
    policy = RetryPolicy(base_delay_ms=10_000, jitter=0.5)

    assert len({policy.jittered_delay_ms(1) for _ in range(50)}) > 10


def test_without_a_base_delay_nothing_waits():
    assert RetryPolicy(base_delay_ms=0).jittered_delay_ms(500) == 0


@pytest.mark.parametrize(
    "values",
    [
        {"max_attempts": 0},
        {"base_delay_ms": -1},
        {"max_delay_ms": -1},
        {"backoff_multiplier": 0.5},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": float("nan")},
        {"backoff_multiplier": float("nan")},
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any]):
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**values)
