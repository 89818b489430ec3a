"""However a handler ends, its command gets an outcome, and the worker goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from commandbus import (
    BusinessRuleError,
    PermanentCommandError,
    RetryPolicy,
    TransientCommandError,
    Worker,
)
from tests.facts import (
    assert_books_balance,
    ended,
    events,
    send,
)


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (BusinessRuleError("NO_STOCK", "none left"), "FAILED", "NO_STOCK"),
        (PermanentCommandError("GONE", "no account"), "IN_TSQ", "GONE"),
        (TransientCommandError("BUSY", "later"), "IN_TSQ", "BUSY"),
        (ValueError("x"), "IN_TSQ", "ValueError"),
        (SystemExit(3), "IN_TSQ", "SystemExit"),
        (asyncio.CancelledError(), "IN_TSQ", "CancelledError"),
        (TimeoutError(), "IN_TSQ", "TimeoutError"),
        (ExceptionGroup("two", [ValueError(), KeyError()]), "IN_TSQ", "ExceptionGroup"),
        (StopAsyncIteration(), "IN_TSQ", "StopAsyncIteration"),
        (StopIteration(), "IN_TSQ", "RuntimeError"),
        (BaseException("odd"), "IN_TSQ", "BaseException"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else None,
)
async def test_whatever_a_handler_raises_becomes_the_outcome_of_its_command(
    bus, pool, registry, recorded_other, start_worker, error, expected, code
):
    @registry.handler("test", "DoIt")
    async def handle(command, context):
        raise error

    worker: Worker = await start_worker()
    [command_id] = await send(pool, max_attempts=2)
    [other] = await send(pool, command_type="Other")

    await ended(pool, command_id, expected=expected)
    await ended(pool, other)
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.last_error_code == code
    assert command.attempts == (
        1 if isinstance(error, (BusinessRuleError, PermanentCommandError)) else 2
    )
    assert not worker.is_stopping
    await assert_books_balance(pool)


@pytest.fixture
def recorded_other(registry) -> None:
    """A handler of another type, which goes on working."""

    async def do_nothing(command, context):
        return None

    registry.register("test", "Other", do_nothing)


class PoisonedError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


def cyclic() -> list[Any]:
    made: list[Any] = []
    made += [made, made]
    return made


@pytest.mark.parametrize(
    "result",
    [
        "\0",
        "\ud800",
        float("nan"),
        {1, 2},
        cyclic(),
        PoisonedError(),
        "x" * 5_000_000,
        10**5000,
        b"\0",
    ],
    ids=lambda each: type(each).__name__,
)
async def test_a_result_that_cannot_be_stored_as_it_is_does_not_hurt(
    bus, pool, registry, start_worker, result
):
    @registry.handler("test", "DoIt")
    async def handle(command, context):
        return result if command.data == "odd" else "fine"

    [odd] = await send(pool, data="odd")
    plain = await send(pool, 5)
    await start_worker()

    await ended(pool, odd, *plain)
    command = await bus.get_command("test", odd)
    assert command is not None
    assert len(str(command.result)) <= 1_100_000


async def test_an_error_without_text_is_recorded_by_its_type(bus, pool, registry, start_worker):
    @registry.handler("test", "DoIt")
    async def handle(command, context):
        raise PoisonedError

    [command_id] = await send(pool, max_attempts=1)
    await start_worker()

    await ended(pool, command_id, expected="IN_TSQ")
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.last_error_code == "PoisonedError"
    assert "not available" in (command.last_error_message or "")


async def test_transient_failures_are_tried_again_until_they_succeed(
    bus, pool, registry, start_worker
):
    attempts = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        attempts.append((context.attempt, context.max_attempts, context.is_last_attempt))
        if context.attempt < 3:
            raise TransientCommandError("BUSY", "later")

    [command_id] = await send(pool, max_attempts=4)
    await start_worker()

    await ended(pool, command_id)
    assert attempts == [(1, 4, False), (2, 4, False), (3, 4, False)]
    trail = await events(pool, command_id)
    assert trail == [
        "SENT",
        *["RECEIVED", "FAILED", "RETRY_SCHEDULED"] * 2,
        "RECEIVED",
        "COMPLETED",
    ]


async def test_the_policys_budget_counts_where_the_command_has_none(pool, registry, start_worker):
    @registry.handler("test", "DoIt")
    async def handle(command, context):
        raise TransientCommandError

    [command_id] = await send(pool)
    await start_worker(retry_policy=RetryPolicy(max_attempts=5, base_delay_ms=1))

    await ended(pool, command_id, expected="IN_TSQ")
    assert (await events(pool, command_id)).count("FAILED") == 5


async def test_a_type_without_a_handler_ends_in_the_tsq_and_says_so(bus, pool, start_worker):
    [command_id] = await send(pool, command_type="Nobodys")
    await start_worker()

    await ended(pool, command_id, expected="IN_TSQ")
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.attempts, command.last_error_code) == (3, "NO_HANDLER")


async def test_a_plain_function_as_a_handler_is_told_from_what_returns_an_awaitable(
    bus, pool, registry, start_worker
):
    calls = []

    @registry.handler("test", "Plain")
    def plain(command, context):
        calls.append(command.command_id)
        return {"ok": True}

    async def work(command):
        return {"of": command.command_type}

    @registry.handler("test", "Passing")
    def passing(command, context):
        return work(command)

    await start_worker()
    [wrong] = await send(pool, command_type="Plain")
    [right] = await send(pool, command_type="Passing")

    await ended(pool, wrong, expected="IN_TSQ")
    await ended(pool, right)
    command = await bus.get_command("test", wrong)
    assert (command.last_error_code, command.attempts) == ("HANDLER_NOT_ASYNC", 1)
    assert "async def" in command.last_error_message
    assert calls == [wrong]
    assert (await bus.get_command("test", right)).result == {"of": "Passing"}
