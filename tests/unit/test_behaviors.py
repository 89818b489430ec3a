"""Behaviours: what is accepted, and how commands are dealt out over types."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.settings.configuration import WorkerConfig
from app.settings.options import options_of
from app.testcommand.behaviors import (
    PUBLIC_TYPES,
    Behavior,
    BehaviorDistribution,
    BehaviorType,
    default_timeout_ms,
)


def parse(**values):
    return Behavior.model_validate(values)


@pytest.mark.parametrize("kind", PUBLIC_TYPES)
def test_the_type_alone_is_a_complete_behaviour(kind):
    behavior = parse(type=kind.value)
    assert behavior.type is kind
    assert (behavior.transient_failures, behavior.timeouts, behavior.execution_time_ms) == (1, 1, 0)


@pytest.mark.parametrize("name", ["execution_time_ms", "delay_ms", "timeout_ms"])
def test_the_execution_time_has_three_names(name):
    assert parse(type="timeout", **{name: 5000}).to_json() == {
        "type": "timeout",
        "execution_time_ms": 5000,
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"type": "explode"},
        {"type": True},
        {"type": "crash_process"},
        {"type": "success", "execution_time_ms": True},
        {"type": "success", "execution_time_ms": "5"},
        {"type": "success", "execution_time_ms": 1.5},
        {"type": "success", "execution_time_ms": -1},
        {"type": "success", "delay_ms": 1, "execution_time_ms": 1},
        {"type": "success", "transient_failures": -1},
        {"type": "success", "colour": "red"},
        {"type": "fail_permanent", "error_code": ""},
        {"type": "fail_permanent", "error_code": "a\x00b"},
        {"type": "fail_permanent", "error_code": "\ud800"},
        {"type": "fail_permanent", "error_code": 5},
    ],
)
def test_what_makes_no_sense_is_refused(values):
    with pytest.raises(ValidationError):
        Behavior.model_validate(values)


@pytest.mark.parametrize("unknown", ["nope", "crash_process", ""])
def test_an_unknown_type_is_answered_with_those_that_are_offered(monkeypatch, unknown):
    monkeypatch.delenv("ALLOW_CRASH_BEHAVIOR", raising=False)
    with pytest.raises(ValidationError) as refused:
        parse(type=unknown)
    [error] = refused.value.errors()
    assert error["type"] == "enum"
    assert error["msg"].startswith("Input should be one of success, fail_permanent, ")
    assert "crash_process" not in error["msg"]


def test_crash_process_exists_only_where_the_environment_says_so(monkeypatch):
    monkeypatch.setenv("ALLOW_CRASH_BEHAVIOR", "true")
    assert parse(type="crash_process").type is BehaviorType.CRASH_PROCESS
    assert "crash_process" not in str(Behavior.model_json_schema())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("fail_permanent", ("PERMANENT", "Simulated permanent failure")),
        ("fail_transient", ("TRANSIENT", "Simulated transient failure")),
        ("fail_transient_then_succeed", ("TRANSIENT", "Transient failure 2")),
        ("fail_business", ("BUSINESS_RULE", "Simulated business rule failure")),
    ],
)
def test_errors_have_the_defaults_of_the_specification(kind, error):
    assert parse(type=kind).error(2) == error


def test_given_errors_win_and_are_taken_as_they_are():
    behavior = parse(type="fail_permanent", error_code="INVALID", error_message="{attempt} no")
    assert behavior.error(1) == ("INVALID", "{attempt} no")


def test_behaviours_are_the_same_when_they_do_the_same():
    assert parse(type="success").same_as(parse(type="success", delay_ms=0, error_code=None))
    assert not parse(type="success").same_as(parse(type="success", delay_ms=1))


@pytest.mark.parametrize(
    "percentages",
    [
        {},
        {"success": 99},
        {"success": 100.001},
        {"success": True, "timeout": 99},
        {"success": "100"},
        {"success": 110, "timeout": -10},
        {"success": float("nan")},
        {"explode": 100},
    ],
)
def test_a_distribution_adds_up_to_exactly_one_hundred(percentages):
    with pytest.raises(ValidationError):
        BehaviorDistribution.model_validate(percentages)


@pytest.mark.parametrize("tiny", [1e-300, 5e-324, 9e-7])
def test_a_share_that_is_too_small_to_count_is_refused(tiny):
    with pytest.raises(ValidationError, match="at least"):
        BehaviorDistribution.model_validate({"success": 100, "timeout": tiny})


def test_a_timeout_outlasts_every_lease_that_can_be_set():
    [longest] = [
        each.high for each in options_of(WorkerConfig) if each.name == "visibility_timeout"
    ]
    running = parse(type="timeout", execution_time_ms=default_timeout_ms(int(longest or 0)))
    assert running.execution_time_ms > int(longest or 0) * 1000
    with pytest.raises(ValidationError, match="3600000"):
        parse(type="success", execution_time_ms=3_600_001)


def test_tenths_add_up_as_they_are_written():
    parts = {"success": 33.3, "timeout": 33.3, "fail_permanent": 33.4}
    assert BehaviorDistribution.model_validate(parts).to_json() == parts
    assert BehaviorDistribution.model_validate({"success": 100}).to_json() == {"success": 100}


@given(
    cuts=st.lists(st.integers(0, 1000), min_size=5, max_size=5),
    count=st.integers(0, 3000),
    seed=st.integers(),
)
def test_allocation_is_exact_and_less_than_one_command_away(cuts, count, seed):
    edges = [0, *sorted(cuts), 1000]
    tenths = {
        kind.value: (high - low) / 10
        for kind, low, high in zip(PUBLIC_TYPES, edges, edges[1:], strict=False)
    }
    distribution = BehaviorDistribution.model_validate(tenths)

    counts = distribution.allocate(count)
    order = list(distribution.shuffled(count, seed=seed))

    assert sum(counts.values()) == count
    assert all(abs(counts[kind] - tenths[kind] * count / 100) < 1 + 1e-9 for kind in counts)
    assert {kind: order.count(kind) for kind in counts} == counts
    assert order == list(distribution.shuffled(count, seed=seed))
