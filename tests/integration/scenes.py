"""The states and the events of the state table, as tests bring them about."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from commandbus import Command, CommandBus, store
from commandbus.errors import (
    CommandNotFoundError,
    DuplicateCommandError,
    InvalidStateError,
)
from commandbus.models import ClaimedCommand
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    DOMAIN,
    QUEUE,
    REPLIES,
    Pool,
    claim,
    claim_one,
    claim_parked,
    completed,
    expire_leases,
    failed,
    park,
    register,
    release,
    renew,
    rows,
    settle,
)

BUDGET = 3
CONTENT: dict[str, Any] = {
    "command_type": "DoIt",
    "data": {"a": 1},
    "reply_to": REPLIES,
    "max_attempts": BUDGET,
}


@dataclass
class Scene:
    """A command in some state, and the worker and the attempt that it had last."""

    pool: Pool
    worker_id: int
    command_id: UUID
    attempt: ClaimedCommand | None = None

    async def claim(self) -> None:
        self.attempt = await claim_one(self.pool, self.worker_id)

    async def fail(self, kind: str, **fields: Any) -> None:
        assert self.attempt is not None
        await settle(self.pool, self.worker_id, failed(self.attempt, kind, **fields))

    async def spend(self, attempts: int) -> None:
        """Let the command have spent *attempts*, as if they had failed."""
        await rows(
            self.pool,
            "update command_bus_command set attempts = %s where command_id = %s",
            attempts,
            self.command_id,
        )

    @property
    def last_attempt(self) -> ClaimedCommand:
        """The last attempt; where there was none, one that never was."""
        if self.attempt is not None:
            return self.attempt
        return made_up_attempt(self.command_id)


def made_up_attempt(command_id: UUID) -> ClaimedCommand:
    command = Command(
        domain=DOMAIN,
        command_id=command_id,
        command_type="DoIt",
        data={},
        created_at=datetime.now(UTC),
    )
    return ClaimedCommand(command=command, attempt=1, max_attempts=BUDGET, msg_id=1, claim_no=1)


# The states


async def nowhere(scene: Scene) -> None:
    """Never sent."""


async def queued_(scene: Scene) -> None:
    """PENDING, its message in the queue."""


async def released(scene: Scene) -> None:
    """PENDING again under the very message and claim number that an attempt had."""
    await scene.claim()
    await release(scene.pool, scene.worker_id, [scene.last_attempt])


async def backing_off(scene: Scene) -> None:
    """PENDING, waiting for its second attempt."""
    await scene.claim()
    await scene.fail("transient", retry_delay_ms=3_600_000)


async def parked(scene: Scene) -> None:
    """PENDING, a suspect."""
    await running_after_crash(scene)
    assert await claim(scene.pool, await register(scene.pool)) == []


async def unknown(scene: Scene) -> None:
    """PENDING, put aside by a worker that has no handler for it."""
    await scene.claim()
    await park(scene.pool, scene.worker_id, [scene.last_attempt])


async def running(scene: Scene) -> None:
    await scene.claim()


async def running_late(scene: Scene) -> None:
    """IN_PROGRESS, its lease over, its worker alive."""
    await scene.claim()
    await expire_leases(scene.pool, scene.command_id)


async def running_after_crash(scene: Scene) -> None:
    """IN_PROGRESS, its lease over, no heartbeat since."""
    await scene.claim()
    await expire_leases(scene.pool, scene.command_id, worker_lives=False)


async def in_tsq(scene: Scene) -> None:
    await scene.claim()
    await scene.fail("permanent")


async def retried_later(scene: Scene) -> None:
    """PENDING, an operator's delayed retry that can be undone."""
    await in_tsq(scene)
    await TroubleshootingQueue(scene.pool).operator_retry(
        DOMAIN, scene.command_id, delay_seconds=3600
    )


async def completed_(scene: Scene) -> None:
    await scene.claim()
    await settle(scene.pool, scene.worker_id, completed(scene.last_attempt, {"ok": 1}))


async def failed_(scene: Scene) -> None:
    await scene.claim()
    await scene.fail("business")


async def cancelled(scene: Scene) -> None:
    await in_tsq(scene)
    await TroubleshootingQueue(scene.pool).operator_cancel(DOMAIN, scene.command_id)


STATES: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "nowhere": nowhere,
    "queued": queued_,
    "released": released,
    "backing off": backing_off,
    "parked": parked,
    "unknown": unknown,
    "retried later": retried_later,
    "running": running,
    "running late": running_late,
    "running after crash": running_after_crash,
    "in tsq": in_tsq,
    "completed": completed_,
    "failed": failed_,
    "cancelled": cancelled,
}


# The events; each gives the answer of the bus, an exception as its class


async def asked(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except (CommandNotFoundError, InvalidStateError, DuplicateCommandError) as exc:
        return type(exc)


async def send_same(scene: Scene) -> Any:
    sent = await CommandBus(scene.pool).send(DOMAIN, command_id=scene.command_id, **CONTENT)
    return "created" if sent.created else "answered"


async def send_other(scene: Scene) -> Any:
    content = {**CONTENT, "data": {"a": 2}}
    sent = asked(CommandBus(scene.pool).send(DOMAIN, command_id=scene.command_id, **content))
    answer = await sent
    return answer if isinstance(answer, type) else "created"


async def claim_(scene: Scene) -> Any:
    return len(await claim(scene.pool, await register(scene.pool)))


async def claim_spent(scene: Scene) -> Any:
    await scene.spend(BUDGET)
    return await claim_(scene)


async def claim_without_handler(scene: Scene) -> Any:
    """A claim by a worker that has met the type before and has no handler for it."""
    return len(await claim(scene.pool, await register(scene.pool), leave=["DoIt"]))


async def claim_parked_(scene: Scene) -> Any:
    return len(await claim_parked(scene.pool, await register(scene.pool), "DoIt"))


async def park_(scene: Scene) -> Any:
    return await park(scene.pool, scene.worker_id, [scene.last_attempt])


async def expire_(scene: Scene) -> Any:
    await register(scene.pool)
    await rows(scene.pool, "update command_bus_worker set command_types = '{}'")
    async with store.autocommit(scene.pool) as conn:
        return await store.expire_parked(conn, DOMAIN, 0)


async def old_message(scene: Scene) -> Any:
    """A claim meets a message of the command that is not, or no longer, its current one."""
    await rows(
        scene.pool,
        "select pgmq.send(%s, %s::jsonb)",
        QUEUE,
        json.dumps({"command_id": str(scene.command_id)}),
    )
    await rows(
        scene.pool,
        f"update pgmq.q_{QUEUE} set vt = now() + interval '1 hour'"
        " where msg_id <> (select max(msg_id) from pgmq.q_test__commands)",
    )
    return await claim_(scene)


def outcome(kind: str, *, stale: bool = False, spent: bool = False) -> Callable[[Scene], Any]:
    async def happen(scene: Scene) -> Any:
        if spent:
            await scene.spend(BUDGET)
        attempt = scene.last_attempt
        if stale:
            attempt = replace(attempt, claim_no=attempt.claim_no + 50)
        made = completed(attempt, {"ok": 1}) if kind == "success" else failed(attempt, kind)
        if kind == "transient":
            made["retry_delay_ms"] = 60_000
        settled = await settle(scene.pool, scene.worker_id, made)
        return [answer.verdict.value for answer in settled]

    return happen


def other_message(kind: str) -> Callable[[Scene], Any]:
    """An outcome with the claim number of the attempt, but another message."""

    async def happen(scene: Scene) -> Any:
        attempt = replace(scene.last_attempt, msg_id=999_999)
        made = completed(attempt) if kind == "success" else failed(attempt, kind)
        await settle(scene.pool, scene.worker_id, made)
        return None

    return happen


async def renew_(scene: Scene) -> Any:
    return await renew(scene.pool, scene.worker_id, scene.last_attempt)


async def renew_stale(scene: Scene) -> Any:
    attempt = scene.last_attempt
    return await renew(scene.pool, scene.worker_id, replace(attempt, claim_no=attempt.claim_no + 1))


async def release_(scene: Scene) -> Any:
    return await release(scene.pool, scene.worker_id, [scene.last_attempt])


def operator(action: str, *args: Any) -> Callable[[Scene], Any]:
    async def happen(scene: Scene) -> Any:
        act = getattr(TroubleshootingQueue(scene.pool), action)
        answer = await asked(act(DOMAIN, scene.command_id, "olga", *args))
        return answer if isinstance(answer, type) else answer.verdict.value

    return happen


async def cancelled_by_worker(scene: Scene) -> Any:
    async with store.autocommit(scene.pool) as conn:
        tokens = store.tokens_of([scene.last_attempt])
        return await store.settle_cancelled(conn, DOMAIN, scene.worker_id, tokens)


EVENTS: dict[str, Callable[[Scene], Awaitable[Any]]] = {
    "send same": send_same,
    "send other": send_other,
    "claim": claim_,
    "claim spent": claim_spent,
    "claim without handler": claim_without_handler,
    "claim parked": claim_parked_,
    "old message": old_message,
    "success": outcome("success"),
    "business": outcome("business"),
    "permanent": outcome("permanent"),
    "transient": outcome("transient"),
    "transient, last": outcome("transient", spent=True),
    "stale success": outcome("success", stale=True),
    "stale business": outcome("business", stale=True),
    "stale permanent": outcome("permanent", stale=True),
    "stale transient": outcome("transient", stale=True),
    "success of another message": other_message("success"),
    "permanent of another message": other_message("permanent"),
    "renew": renew_,
    "renew stale": renew_stale,
    "release": release_,
    "park": park_,
    "no handler": expire_,
    "operator retry": operator("operator_retry"),
    "undo retry": operator("undo_retry"),
    "operator cancel": operator("operator_cancel", "why"),
    "cancel pending": operator("cancel_pending", "why"),
    "request cancel": operator("request_cancel", "why"),
    "cancelled by its worker": cancelled_by_worker,
    "operator complete": operator("operator_complete", {"by": "hand"}),
}
