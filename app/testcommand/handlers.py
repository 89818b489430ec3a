"""The handler of test commands: it does what the command's behaviour says."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg_pool import PoolClosed
from pydantic import ValidationError

from app.database.pools import Pool
from app.testcommand import store
from app.testcommand.behaviors import Behavior, BehaviorType
from app.testcommand.coalesce import Coalescer
from commandbus import (
    BusinessRuleError,
    Command,
    HandlerContext,
    HandlerRegistry,
    PermanentCommandError,
    TransientCommandError,
)
from commandbus.errors import INFRASTRUCTURE_ERRORS
from commandbus.pools import autocommit

COMMAND_TYPE = "TestCommand"


def register_test_command(registry: HandlerRegistry, domain: str, pool: Pool) -> None:
    """Let *registry* run the test commands of *domain*; *pool* serves their table."""
    registry.register(domain, COMMAND_TYPE, BehaviorHandler(pool))


class BehaviorHandler:
    """Runs one attempt of a test command.

    The attempt is counted in `test_command` before anything else, so that it counts even when it
    never ends; success writes `processed_at` and `result` there. Many handlers run at once, so
    both are done for sets. A command without a row there follows the behaviour in its own data.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._begin: Coalescer[UUID, None, store.BegunAttempt] = Coalescer(
            self._begin_set, retried=INFRASTRUCTURE_ERRORS, not_retried=(PoolClosed,)
        )
        self._finish: Coalescer[UUID, Any, None] = Coalescer(
            self._finish_set, retried=INFRASTRUCTURE_ERRORS, not_retried=(PoolClosed,)
        )

    async def __call__(self, command: Command, context: HandlerContext) -> dict[str, Any]:
        """The result, or the error that the behaviour asks for.

        Raises PermanentCommandError with code TEST_COMMAND_NOT_FOUND for a command that has no
        behaviour at all, and INVALID_BEHAVIOR for one whose behaviour makes no sense.
        """
        begun = await self._begin(command.command_id, None)
        if begun is None:
            behavior, attempt = _behavior_in(command), context.attempt
        else:
            behavior, attempt = _parsed(begun.behavior), begun.attempts
        await _spend_time(behavior, attempt)
        result = _act(behavior, attempt)
        if begun is not None:
            await self._finish(command.command_id, result)
        return result

    async def _begin_set(self, commands: Mapping[UUID, None]) -> Mapping[UUID, store.BegunAttempt]:
        async with autocommit(self._pool) as conn:
            return await store.begin_attempts(conn, commands)

    async def _finish_set(self, results: Mapping[UUID, Any]) -> Mapping[UUID, None]:
        async with autocommit(self._pool) as conn:
            await store.finish_test_commands(conn, results)
        return {}


def _behavior_in(command: Command) -> Behavior:
    if isinstance(command.data, dict) and "behavior" in command.data:
        return _parsed(command.data["behavior"])
    raise PermanentCommandError(
        "TEST_COMMAND_NOT_FOUND",
        f"There is no test command {command.command_id}, and the data names no behavior",
    )


def _parsed(stored: Any) -> Behavior:
    try:
        return Behavior.model_validate(stored)
    except ValidationError as exc:
        raise PermanentCommandError(
            "INVALID_BEHAVIOR",
            "The stored behavior makes no sense",
            {
                "errors": [
                    {"field": ".".join(map(str, error["loc"])), "message": error["msg"]}
                    for error in exc.errors(include_url=False, include_input=False)
                ]
            },
        ) from exc


async def _spend_time(behavior: Behavior, attempt: int) -> None:
    """Run for as long as the behaviour says; a timeout does so for its first attempts only."""
    if behavior.type is BehaviorType.TIMEOUT:
        if attempt > behavior.timeouts:
            return
        if not behavior.execution_time_ms:
            await asyncio.Event().wait()  # until the lease, however long it is, is over
    if behavior.execution_time_ms > 0:
        await asyncio.sleep(behavior.execution_time_ms / 1000)


def _act(behavior: Behavior, attempt: int) -> dict[str, Any]:
    match behavior.type:
        case BehaviorType.SUCCESS | BehaviorType.TIMEOUT:
            return {"status": "success"}
        case BehaviorType.FAIL_TRANSIENT_THEN_SUCCEED:
            if attempt <= behavior.transient_failures:
                raise TransientCommandError(*behavior.error(attempt))
            return {"status": "success", "attempts": attempt}
        case BehaviorType.FAIL_TRANSIENT:
            raise TransientCommandError(*behavior.error(attempt))
        case BehaviorType.FAIL_PERMANENT:
            raise PermanentCommandError(*behavior.error(attempt))
        case BehaviorType.FAIL_BUSINESS:
            raise BusinessRuleError(*behavior.error(attempt))
        case BehaviorType.CRASH_PROCESS:
            os.kill(os.getpid(), signal.SIGKILL)
            raise SystemExit("killed")  # never reached: nothing survives SIGKILL
