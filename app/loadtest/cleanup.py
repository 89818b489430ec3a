"""What a run leaves behind: cancelling what still waits, and deleting what has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from app.database.pools import Pool
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
        troubled = await _rows(
            pool,
            """
            select t.domain, array_agg(t.command_id)
            from (
                select t.domain, t.command_id
                from public.command_bus_tsq as t
                join public.command_bus_command as c
                    on c.command_id = t.command_id and c.domain = t.domain
                where c.batch_id = %s
                limit %s
            ) as t
            group by t.domain
            """,
            run_id,
            AT_ONCE,
        )
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
    last: TupleRow | None = None
    while True:
        waiting = await _rows(
            pool,
            """
            select c.created_at, c.command_id, c.domain
            from public.load_test_run as r
            join public.command_bus_command as c
                on c.created_at between r.created_at - interval '1 minute'
                    and coalesce(r.generated_at, clock_timestamp()) + interval '1 minute'
            where r.run_id = %s and c.batch_id = r.run_id and c.status = 'PENDING'
                and (c.created_at, c.command_id) > (
                    coalesce(%s::timestamptz, '-infinity'),
                    coalesce(%s::uuid, '00000000-0000-0000-0000-000000000000')
                )
            order by c.created_at, c.command_id
            limit %s
            """,
            run_id,
            last and last[0],
            last and last[1],
            AT_ONCE,
        )
        cancelled: set[UUID] = set()
        for domain in {row[2] for row in waiting}:
            if is_stopped():
                return count
            ids = [row[1] for row in waiting if row[2] == domain]
            cancelled |= await _cancel_queued(pool, domain, ids, by)
        count += len(cancelled)
        for _, command_id, domain in waiting:
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


async def _cancel_queued(pool: Pool, domain: str, ids: list[UUID], by: str) -> set[UUID]:
    """Cancel those of *ids* that wait in the queue and that nobody holds now; returns them."""
    found = await _rows(
        pool, "select * from command_bus.cancel_queued(%s, %s, %s, %s)", domain, ids, by, REASON
    )
    return {row[0] for row in found}


async def _rows(pool: Pool, query: LiteralString, *parameters: object) -> list[TupleRow]:
    async with autocommit(pool) as conn:
        cur = await conn.execute(query, parameters)
        return await cur.fetchall()
