"""What a run leaves behind: cancelling what still waits, and deleting what has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from app.database.pools import Pool
from app.loadtest import run_store
from app.testcommand.store import delete_test_commands
from commandbus import CommandNotFoundError, InvalidStateError, Pruner, TroubleshootingQueue
from commandbus.models import OperatorVerdict
from commandbus.pools import autocommit

AT_ONCE = 500
REASON = "its load test was interrupted"


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of the commands of a run that is deleted."""

    cancelled: int
    """They were in the troubleshooting queue."""
    deleted: int
    """Those that were cancelled are among them."""


async def delete_commands(pool: Pool, run_id: UUID, by: str) -> Deletion:
    """Delete the commands of a run that have ended, with their trails.

    Those in the troubleshooting queue are cancelled first, in the name of *by*. What is on its way
    stays, and so does the record of the run. In transactions of AT_ONCE commands; raises psycopg's
    InsufficientPrivilege for a role that may not delete what is in the audit trail.
    """
    cancelled = await _cancel_troubled(pool, run_id, by)
    count = 0
    while True:
        async with autocommit(pool) as conn:
            pruner = Pruner(conn, batch_size=AT_ONCE, on_pruned=delete_test_commands)
            deleted = await pruner.delete_batch(run_id)
        if not deleted:
            return Deletion(cancelled, count)
        count += deleted


async def _cancel_troubled(pool: Pool, run_id: UUID, by: str) -> int:
    tsq = TroubleshootingQueue(pool)
    count = 0
    while True:
        troubled = await run_store.troubled(pool, run_id, AT_ONCE)
        done = 0
        for domain, ids in troubled:
            answers = await tsq.operator_cancel_many(domain, ids, by, "its load test is deleted")
            done += sum(answer.verdict is OperatorVerdict.DONE for answer in answers)
        if not done:
            return count
        count += done


async def cancel_waiting(pool: Pool, run_id: UUID, by: str, is_stopped: Callable[[], bool]) -> int:
    """Cancel the commands of a run that no worker has taken; returns how many.

    *is_stopped* is asked before each portion. A worker may take any of them meanwhile, which then
    is run. What somebody else holds is cancelled one by one.
    """
    tsq = TroubleshootingQueue(pool)
    count = 0
    last: run_store.Waiting | None = None
    while True:
        waiting = await run_store.waiting(pool, run_id, last, AT_ONCE)
        cancelled: set[UUID] = set()
        for domain in {row.domain for row in waiting}:
            if is_stopped():
                return count
            ids = [row.command_id for row in waiting if row.domain == domain]
            cancelled |= await run_store.cancel_queued(pool, domain, ids, by, REASON)
        count += len(cancelled)
        for command_id, domain, _ in waiting:
            if command_id in cancelled:
                continue
            if is_stopped():
                return count
            try:
                await tsq.cancel_pending(domain, command_id, by, REASON)
            except (CommandNotFoundError, InvalidStateError):  # it is pending no longer
                continue
            count += 1
        if not waiting:
            return count
        last = waiting[-1]
