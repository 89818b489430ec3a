"""Numbers and durations that make no sense are refused where they are given, bools included."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from commandbus import (
    CommandBus,
    CommandStatus,
    HandlerContext,
    HandlerRegistry,
    InvalidCommandError,
    NewCommand,
    Pruner,
    RetentionRule,
    RetryPolicy,
    TroubleshootingQueue,
    Worker,
)

NO_POOL = cast(Any, None)
NOT_COUNTS = (True, 0, -1, 1.5, float("nan"), "3")
NOT_POSITIVE = (True, 0, -1, float("nan"), float("inf"), "3")
NOT_DURATIONS = (True, -1, float("nan"), float("inf"), "3")


def worker(**options: Any) -> Worker:
    return Worker(NO_POOL, domain="test", handler_registry=HandlerRegistry(), **options)


def pruner(**options: Any) -> Pruner:
    return Pruner(cast(Any, SimpleNamespace(autocommit=True)), **options)


async def handle(command, context):
    return None


def refusals() -> Iterator[tuple[Callable[..., object], str, object]]:
    for make, names, values in (
        (worker, ("concurrency", "batch_size"), NOT_COUNTS),
        (worker, ("poll_interval", "answer_timeout"), NOT_POSITIVE),
        (worker, ("visibility_timeout",), (*NOT_POSITIVE, 0.5)),
        (worker, ("handler_timeout", "drain_timeout"), NOT_DURATIONS),
        (lambda **v: CommandBus(NO_POOL, **v), ("answer_timeout",), NOT_POSITIVE),
        (lambda **v: TroubleshootingQueue(NO_POOL, **v), ("answer_timeout",), NOT_POSITIVE),
        (pruner, ("batch_size",), NOT_COUNTS),
        (pruner, ("answer_timeout",), NOT_POSITIVE),
        (RetryPolicy, ("max_attempts",), NOT_COUNTS),
        (RetryPolicy, ("base_delay_ms", "max_delay_ms"), (True, -1, 1.5, "3")),
        (RetryPolicy, ("backoff_multiplier",), (True, 0.5, float("inf"), "3")),
        (RetryPolicy, ("jitter",), (True, -0.1, 1.1, "0.1")),
        (
            lambda **v: HandlerRegistry().register("test", "DoIt", handle, **v),
            ("timeout",),
            NOT_DURATIONS,
        ),
        (
            lambda **v: RetentionRule(status=CommandStatus.FAILED, **v),
            ("keep", "older_than"),
            (True, -1, 1.5, "3"),
        ),
    ):
        for name in names:
            for value in values:
                yield make, name, value


@pytest.mark.parametrize(("make", "name", "value"), list(refusals()))
def test_what_is_no_such_number_is_refused_by_name(
    make: Callable[..., object], name: str, value: object
):
    with pytest.raises(ValueError, match=f"^{name} must be .* not {re.escape(repr(value))}"):
        make(**{name: value})


@pytest.mark.parametrize("delay", [True, "5", -1, float("nan"), timedelta(days=4000), []])
async def test_a_delay_that_is_none_is_refused_before_the_database_is_asked(delay):
    bus, tsq = CommandBus(NO_POOL), TroubleshootingQueue(NO_POOL)
    commands = [NewCommand(command_type="DoIt", command_id=uuid4(), delay=delay)]

    for call in (
        bus.send("test", "DoIt", uuid4(), {}, delay=delay),
        bus.send_many("test", commands),
        tsq.operator_retry("test", uuid4(), delay_seconds=delay),
    ):
        with pytest.raises(InvalidCommandError, match=r"^delay.* must be seconds or a timedelta"):
            await call


@pytest.mark.parametrize("limit", [True, 0, -1, 1001, 1.5, "3"])
async def test_a_limit_that_is_none_is_refused_before_the_database_is_asked(limit):
    bus, tsq = CommandBus(NO_POOL), TroubleshootingQueue(NO_POOL)

    for call in (
        bus.query_commands(limit=limit),
        bus.read_replies("test__replies", limit=limit),
        tsq.list(limit=limit),
    ):
        with pytest.raises(ValueError, match=r"^limit must be a whole number from 1 to 1000"):
            await call


@pytest.mark.parametrize("seconds", NOT_DURATIONS)
async def test_a_lease_is_not_extended_by_what_is_no_time(seconds):
    async def extend(_: float) -> None:
        raise AssertionError("the database was asked")

    with pytest.raises(ValueError, match=r"^seconds must be a number from 0 to"):
        await HandlerContext(attempt=1, max_attempts=3, extend=extend).extend_visibility(seconds)


def test_a_handler_that_cannot_be_called_is_refused_when_it_is_registered():
    with pytest.raises(TypeError, match="coroutine function, not None"):
        HandlerRegistry().register("test", "DoIt", cast(Any, None))


def test_a_rule_takes_the_name_of_a_status():
    rule = RetentionRule(status=cast(Any, "FAILED"), keep=0)

    assert rule.status is CommandStatus.FAILED


def test_a_pruner_needs_a_connection_on_which_each_batch_is_a_transaction():
    with pytest.raises(ValueError, match="autocommit"):
        Pruner(cast(Any, SimpleNamespace(autocommit=False)))
