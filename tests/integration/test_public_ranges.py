"""Every parameter of the public API, given extreme values: refused at once, or it works.

One walk over all that `commandbus` names: a new class, method or parameter is met without being
told here, and fails until somebody says what an ordinary value of it is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import uuid4

import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg_pool import AsyncConnectionPool

import commandbus
from commandbus import (
    CommandBus,
    CommandBusError,
    CommandNotFoundError,
    CommandStatus,
    HandlerContext,
    HandlerError,
    HandlerRegistry,
    InvalidStateError,
    NewCommand,
    NotMigratedError,
    Pauses,
    Pruner,
    Reply,
    RetentionRule,
    RetryPolicy,
    TroubleshootingQueue,
    UnknownDomainError,
    UnknownReplyQueueError,
    Worker,
)
from commandbus.texts import shown
from tests.facts import DOMAIN, REPLIES, Pool

EXTREMES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    sys.maxsize,
    2**31,
    2**63,
    10**400,
    10**5000,
    0.5,
    math.nan,
    math.inf,
    sys.float_info.max,
    Decimal("12345678901234567.89"),
    "",
    "a\0b",
    "\ud800",
    "x" * 100_000,
    str(uuid4()),
    b"bytes",
    datetime.min,  # noqa: DTZ901
    datetime.min.replace(tzinfo=timezone(timedelta(hours=23, minutes=59))),
    datetime.max.replace(tzinfo=timezone(-timedelta(hours=23, minutes=59, microseconds=1))),
    timedelta.max,
    timedelta.min,
    uuid4(),
    [None],
    ["x" * 100],
    {1: "a", "1": "b"},
    object(),
)
# Results: the library makes them, and nobody gives them to it. The fields of a NewCommand and of a
# Reply are checked where they are sent and acknowledged; see the walk over fields.
MADE_BY_THE_LIBRARY = {
    "AuditEvent", "BatchProgress", "Command", "CommandNotFoundError", "CommandRecord",
    "DatabaseSetup", "FollowUpId", "InvalidStateError", "LaneGroup", "LaneSettings", "NewCommand",
    "OperatorResult",
    "OutboxEvent", "Page", "Pause", "Percentiles",
    "Pruned", "Reply",
    "SendResult", "TroubledCommand",
}  # fmt: skip
# What takes as long as it takes.
NOT_WALKED = {"Worker.run"}
# Objects, not values: what is wrong with them is a mistake in the program that shows at once.
OBJECTS = {"pool", "conn", "registry"}
# Ends that are answers: what was asked for is not there, or is not so.
ANSWERS = (
    CommandNotFoundError,
    InvalidStateError,
    UnknownDomainError,
    UnknownReplyQueueError,
)
REFUSALS = (ValueError, TypeError, CommandBusError)


async def handle(_: object, __: object) -> None:
    """A handler."""


async def extend(_: float) -> None:
    """Nobody's lease."""


REPLY = Reply(
    msg_id=1, command_id=uuid4(), correlation_id=None, domain=DOMAIN, command_type="DoIt",
    status=CommandStatus.COMPLETED, result=None, error=None,
)  # fmt: skip
ORDINARY: dict[str, Any] = {
    "acknowledge_replies.queue": REPLIES,
    "attempt": 1,
    "by": "ada",
    "command_id": lambda: uuid4(),
    "command_ids": lambda: [uuid4()],
    "command_type": "DoIt",
    "commands": lambda: [NewCommand(command_type="DoIt", command_id=uuid4())],
    "conninfo": "host=/nowhere",
    "data": {},
    "domain": DOMAIN,
    "event_type": "Done",
    "events": [],
    "batch_id": lambda: uuid4(),
    "extend": extend,
    "force": False,
    "function": handle,
    "group": "tenant-7",
    "how": "exit status 1",
    "handler_registry": HandlerRegistry(),
    "max_attempts": 3,
    "name": "walked",
    "older_than": timedelta(days=1),
    "pause_id": 1,
    "operator": "ada",
    "reason": "a fault",
    "queue": REPLIES,
    "replaced_id": 1,
    "replies": [REPLY],
    "rules": [RetentionRule(status=CommandStatus.COMPLETED, keep=0)],
    "seconds": 1,
    "status": CommandStatus.COMPLETED,
    "url": "host=/nowhere",
    "worker_id": 1,
}
KEPT = {"RetentionRule": {"keep": 5}}
"""What a call needs besides its required parameters."""


def subjects(pool: Pool, conn: AsyncConnection[Any]) -> dict[str, Any]:
    """The owners of the methods that are walked."""
    return {
        "CommandBus": CommandBus(pool),
        "HandlerContext": HandlerContext(attempt=1, max_attempts=3, extend=extend),
        "HandlerRegistry": HandlerRegistry(),
        "Pauses": Pauses(pool),
        "Pruner": Pruner(conn),
        "RetryPolicy": RetryPolicy(),
        "TroubleshootingQueue": TroubleshootingQueue(pool),
        "Worker": Worker(pool, domain=DOMAIN, handler_registry=HandlerRegistry()),
    }


def walked(pool: Pool, conn: AsyncConnection[Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Everything public that can be called, by name."""
    owners = subjects(pool, conn)
    for name in commandbus.__all__:
        thing = getattr(commandbus, name)
        if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, Enum)):
            continue
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            if issubclass(thing, HandlerError):
                yield name, thing
        elif inspect.isclass(thing) and name not in MADE_BY_THE_LIBRARY:
            yield name, thing
            for method, member in vars(thing).items():
                full = f"{name}.{method}"
                is_public = inspect.isfunction(member) and not method.startswith("_")
                if is_public and full not in NOT_WALKED:
                    yield full, getattr(owners[name], method)
        elif inspect.isfunction(thing):
            yield name, thing


def parameters(call: Callable[..., Any]) -> list[inspect.Parameter]:
    found = inspect.signature(call).parameters.values()
    return [each for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def ordinary(name: str, parameter: str, pool: Pool, conn: AsyncConnection[Any]) -> Any:
    if parameter == "pool":
        return pool
    if parameter == "conn":
        return conn
    key = f"{name.rpartition('.')[2]}.{parameter}"
    value = ORDINARY[key] if key in ORDINARY else ORDINARY[parameter]
    return value() if inspect.isfunction(value) and value.__name__ == "<lambda>" else value


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the database was asked; whether its connections end at a pooler does not count."""
    seen: list[object] = []
    execute = AsyncCursor.execute

    async def watched(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        if "pg_backend_pid" not in str(query):
            seen.append(query)
        return await execute(self, query, *args, **options)

    monkeypatch.setattr(AsyncCursor, "execute", watched)
    return seen


async def done(call: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Call it, and wait for what it gives."""
    result = call(**arguments)
    if inspect.isawaitable(result) and not isinstance(result, AsyncConnectionPool):
        async with asyncio.timeout(10):
            await result


async def fault(
    call: Callable[..., Any], arguments: dict[str, Any], statements: list[object]
) -> str | None:
    """What is wrong with how the call ends; None: it works, or is refused at once."""
    statements.clear()
    try:
        await done(call, arguments)
    except NotMigratedError as exc:
        return repr(exc)
    except ANSWERS:
        return None
    except REFUSALS as exc:
        return f"asked the database, then {exc!r}" if statements else None
    except BaseException as exc:  # noqa: BLE001 - all else is what is looked for
        return repr(exc)
    return None


def told(name: str, parameter: str, extreme: object) -> str:
    return f"{name}({parameter}={type(extreme).__name__} {shown(extreme)[:40]})"


async def test_every_parameter_refuses_at_once_what_it_cannot_take(pool, database_url, statements):
    wrong: list[str] = []
    calls = 0
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        for name, call in walked(pool, conn):
            given = parameters(call)
            required = [each.name for each in given if each.default is each.empty]
            for parameter in (each.name for each in given if each.name not in OBJECTS):
                for extreme in EXTREMES:
                    arguments = {each: ordinary(name, each, pool, conn) for each in required}
                    if name.startswith("HandlerRegistry."):
                        arguments |= {"command_type": f"Type{calls}"}
                    arguments |= {**KEPT.get(name, {}), parameter: extreme}
                    how = await fault(call, arguments, statements)
                    calls += 1
                    if how is not None:
                        wrong.append(f"{told(name, parameter, extreme)}: {how}")
    assert calls > 2000
    assert wrong == []


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(NewCommand)])
async def test_every_field_of_a_new_command_is_checked_when_it_is_sent(bus, statements, field):
    for extreme in EXTREMES:
        fields = {"command_type": "DoIt", "command_id": uuid4(), field: extreme}
        commands = [NewCommand(**fields)]
        how = await fault(bus.send_many, {"domain": DOMAIN, "commands": commands}, statements)
        assert how is None, told("NewCommand", field, extreme)


async def test_a_reply_that_no_queue_gave_is_refused(bus, statements):
    for extreme in EXTREMES:
        replies = [dataclasses.replace(REPLY, msg_id=extreme)]
        how = await fault(
            bus.acknowledge_replies, {"queue": REPLIES, "replies": replies}, statements
        )
        assert how is None, told("Reply", "msg_id", extreme)
