"""Every cell of the state table: each event meets each state, and does what the design says.

A cell that is not listed in WHAT_HAPPENS changes nothing: neither the command, nor its trail, nor
its message, nor any list that it stands in, nor a counter; it may only leave LATE_RESULT.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

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
    assert_books_balance,
    claim,
    claim_one,
    completed,
    count,
    events,
    expire_leases,
    failed,
    make_due,
    queued,
    register,
    release,
    renew,
    replies,
    rows,
    send,
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
    assert await claim(scene.pool, scene.worker_id) == []


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
    scene.worker_id = await register(scene.pool)


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
    "retried later": retried_later,
    "running": running,
    "running late": running_late,
    "running after crash": running_after_crash,
    "in tsq": in_tsq,
    "completed": completed_,
    "failed": failed_,
    "cancelled": cancelled,
}
PENDING = ("queued", "released", "backing off", "parked", "retried later")
RUNNING = ("running", "running late", "running after crash")
ENDED = ("completed", "failed", "cancelled")


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


EVENTS: dict[str, Callable[[Scene], Awaitable[Any]]] = {
    "send same": send_same,
    "send other": send_other,
    "claim": claim_,
    "claim spent": claim_spent,
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
    "operator retry": operator("operator_retry"),
    "undo retry": operator("undo_retry"),
    "operator cancel": operator("operator_cancel", "why"),
    "cancel pending": operator("cancel_pending", "why"),
    "operator complete": operator("operator_complete", {"by": "hand"}),
}


# What is seen of a command, and what an event does to it


@dataclass(frozen=True)
class Seen:
    """All that an event could change."""

    status: str | None
    attempts: int | None
    trail: tuple[str, ...]
    queue: int
    waiting: int
    tsq: int
    suspect: int
    rejected: int
    replies: int


async def look(pool: Pool, command_id: UUID) -> Seen:
    command = await CommandBus(pool).get_command(DOMAIN, command_id)
    return Seen(
        status=command.status.value if command else None,
        attempts=command.attempts if command else None,
        trail=tuple(await events(pool, command_id)),
        queue=await queued(pool, command_id),
        waiting=await count(pool, "command_bus_waiting", command_id),
        tsq=await count(pool, "command_bus_tsq", command_id),
        suspect=await count(pool, "command_bus_suspect", command_id),
        rejected=await count(pool, "command_bus_rejected", command_id),
        replies=len(await replies(pool, command_id)),
    )


@dataclass(frozen=True)
class Cell:
    """What changes; *adds* is what the trail gets, *now* what other values are afterwards."""

    answer: Any
    adds: tuple[str, ...] = ()
    now: dict[str, Any] = field(default_factory=dict)


def to_tsq(*adds: str, answer: Any = ("applied",), **now: Any) -> Cell:
    gone = {"queue": 0, "waiting": 0, "suspect": 0}
    return Cell(
        list(answer) if isinstance(answer, tuple) else answer,
        (*adds, "MOVED_TO_TSQ"),
        {"status": "IN_TSQ", "tsq": 1, **gone, **now},
    )


def ended(status: str, *adds: str, answer: Any) -> Cell:
    gone = {"queue": 0, "waiting": 0, "tsq": 0, "suspect": 0}
    return Cell(answer, adds, {"status": status, "replies": 1, **gone})


GONE = {"queue": 0}
NOT_THERE: dict[str, Cell] = {
    "send same": Cell("created", ("SENT",), {"status": "PENDING", "attempts": 0, "queue": 1}),
    "send other": Cell("created", ("SENT",), {"status": "PENDING", "attempts": 0, "queue": 1}),
    "old message": Cell(0, (), {"rejected": 1}),
    **{
        event: Cell(["unknown"])
        for event in EVENTS
        if event.startswith("stale ") or event in ("success", "business", "permanent")
    },
    "transient": Cell(["unknown"]),
    "transient, last": Cell(["unknown"]),
}

WHAT_HAPPENS: dict[str, dict[str, Cell]] = {"nowhere": NOT_THERE}
for _state in STATES:
    WHAT_HAPPENS.setdefault(_state, {})

for _state in ("queued", "released"):
    WHAT_HAPPENS[_state] |= {
        "claim": Cell(1, ("RECEIVED",), {"status": "IN_PROGRESS", "attempts": 1}),
        "claim spent": to_tsq("RETRY_EXHAUSTED", answer=0),
    }
for _state in PENDING:
    WHAT_HAPPENS[_state]["cancel pending"] = ended("CANCELLED", "OPERATOR_CANCEL", answer="done")
WHAT_HAPPENS["retried later"]["undo retry"] = Cell(
    "done",
    ("OPERATOR_RETRY_UNDONE",),
    {"status": "IN_TSQ", "tsq": 1, "waiting": 0, "attempts": 1},
)

for _state in RUNNING:
    WHAT_HAPPENS[_state] |= {
        "success": ended("COMPLETED", "COMPLETED", answer=[]),
        "business": ended("FAILED", "FAILED", answer=["applied"]),
        "permanent": to_tsq("FAILED"),
        "transient": Cell(
            ["applied"],
            ("FAILED", "RETRY_SCHEDULED"),
            {"status": "PENDING", "queue": 0, "waiting": 1},
        ),
        "transient, last": to_tsq("FAILED", "RETRY_EXHAUSTED"),
        "renew": Cell(True),
        "release": Cell(1, ("RELEASED",), {"status": "PENDING", "attempts": 0}),
    }
for _state in ("running late", "running after crash"):
    WHAT_HAPPENS[_state]["claim spent"] = to_tsq("LEASE_EXPIRED", "RETRY_EXHAUSTED", answer=0)
WHAT_HAPPENS["running late"]["claim"] = Cell(1, ("LEASE_EXPIRED", "RECEIVED"), {"attempts": 2})
WHAT_HAPPENS["running after crash"]["claim"] = Cell(
    0, ("LEASE_EXPIRED",), {"status": "PENDING", "queue": 0, "suspect": 1}
)

WHAT_HAPPENS["in tsq"] |= {
    "operator retry": Cell(
        "done",
        ("OPERATOR_RETRY",),
        {"status": "PENDING", "attempts": 0, "queue": 1, "tsq": 0},
    ),
    "operator cancel": ended("CANCELLED", "OPERATOR_CANCEL", answer="done"),
    "operator complete": ended("COMPLETED", "OPERATOR_COMPLETE", answer="done"),
}

ANSWER_WHEN_NOTHING_HAPPENS: dict[str, Any] = {
    "send same": "answered",
    "send other": DuplicateCommandError,
    "claim": 0,
    "claim spent": 0,
    "old message": 0,
    "renew": False,
    "renew stale": False,
    "release": 0,
}
OPERATIONS = (
    "operator retry",
    "undo retry",
    "operator cancel",
    "cancel pending",
    "operator complete",
)


def expected(state: str, event: str) -> Cell:
    """The cell of the table; what is not listed changes nothing."""
    listed = WHAT_HAPPENS[state].get(event)
    if listed is not None:
        return listed
    if event in OPERATIONS:
        return Cell(CommandNotFoundError if state == "nowhere" else InvalidStateError)
    if event.endswith("of another message"):
        return Cell(None, LATE_ADDS[state, "other"])
    if event in ANSWER_WHEN_NOTHING_HAPPENS:
        return Cell(ANSWER_WHEN_NOTHING_HAPPENS[event])
    if event.startswith("stale ") or not settled_already(state):
        return Cell(["late"], ("LATE_RESULT",))
    return Cell(["recorded"])


def settled_already(state: str) -> bool:
    """Whether the last attempt's outcome is in the database, so that saying it again is known."""
    return state in ("backing off", "retried later", "in tsq", *ENDED)


LATE_ADDS = {
    (state, "other"): () if state == "nowhere" or settled_already(state) else ("LATE_RESULT",)
    for state in STATES
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
async def test_each_event_does_to_each_state_what_the_table_says(pool, state, event):
    [command_id] = [uuid4()] if state == "nowhere" else await send(pool, **CONTENT)
    scene = Scene(pool, await register(pool), command_id)
    await STATES[state](scene)
    before = await look(pool, scene.command_id)
    if event.endswith(("spent", "last")):
        await scene.spend(BUDGET)
        if state != "nowhere":
            before = replace(before, attempts=BUDGET)

    answer = await EVENTS[event](scene)

    cell = expected(state, event)
    assert answer == cell.answer
    assert await look(pool, scene.command_id) == replace(
        before, trail=before.trail + cell.adds, **cell.now
    )
    await assert_books_balance(pool)


@pytest.mark.parametrize("state", ["backing off", "retried later"])
async def test_what_waits_is_claimed_when_its_time_has_come(pool, state):
    [command_id] = await send(pool, **CONTENT)
    scene = Scene(pool, await register(pool), command_id)
    await STATES[state](scene)
    await make_due(pool, command_id)

    attempt = await claim_one(pool, scene.worker_id)

    assert attempt.attempt == (2 if state == "backing off" else 1)
    assert (await look(pool, command_id)).queue == 1
    await assert_books_balance(pool)


async def test_an_undo_that_comes_too_late_is_refused(pool):
    [command_id] = await send(pool, **CONTENT)
    scene = Scene(pool, await register(pool), command_id)
    await retried_later(scene)
    await make_due(pool, command_id)
    await claim_one(pool, scene.worker_id)

    assert await EVENTS["undo retry"](scene) is InvalidStateError


async def test_a_suspect_is_claimed_alone_and_goes_on(pool):
    [command_id] = await send(pool, **CONTENT)
    scene = Scene(pool, await register(pool), command_id)
    await parked(scene)

    async with store.autocommit(pool) as conn:
        [attempt] = await store.claim_suspect(conn, DOMAIN, scene.worker_id, 30, BUDGET)

    assert attempt.attempt == 2
    seen = await look(pool, command_id)
    assert (seen.status, seen.queue, seen.suspect) == ("IN_PROGRESS", 1, 0)
    await assert_books_balance(pool)
