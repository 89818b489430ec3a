"""Recording outcomes in groups, so that a fast handler costs far less than a round trip."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from commandbus import outcomes, store
from commandbus.backoff import Backoff
from commandbus.errors import (
    DATABASE_ERRORS,
    INFRASTRUCTURE_ERRORS,
    LOCK_ERRORS,
    SETUP_ERRORS,
    is_about_the_value,
    one_line,
)
from commandbus.models import (
    CommandStatus,
    Outcome,
    OutcomeKind,
    Settlement,
    Verdict,
    first_ids,
)
from commandbus.worker_connections import WorkerConnections
from commandbus.worker_state import WorkerState

logger = logging.getLogger(__name__)

GROUP_SIZE = 200
GROUP_BYTES = 4_000_000
LINGER_SECONDS = 0.002
# While an outcome waits longer than this, or more than these are put aside or take more memory,
# nothing is claimed.
BEHIND_SECONDS = 1.0
MOST_ASIDE = 100
MOST_BYTES = 64_000_000
# How long after a lock was met groups are recorded in parts from the first.
APART_SECONDS = 1.0
# When this many outcomes of a group fail one after the other, the fault counts as general.
GENERAL_FAULT = 5
# How often the log repeats what is put aside.
AGAIN_SECONDS = 10.0


class Settler:
    """Takes outcomes one by one and records them in groups.

    A group is closed when it is full, when nothing runs that could join it soon, or after
    LINGER_SECONDS. While the database is away outcomes are kept and tried again, since a handler
    that has run must not run again for a fault of the database. What cannot be recorded while
    others can (its command is locked, or its reply queue; a trigger refuses it) is put aside, where
    it holds up nothing, and tried again for as long as it takes.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        state: WorkerState,
        *,
        more_may_come: Callable[[], bool],
        settled: Callable[[Outcome], None],
        due_in: Callable[[float], None],
    ) -> None:
        self._connections = connections
        self._state = state
        self._more_may_come = more_may_come
        self._settled = settled
        self._due_in = due_in
        self._pending: deque[Outcome] = deque()
        self._pending_since = 0.0
        self._recording_since: float | None = None
        self._aside: deque[Outcome] = deque()
        self._aside_count = 0
        self._aside_arrived = asyncio.Event()
        self._bytes = 0
        self._apart_until = 0.0
        self._arrived = asyncio.Event()
        self._closing = False
        self._ended = False

    def add(self, outcome: Outcome) -> None:
        """Take an outcome; it is recorded soon."""
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.append(outcome)
        self._bytes += outcome.size
        self._arrived.set()

    def close(self) -> None:
        """Record what is there, and end."""
        self._closing = True
        self._arrived.set()
        self._aside_arrived.set()

    @property
    def is_behind(self) -> bool:
        """Whether nothing should be claimed, since outcomes wait that should be recorded by now.

        A few that are put aside do not count: what is locked for long would stop everything else.
        """
        since = self._recording_since
        return (
            (since is not None and time.monotonic() - since > BEHIND_SECONDS)
            or self._aside_count >= MOST_ASIDE
            or self._bytes > MOST_BYTES
        )

    async def run(self) -> None:
        """Record outcomes until closed and empty."""
        while True:
            if not self._pending:
                if self._closing:
                    self._ended = True
                    self._aside_arrived.set()
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._linger()
            group = self._take_group()
            await self._record(group)
            self._recording_since = None

    async def run_aside(self) -> None:
        """Record what was put aside, until closed and empty."""
        backoff = Backoff()
        told_at = 0.0
        while True:
            if not self._aside:
                if self._ended:
                    return
                self._aside_arrived.clear()
                await self._aside_arrived.wait()
                backoff.reset()
                continue
            if time.monotonic() - told_at > AGAIN_SECONDS:
                told_at = time.monotonic()
                self._tell("outcomes_put_aside", list(self._aside))
            await asyncio.sleep(backoff.next_delay())
            group = self._take(self._aside)
            left = await self._record_aside(group)
            self._aside.extend(left)
            self._aside_count = len(self._aside)
            if len(left) < len(group):
                backoff.reset()

    async def _linger(self) -> None:
        """Let handlers that end in this moment join the group."""
        before = -1
        while before < len(self._pending) < GROUP_SIZE:
            before = len(self._pending)
            await asyncio.sleep(0)
        if len(self._pending) < GROUP_SIZE and self._more_may_come() and not self._closing:
            await asyncio.sleep(LINGER_SECONDS)

    def _take_group(self) -> list[Outcome]:
        self._recording_since = self._pending_since
        self._pending_since = time.monotonic()
        return self._take(self._pending)

    @staticmethod
    def _take(waiting: deque[Outcome]) -> list[Outcome]:
        group: list[Outcome] = []
        size = 0
        while waiting and len(group) < GROUP_SIZE and size < GROUP_BYTES:
            outcome = waiting.popleft()
            group.append(outcome)
            size += outcome.size
        return group

    def _put_aside(self, outcomes_left: Sequence[Outcome]) -> None:
        self._aside.extend(outcomes_left)
        self._aside_count = len(self._aside)
        if outcomes_left:
            self._aside_arrived.set()

    async def _record(self, group: list[Outcome]) -> None:
        """Record *group*, however long the database is away; one bad outcome spoils no other."""
        backoff = Backoff()
        # What was locked a moment ago probably still is.
        apart = time.monotonic() < self._apart_until
        while True:
            try:
                settlements = await self._settle("settling", group, apart=apart)
            except SETUP_ERRORS:
                raise
            except LOCK_ERRORS as exc:
                # Locks are looked for at once; when even that meets one, everything is locked.
                delay = backoff.next_delay() if apart else 0.0
                apart = True
                self._apart_until = time.monotonic() + APART_SECONDS
                self._tell("settle_retried", group, exc, delay)
                await asyncio.sleep(delay)
            except INFRASTRUCTURE_ERRORS as exc:
                delay = backoff.next_delay()
                self._tell("settle_retried", group, exc, delay)
                await asyncio.sleep(delay)
            except DATABASE_ERRORS as exc:
                self._put_aside(await self._record_each("settling", group, exc))
                return
            else:
                self._put_aside(self._report(group, settlements))
                return

    async def _record_aside(self, group: list[Outcome]) -> list[Outcome]:
        """Record what can be recorded of *group*; gives the rest."""
        try:
            return self._report(group, await self._settle("aside", group, apart=True))
        except SETUP_ERRORS:
            raise
        except INFRASTRUCTURE_ERRORS:
            return group
        except DATABASE_ERRORS as exc:
            return await self._record_each("aside", group, exc)

    async def _record_each(
        self, task: str, group: Sequence[Outcome], error: Exception
    ) -> list[Outcome]:
        """Record outcomes by themselves after *error* of a group; gives those that failed.

        Only what the database cannot hold is replaced by a note about it. Any other fault is not
        the outcome's: a success must not become a failure because a trigger, or a missing right,
        kept it from being recorded once.
        """
        left: list[Outcome] = []
        recorded = False
        for position, outcome in enumerate(group, start=1):
            try:
                left += await self._record_one(task, outcome)
                recorded = True
            except SETUP_ERRORS:
                raise
            except DATABASE_ERRORS as exc:
                left.append(outcome)
                error = exc
            if len(left) >= GENERAL_FAULT and not recorded:
                left += group[position:]
                break
        if left:
            self._tell("settle_retried", left, error)
        return left

    async def _record_one(self, task: str, outcome: Outcome) -> list[Outcome]:
        """Record an outcome, or a note about it where the database cannot hold it.

        Gives it back where it is locked; raises where neither can be recorded.
        """
        try:
            return self._report([outcome], await self._settle(task, [outcome], apart=True))
        except DATABASE_ERRORS as exc:
            if not is_about_the_value(exc):
                raise
            reason = one_line(exc)
        logger.error("outcome_unstorable", extra={**_fields(outcome), "error": reason})
        note = outcomes.unstorable(outcome, reason, self._state.retry_policy)
        if self._report([note], await self._settle(task, [note], apart=True)):
            return [outcome]
        self._bytes -= outcome.size - note.size
        return []

    async def _settle(
        self, task: str, group: Sequence[Outcome], *, apart: bool
    ) -> list[Settlement]:
        completed: list[Outcome] = []
        failed: list[Outcome] = []
        handed: list[Outcome] = []
        for outcome in group:
            if outcome.kind is not OutcomeKind.SUCCESS:
                failed.append(outcome)
            else:
                (handed if outcome.follow_ups else completed).append(outcome)
        domain, worker_id = self._state.domain, self._state.registered_id
        settle = store.settle_commands_apart if apart else store.settle_commands
        settled: list[Settlement] = []
        async with self._connections.autocommit(task, within=self._state.recording_seconds) as conn:
            if completed or failed:
                settled += await settle(
                    conn,
                    domain,
                    worker_id,
                    f"[{','.join(map(outcomes.completed_json, completed))}]",
                    store.dumps([_failed_row(outcome) for outcome in failed]),
                )
            if handed:
                # In a transaction of its own. When it fails, all of the group is recorded again:
                # what is there already is answered so.
                settled += await store.settle_and_hand_off(
                    conn,
                    domain,
                    worker_id,
                    f"[{','.join(map(outcomes.completed_json, handed))}]",
                    apart=apart,
                )
        return settled

    def _tell(
        self,
        event: str,
        group: Sequence[Outcome],
        error: BaseException | None = None,
        delay: float | None = None,
    ) -> None:
        fields = {
            **self._state.ids,
            "count": len(group),
            "command_ids": first_ids(outcome.claimed for outcome in group),
            "error": None if error is None else one_line(error),
            "delay_seconds": delay,
        }
        known = {name: value for name, value in fields.items() if value is not None}
        logger.warning(event, extra=known)

    def _report(self, group: Sequence[Outcome], settlements: Sequence[Settlement]) -> list[Outcome]:
        """Tell what became of *group*; gives what is not recorded, since something is locked."""
        locked: list[Outcome] = []
        special = {(s.command_id, s.claim_no): s for s in settlements}
        log_completed = logger.isEnabledFor(logging.DEBUG)
        for outcome in group:
            claimed = outcome.claimed
            # Seldom is there any, and a UUID takes its time to hash.
            settlement = (
                special.get((claimed.command.command_id, claimed.claim_no)) if special else None
            )
            if settlement is None:
                if log_completed:
                    logger.debug("command_completed", extra=_fields(outcome))
            elif settlement.verdict is Verdict.LOCKED:
                locked.append(outcome)
                continue
            else:
                event, level = _event(settlement)
                if logger.isEnabledFor(level):
                    logger.log(level, event, extra=_fields(outcome))
                if settlement.status is CommandStatus.PENDING:
                    self._due_in(outcome.retry_delay_ms / 1000)
            self._bytes -= outcome.size
            self._settled(outcome)
        return locked


def _event(settlement: Settlement) -> tuple[str, int]:
    """The name and the level of the log line about an outcome that did not simply complete."""
    match settlement.verdict, settlement.status:
        case ((Verdict.LATE | Verdict.UNKNOWN), _):
            return "lease_lost", logging.WARNING
        case _, CommandStatus.PENDING:
            return "command_retry_scheduled", logging.INFO
        case _, CommandStatus.IN_TSQ:
            return "command_moved_to_tsq", logging.WARNING
        case _, CommandStatus.FAILED:
            return "command_failed", logging.INFO
        case _:
            return "command_completed", logging.DEBUG


def _fields(outcome: Outcome) -> dict[str, object]:
    fields = outcome.claimed.log_fields
    fields["run_ms"] = outcome.run_us / 1000
    if outcome.error_code is not None:
        fields["error_code"] = outcome.error_code
    return fields


def _failed_row(outcome: Outcome) -> dict[str, object]:
    claimed = outcome.claimed
    return {
        "command_id": str(claimed.command.command_id),
        "msg_id": claimed.msg_id,
        "claim_no": claimed.claim_no,
        "run_us": outcome.run_us,
        "kind": outcome.kind.value,
        "error_type": outcome.error_type,
        "error_code": outcome.error_code,
        "error_message": outcome.error_message,
        "error_details": outcome.error_details,
        "max_attempts": claimed.max_attempts,
        "retry_delay_ms": outcome.retry_delay_ms,
    }
