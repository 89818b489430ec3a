"""However a handler ends, its command gets an outcome, and the worker goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from commandbus import (
    BusinessRuleError,
    HandlerAlreadyRegisteredError,
    PermanentCommandError,
    RetryPolicy,
    TransientCommandError,
    Worker,
    handler,
    uuid7,
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


class UnreadableDetailsError(PermanentCommandError):
    def __init__(self) -> None:
        """Sets nothing."""

    @property
    def details(self) -> Any:  # type: ignore[override]
        raise KeyError("order")


class Truthless:
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


class UnreadableNotesError(TransientCommandError):
    __notes__ = Truthless()  # type: ignore[assignment]


class UnreadableGroup(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise OSError("gone")


class NamelessClass(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise LookupError("no name")


class UnreadableResult(list[int]):
    def __iter__(self) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("make", "error_type"),
    [
        (UnreadableDetailsError, "PERMANENT"),
        (lambda: UnreadableNotesError("BUSY", "later"), "TRANSIENT"),
        (lambda: UnreadableGroup("two", [ValueError(), KeyError()]), "UNEXPECTED"),
        (lambda: NamelessClass("Nameless", (Exception,), {})(), "UNEXPECTED"),
        (UnreadableResult, "PERMANENT"),
    ],
)
async def test_what_cannot_be_read_has_an_outcome_and_holds_no_slot(
    bus, pool, registry, recorded_other, start_worker, make, error_type, caplog
):
    @registry.handler("test", "DoIt", auto_renew=True)
    async def handle(command, context):
        made = make()
        if isinstance(made, BaseException):
            raise made
        return {"rows": made}

    await start_worker(concurrency=1)
    [command_id] = await send(pool, max_attempts=1)
    [other] = await send(pool, command_type="Other")

    await ended(pool, command_id, expected="IN_TSQ")
    await ended(pool, other)
    command = await bus.get_command("test", command_id)
    assert command.last_error_type == error_type
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
        "x" * 5_000_000,
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


async def test_what_a_handler_forgot_to_await_is_awaited_and_other_odd_results_are_refused(
    bus, pool, registry, start_worker
):
    async def work(data):
        await asyncio.sleep(0)
        if data == "bad":
            raise BusinessRuleError("NO", "not that one")
        return {"done": data}

    async def numbers():
        yield 1

    results = {
        "coroutine": work,
        "bad": work,
        "task": lambda data: asyncio.create_task(work(data)),
        "gathered": lambda data: asyncio.gather(work(data), work(data)),
        "twice": lambda data: asyncio.sleep(0, work(data)),
        "generator": lambda _: numbers(),
        "object": lambda _: object(),
        "poisoned": lambda _: PoisonedError(),
        "huge": lambda _: 10**5000,
        "inside": lambda data: [work(data)],
    }

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        return results[command.data](command.data)

    @registry.handler("test", "Yields")
    async def handle_in_steps(command, context):
        yield 1

    sent = {name: (await send(pool, data=name))[0] for name in results}
    [sent["yields"]] = await send(pool, command_type="Yields")
    await start_worker()

    stored = {}
    for name, command_id in sent.items():
        is_done = name in ("coroutine", "task", "gathered", "twice")
        expected = "COMPLETED" if is_done else "FAILED" if name == "bad" else "IN_TSQ"
        await ended(pool, command_id, expected=expected)
        command = await bus.get_command("test", command_id)
        stored[name] = command.result if is_done else command.last_error_code
        assert command.attempts == 1
    assert stored == {
        "coroutine": {"done": "coroutine"},
        "bad": "NO",
        "task": {"done": "task"},
        "gathered": [{"done": "gathered"}] * 2,
        "twice": {"done": "twice"},
        "generator": "UNSTORABLE_RESULT",
        "object": "UNSTORABLE_RESULT",
        "poisoned": "UNSTORABLE_RESULT",
        "huge": "UNSTORABLE_RESULT",
        "inside": "UNSTORABLE_RESULT",
        "yields": "HANDLER_NOT_ASYNC",
    }
    await assert_books_balance(pool)


async def test_the_error_of_a_task_in_a_group_decides_and_the_log_tells_where_it_came_from(
    bus, pool, registry, start_worker, caplog
):
    caplog.set_level("INFO", "commandbus")

    async def fail(error):
        secret = "hunter2"
        raise error from ValueError("root of it") if secret else None

    @registry.handler("test", "Grouped")
    async def grouped(command, context):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(PermanentCommandError("GONE", "no account")))
            tasks.create_task(fail(BusinessRuleError("NO_STOCK", "none left")))

    @registry.handler("test", "Wrong")
    async def wrong(command, context):
        return command.data["nope"]

    await start_worker()
    [group] = await send(pool, command_type="Grouped")
    [bug] = await send(pool, command_type="Wrong", max_attempts=2)

    await ended(pool, group, bug, expected="IN_TSQ")
    command = await bus.get_command("test", group)
    assert (command.last_error_code, command.last_error_message) == ("GONE", "no account")
    assert command.attempts == 1
    [failed] = [e for e in await bus.get_audit_trail(group) if e.event_type == "FAILED"]
    assert failed.details["error_details"]["cause"]["message"] == "root of it"
    first, second = [e for e in await bus.get_audit_trail(bug) if e.event_type == "FAILED"]
    for event in (first, second):
        [frame] = event.details["error_details"]["traceback"]
        assert __file__ in frame
        assert frame.endswith('in wrong: return command.data["nope"]')
    lines = [each for each in caplog.records if each.message == "handler_raised"]
    assert len(lines) == 3
    assert "none left" in caplog.text  # of the group's other error
    assert 'return command.data["nope"]' in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_worker_without_a_registry_runs_the_handlers_of_the_decorator(bus, pool):
    kind = f"Decorated{uuid7()}"

    @handler("test", kind)
    async def handle(command, context):
        return {"of": command.command_type}

    with pytest.raises(HandlerAlreadyRegisteredError):
        handler("test", kind)(handle)
    worker = Worker(pool, domain="test", poll_interval=0.1)
    running = asyncio.create_task(worker.run())
    [command_id] = await send(pool, command_type=kind)

    await ended(pool, command_id)
    worker.stop()
    await running
    assert (await bus.get_command("test", command_id)).result == {"of": kind}


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
    await start_worker(no_handler_after=0.5)

    await ended(pool, command_id, expected="IN_TSQ")
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.attempts, command.last_error_code) == (0, "NO_HANDLER")


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
