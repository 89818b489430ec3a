"""Generating many test commands fast."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.testcommand import store
from app.testcommand.behaviors import Behavior, BehaviorDistribution, BehaviorType
from app.testcommand.handlers import COMMAND_TYPE
from commandbus import uuid7
from commandbus.deadlines import ANSWER_SECONDS, answered_within

CHUNK = 1_000
MAX_COUNT = 1_000_000
FIRST_IDS = 100
MIXED = {
    BehaviorType.SUCCESS: 90,
    BehaviorType.FAIL_TRANSIENT_THEN_SUCCEED: 5,
    BehaviorType.FAIL_PERMANENT: 5,
}
"""Percentages of a load test in which some commands fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOrder:
    """Which test commands to generate: one *behavior* for all, or a *distribution* over types."""

    count: int
    behavior: Behavior | None = None
    distribution: BehaviorDistribution | None = None
    delay_ms: int = 0
    """How long each command of a distribution runs."""
    timeout_ms: int | None = None
    """How long its timeouts run; None: as long as the others."""
    max_attempts: int | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    domain: str = "test"
    batch_id: UUID = field(default_factory=uuid7)
    """Names the run: its counters are found under this id."""
    seed: int | None = None
    """Makes the order of a distribution repeatable."""
    lanes: int = 0
    """Into so many lanes they go, in turns; 0: none has a lane."""
    groups: int = 1
    """Of so many groups these lanes are."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"count must be from 1 to {MAX_COUNT}")
        if not 0 <= self.lanes <= MAX_COUNT or not 1 <= self.groups <= MAX_COUNT:
            raise ValueError(f"lanes must be from 0, groups from 1, both to {MAX_COUNT}")
        if self.behavior is not None and self.distribution is not None:
            raise ValueError("give a behavior or a distribution, not both")

    def types(self) -> dict[BehaviorType, int]:
        """How many commands of each behaviour type there will be."""
        if self.distribution is not None:
            return self.distribution.allocate(self.count)
        return {self._only_type: self.count}

    def sequence(self) -> Iterator[BehaviorType]:
        """The type of each command, in the order in which they are sent."""
        if self.distribution is None:
            return repeat(self._only_type, self.count)
        return self.distribution.shuffled(self.count, seed=self.seed)

    @property
    def lane_settings(self) -> dict[str, int]:
        """How many lanes and groups, where there are any: what a run is remembered by."""
        return {"lanes": self.lanes, "groups": self.groups} if self.lanes else {}

    def lane_of(self, number: int) -> str | None:
        """The lane of the command with this number, counted from 0."""
        if not self.lanes:
            return None
        lane = number % self.lanes
        return f"group-{lane % self.groups}/lane-{lane}"

    def behavior_of(self, kind: BehaviorType) -> Behavior:
        """What the commands of a type do."""
        if self.behavior is not None:
            return self.behavior
        is_timeout = kind is BehaviorType.TIMEOUT and self.timeout_ms is not None
        time_ms = self.timeout_ms if is_timeout else self.delay_ms
        return Behavior(type=kind, execution_time_ms=time_ms or 0)

    @property
    def _only_type(self) -> BehaviorType:
        return BehaviorType.SUCCESS if self.behavior is None else self.behavior.type


@dataclass(slots=True)
class BulkResult:
    """What has been generated so far."""

    batch_id: UUID
    created: int = 0
    command_ids: list[UUID] = field(default_factory=list)
    """The first hundred."""
    generation_seconds: float = 0.0
    """Making ids and rows."""
    queue_seconds: float = 0.0
    """Writing and queueing them."""
    cancelled: bool = False


async def generate(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
    order: BulkOrder,
    *,
    on_progress: Callable[[BulkResult], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    record: Callable[[AsyncConnection[TupleRow], BulkResult], Awaitable[None]] | None = None,
) -> BulkResult:
    """Create the test commands of *order* and send their commands, 1,000 in each transaction.

    *record* is called inside each chunk's transaction with what has been made, that chunk included;
    what it raises takes the chunk back. *on_progress* hears of every chunk; when *is_cancelled*
    says so before a chunk, what was sent stays and the rest is not. Memory does not grow with the
    count. Raises what sending raises; the chunks before stay.
    """
    result = BulkResult(order.batch_id)
    templates = {kind: _row_template(order, kind) for kind in order.types()}
    sequence = order.sequence()
    async with answered_within(ANSWER_SECONDS) as limit, pool.connection() as conn:
        while result.created < order.count:
            if is_cancelled is not None and is_cancelled():
                result.cancelled = True
                break
            limit.renew()
            began = time.perf_counter()
            kinds = list(islice(sequence, CHUNK))
            command_ids = [uuid7() for _ in kinds]
            rows = list(map(_filled, map(templates.__getitem__, kinds), command_ids))
            if order.lanes:
                rows = [
                    _in_lane(row, order.lane_of(number), number - result.created)
                    for number, row in enumerate(rows, result.created)
                ]
            generated = time.perf_counter()
            async with conn.transaction():
                await _send(conn, order, rows)
                if record is not None:
                    await record(conn, replace(result, created=result.created + len(kinds)))
            result.generation_seconds += generated - began
            result.queue_seconds += time.perf_counter() - generated
            result.created += len(kinds)
            missing = FIRST_IDS - len(result.command_ids)
            result.command_ids += command_ids[:missing]
            if on_progress is not None:
                on_progress(result)
    return result


async def _send(conn: AsyncConnection[TupleRow], order: BulkOrder, rows: Sequence[str]) -> None:
    if len(rows) == 1:
        await store.create_and_send_test_command(conn, order.domain, rows[0], order.batch_id)
    else:
        chunk = f"[{','.join(rows)}]"
        await store.create_and_send_test_commands(conn, order.domain, chunk, order.batch_id)


def _row_template(order: BulkOrder, kind: BehaviorType) -> str:
    """The JSON of a row of this type, with a place for the id."""
    row: dict[str, Any] = {
        "command_type": COMMAND_TYPE,
        "data": order.payload,
        "behavior": order.behavior_of(kind).to_json(),
    }
    if order.max_attempts is not None:
        row["max_attempts"] = order.max_attempts
    text = json.dumps(row, allow_nan=False).replace("%", "%%")
    return '{"command_id":"%s",' + text.removeprefix("{")


def _filled(template: str, command_id: UUID) -> str:
    return template % command_id


def _in_lane(row: str, lane: str | None, position: int) -> str:
    return f'{row[:-1]},"lane":"{lane}","lane_position":{position}}}'
