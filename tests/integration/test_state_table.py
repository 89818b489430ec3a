"""Every cell of the state table: each event meets each state, and does what the design says.

A cell that is not listed in WHAT_HAPPENS changes nothing: neither the command, nor its trail, nor
its message, nor any list that it stands in, nor a counter; it may only leave LATE_RESULT.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from commandbus import CommandBus, store
from commandbus.errors import (
    CommandNotFoundError,
    DuplicateCommandError,
    InvalidStateError,
)
from tests.facts import (
    DOMAIN,
    Pool,
    assert_books_balance,
    claim_one,
    count,
    events,
    make_due,
    queued,
    register,
    replies,
    send,
)
from tests.integration.scenes import (
    BUDGET,
    CONTENT,
    EVENTS,
    STATES,
    Scene,
    parked,
    retried_later,
)

PENDING = ("queued", "released", "backing off", "parked", "unknown", "retried later")
RUNNING = ("running", "running late", "running after crash")
ENDED = ("completed", "failed", "cancelled")

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
    parked: int
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
        parked=await count(pool, "command_bus_parked", command_id),
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
    gone = {"queue": 0, "waiting": 0, "suspect": 0, "parked": 0}
    return Cell(
        list(answer) if isinstance(answer, tuple) else answer,
        (*adds, "MOVED_TO_TSQ"),
        {"status": "IN_TSQ", "tsq": 1, **gone, **now},
    )


def ended(status: str, *adds: str, answer: Any) -> Cell:
    gone = {"queue": 0, "waiting": 0, "tsq": 0, "suspect": 0, "parked": 0}
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
        "claim without handler": Cell(0, (), {"queue": 0, "parked": 1}),
    }
WHAT_HAPPENS["unknown"] |= {
    "claim parked": Cell(
        1, ("RECEIVED",), {"status": "IN_PROGRESS", "attempts": 1, "queue": 1, "parked": 0}
    ),
    "no handler": to_tsq(answer=1),
}
WHAT_HAPPENS["parked"]["no handler"] = to_tsq(answer=1)
for _state in PENDING:
    for _event in ("cancel pending", "request cancel"):
        WHAT_HAPPENS[_state][_event] = ended("CANCELLED", "OPERATOR_CANCEL", answer="done")
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
        "request cancel": Cell("done"),
        "cancelled by its worker": ended("CANCELLED", "OPERATOR_CANCEL", answer=1),
        "release": Cell(1, ("RELEASED",), {"status": "PENDING", "attempts": 0}),
        "park": Cell(
            1, ("RELEASED",), {"status": "PENDING", "attempts": 0, "queue": 0, "parked": 1}
        ),
    }
for _state in ("running late", "running after crash"):
    WHAT_HAPPENS[_state]["claim spent"] = to_tsq("LEASE_EXPIRED", "RETRY_EXHAUSTED", answer=0)
WHAT_HAPPENS["running late"]["claim"] = Cell(1, ("LEASE_EXPIRED", "RECEIVED"), {"attempts": 2})
for _event in ("claim", "claim without handler"):
    WHAT_HAPPENS["running after crash"][_event] = Cell(
        0, ("LEASE_EXPIRED",), {"status": "PENDING", "queue": 0, "suspect": 1}
    )
WHAT_HAPPENS["running late"]["claim without handler"] = Cell(
    0, ("LEASE_EXPIRED",), {"status": "PENDING", "queue": 0, "parked": 1}
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
    "claim without handler": 0,
    "claim parked": 0,
    "park": 0,
    "cancelled by its worker": 0,
    "no handler": 0,
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
    "request cancel",
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
    if (state, event) != ("queued", "claim spent"):  # a budget spent before any attempt is made up
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
