"""Recording outcomes in groups, so that a fast handler costs far less than a round trip."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import outcomes, store
from commandbus.backoff import Backoff
from commandbus.errors import INFRASTRUCTURE_ERRORS, CommandBusError
from commandbus.models import (
    CommandStatus,
    Outcome,
    OutcomeKind,
    Settlement,
    Verdict,
    first_ids,
)
from commandbus.retry import RetryPolicy

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

GROUP_SIZE = 200
GROUP_BYTES = 4_000_000
LINGER_SECONDS = 0.002


class Settler:
    """Takes outcomes one by one and records them in groups.

    A group is closed when it is full, when nothing runs that could join it soon, or after
    LINGER_SECONDS. While the database is away outcomes are kept and tried again, since a handler
    that has run must not run again for a fault of the connection.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
        domain: str,
        *,
        worker_id: Callable[[], int],
        more_may_come: Callable[[], bool],
        settled: Callable[[Outcome], None],
        policy: Callable[[], RetryPolicy],
        answer_timeout: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._domain = domain
        self._worker_id = worker_id
        self._more_may_come = more_may_come
        self._settled = settled
        self._policy = policy
        self._answer_timeout = answer_timeout
        self._pending: deque[Outcome] = deque()
        self._arrived = asyncio.Event()
        self._closing = False

    def add(self, outcome: Outcome) -> None:
        """Take an outcome; it is recorded soon."""
        self._pending.append(outcome)
        self._arrived.set()

    def close(self) -> None:
        """Record what is there, and end."""
        self._closing = True
        self._arrived.set()

    async def run(self) -> None:
        """Record outcomes until closed and empty."""
        while True:
            if not self._pending:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._linger()
            await self._record(self._take_group())

    async def _linger(self) -> None:
        """Let handlers that end in this moment join the group."""
        before = -1
        while before < len(self._pending) < GROUP_SIZE:
            before = len(self._pending)
            await asyncio.sleep(0)
        if len(self._pending) < GROUP_SIZE and self._more_may_come() and not self._closing:
            await asyncio.sleep(LINGER_SECONDS)

    def _take_group(self) -> list[Outcome]:
        group: list[Outcome] = []
        size = 0
        while self._pending and len(group) < GROUP_SIZE and size < GROUP_BYTES:
            outcome = self._pending.popleft()
            group.append(outcome)
            size += len(outcome.result)
        return group

    async def _record(self, group: list[Outcome]) -> None:
        """Record *group*, however long the database is away; one bad outcome spoils no other."""
        backoff = Backoff()
        while True:
            try:
                settlements = await self._settle(group)
            except INFRASTRUCTURE_ERRORS as exc:
                delay = backoff.next_delay()
                logger.warning(
                    "settle_retried",
                    extra={
                        "worker_id": self._worker_id(),
                        "domain": self._domain,
                        "count": len(group),
                        "command_ids": first_ids(outcome.claimed for outcome in group),
                        "error": str(exc).strip(),
                        "delay_seconds": delay,
                    },
                )
                await asyncio.sleep(delay)
            except (psycopg.Error, CommandBusError) as exc:
                if len(group) == 1:
                    group = [self._replacement(group[0], exc)]
                    continue
                for outcome in group:
                    await self._record([outcome])
                return
            else:
                self._report(group, settlements)
                return

    def _replacement(self, outcome: Outcome, error: Exception) -> Outcome:
        if outcome.error_code == outcomes.UNSTORABLE_RESULT:
            raise error  # even the note about it cannot be stored: not a matter of this outcome
        logger.error("outcome_unstorable", extra={**_fields(outcome), "error": str(error).strip()})
        return outcomes.unstorable(outcome, str(error).strip(), self._policy())

    async def _settle(self, group: Sequence[Outcome]) -> list[Settlement]:
        completed = [o for o in group if o.kind is OutcomeKind.SUCCESS]
        failed = [o for o in group if o.kind is not OutcomeKind.SUCCESS]
        async with store.autocommit(self._pool, within=self._answer_timeout()) as conn:
            return await store.settle_commands(
                conn,
                self._domain,
                self._worker_id(),
                f"[{','.join(map(_completed_json, completed))}]",
                store.dumps([_failed_row(outcome) for outcome in failed]),
            )

    def _report(self, group: Sequence[Outcome], settlements: Sequence[Settlement]) -> None:
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
            else:
                event, level = _event(settlement)
                if logger.isEnabledFor(level):
                    logger.log(level, event, extra=_fields(outcome))
            self._settled(outcome)


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


def _completed_json(outcome: Outcome) -> str:
    claimed = outcome.claimed
    return (
        f'{{"command_id":"{claimed.command.command_id}","msg_id":{claimed.msg_id},'
        f'"claim_no":{claimed.claim_no},"run_us":{outcome.run_us},"result":{outcome.result}}}'
    )


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
