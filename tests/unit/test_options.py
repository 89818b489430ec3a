"""Options: what they take, and which source wins."""

from __future__ import annotations

from typing import Any

import pytest

from app.settings.configuration import (
    RETRY_OPTIONS,
    WORKER_OPTIONS,
    RetryConfig,
    WorkerConfig,
    environment,
)
from app.settings.options import Chosen, InvalidOptionError, Source, checked, choose
from commandbus import HandlerRegistry, Worker

ALL = {option.name: option for option in (*WORKER_OPTIONS, *RETRY_OPTIONS)}


def test_the_defaults_are_those_of_the_specification():
    assert WorkerConfig() == WorkerConfig(30, 4, 1.0, 10)
    assert RetryConfig() == RetryConfig(3, 1000, 60000, 2.0)


def test_every_option_explains_itself():
    # The names of both sections are distinct.
    assert len(ALL) == len(WORKER_OPTIONS) + len(RETRY_OPTIONS)
    for option in ALL.values():
        assert option.label
        assert option.help.endswith(".")
        assert option.check(option.default) == option.default
        assert option.flag.removeprefix("--").replace("-", "_") == option.name


@pytest.mark.parametrize(
    "value", [True, "4", None, 0, 1001, 1.5, float("nan"), float("inf"), 10**400, [4]]
)
def test_a_whole_number_out_of_range_or_of_another_kind_is_refused(value):
    with pytest.raises(InvalidOptionError, match="a whole number from 1 to 1000 commands"):
        checked(WORKER_OPTIONS, {"concurrency": value})


@pytest.mark.parametrize("text", ["9" * 400, "9" * 6000, "-" + "9" * 400, "1e400", "nan", "inf"])
@pytest.mark.parametrize("option", ALL.values(), ids=ALL)
def test_a_number_beyond_all_bounds_is_refused_wherever_it_is_written(option, text):
    with pytest.raises(ValueError, match=f"must be {option.range_text}"):
        option.parse(text)
    with pytest.raises(InvalidOptionError, match=option.variable):
        choose([option], flags={}, environ={option.variable: text}, stored={})


@pytest.mark.parametrize("end", ["low", "high"])
def test_the_library_takes_whatever_can_be_set(end):
    worker = {option.name: getattr(option, end) for option in WORKER_OPTIONS}
    policy = RetryConfig(**{option.name: getattr(option, end) for option in RETRY_OPTIONS})
    pool: Any = None

    made = Worker(
        pool,
        domain="test",
        handler_registry=HandlerRegistry(),
        retry_policy=policy.to_policy(),
        **worker,
    )

    assert made.concurrency == worker["concurrency"]


def test_numbers_become_what_the_option_holds():
    values = checked(WORKER_OPTIONS, {"concurrency": 8.0, "poll_interval": 2})
    assert [type(value) for value in values.values()] == [int, float]


def test_all_refused_values_are_named_at_once():
    with pytest.raises(InvalidOptionError) as caught:
        checked(WORKER_OPTIONS, {"concurrency": 0, "batch_size": "x", "colour": 1})
    assert set(caught.value.errors) == {"concurrency", "batch_size", "colour"}


@pytest.mark.parametrize(
    ("flags", "environ", "stored", "expected"),
    [
        ({}, {}, {}, Chosen(4, Source.DEFAULT)),
        ({}, {}, {"concurrency": 5}, Chosen(5, Source.STORED)),
        ({}, {"WORKER_CONCURRENCY": "6"}, {"concurrency": 5}, Chosen(6, Source.ENVIRONMENT)),
        (
            {"concurrency": 7},
            {"WORKER_CONCURRENCY": "6"},
            {"concurrency": 5},
            Chosen(7, Source.FLAG),
        ),
        (
            {"concurrency": None},
            {"WORKER_CONCURRENCY": " "},
            {"concurrency": 5},
            Chosen(5, Source.STORED),
        ),
    ],
)
def test_flag_wins_over_environment_over_stored_over_default(flags, environ, stored, expected):
    chosen = choose(WORKER_OPTIONS, flags=flags, environ=environ, stored=stored)
    assert chosen["concurrency"] == expected


def test_a_wrong_value_in_the_environment_names_its_variable():
    with pytest.raises(InvalidOptionError, match="WORKER_BATCH_SIZE"):
        choose(WORKER_OPTIONS, flags={}, environ={"WORKER_BATCH_SIZE": "many"}, stored={})


def test_the_environment_wins_over_the_file(tmp_path):
    file = tmp_path / ".env"
    file.write_text("WORKER_CONCURRENCY=2\nWORKER_BATCH_SIZE=20\n")
    values = environment({"WORKER_CONCURRENCY": "3", "EMPTY": ""}, env_file=file)
    assert values == {"WORKER_CONCURRENCY": "3", "WORKER_BATCH_SIZE": "20"}


@pytest.mark.parametrize(
    ("config", "delays"),
    [
        (RetryConfig(), [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]),
        (RetryConfig(base_delay_ms=0), [0] * 8),
        (RetryConfig(base_delay_ms=100, backoff_multiplier=1.0), [100] * 8),
        (RetryConfig(base_delay_ms=5000, max_delay_ms=2000), [2000] * 8),
    ],
)
def test_retry_settings_give_these_delays(config, delays):
    policy = config.to_policy()
    assert [policy.delay_ms(attempt) for attempt in range(1, 9)] == delays


def test_a_very_late_attempt_waits_the_longest_delay():
    assert RetryConfig(backoff_multiplier=100.0).to_policy().delay_ms(1000) == 60000
