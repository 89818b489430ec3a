"""Writes of operator jobs; like app.store, every function takes a connection and never commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

Connection = AsyncConnection[TupleRow]

SILENT_SECONDS = 15
"""A running job without a sign of life for so long has lost its process."""


async def create_job(
    conn: Connection,
    *,
    job_id: UUID,
    action: str,
    operator: str,
    arguments: Mapping[str, Any],
    chosen: Sequence[tuple[str, UUID]] | None,
    filters: Mapping[str, Any] | None,
    delay_seconds: float,
    expected: int,
    runner: UUID,
    expected_is_exact: bool = True,
    entered_until: datetime | None = None,
) -> None:
    """Record a job that *runner* is about to work on."""
    pairs = None if chosen is None else [[domain, str(command_id)] for domain, command_id in chosen]
    await conn.execute(
        """
        insert into public.operator_job (
            job_id, action, operator, arguments, chosen, filter, delay_seconds, expected,
            expected_is_exact, entered_until, runner
        )
        values (
            %(job_id)s, %(action)s, %(operator)s, %(arguments)s, %(chosen)s, %(filter)s,
            %(delay_seconds)s, %(expected)s, %(expected_is_exact)s, %(entered_until)s, %(runner)s
        )
        """,
        {
            "job_id": job_id,
            "action": action,
            "operator": operator,
            "arguments": Jsonb(arguments),
            "chosen": None if pairs is None else Jsonb(pairs),
            "filter": None if filters is None else Jsonb(filters),
            "delay_seconds": delay_seconds,
            "expected": expected,
            "expected_is_exact": expected_is_exact,
            "entered_until": entered_until,
            "runner": runner,
        },
    )


async def lock_job(conn: Connection, job_id: UUID, runner: UUID) -> bool:
    """Whether the job is running and *runner*'s; if so, it stays so in this transaction."""
    cur = await conn.execute(
        """
        select from public.operator_job
        where job_id = %s and runner = %s and state = 'running'
        for update
        """,
        (job_id, runner),
    )
    return await cur.fetchone() is not None


async def record_chunk(
    conn: Connection,
    job_id: UUID,
    *,
    done: int,
    changed: Mapping[str, int],
    skipped: Sequence[Mapping[str, Any]],
    cursor: str | None,
) -> None:
    """Add what became of a chunk; without a *cursor* for the next one the job is finished."""
    await conn.execute(
        """
        update public.operator_job
        set done = done + %(done)s, changed = %(changed)s, skipped = %(skipped)s,
            cursor = %(cursor)s, heartbeat_at = clock_timestamp(),
            state = case when %(cursor)s::text is null then 'finished' else 'running' end,
            finished_at = case when %(cursor)s::text is null then clock_timestamp() end
        where job_id = %(job_id)s
        """,
        {
            "job_id": job_id,
            "done": done,
            "changed": Jsonb(changed),
            "skipped": Jsonb(skipped),
            "cursor": cursor,
        },
    )


async def adopt_jobs(conn: Connection, runner: UUID) -> list[UUID]:
    """Give *runner* the running jobs whose process has died; returns their ids."""
    cur = await conn.execute(
        """
        update public.operator_job
        set runner = %s, heartbeat_at = clock_timestamp()
        where state = 'running'
            and heartbeat_at < clock_timestamp() - make_interval(secs => %s)
        returning job_id
        """,
        (runner, SILENT_SECONDS),
    )
    return [row[0] for row in await cur.fetchall()]


async def stop_job(conn: Connection, job_id: UUID) -> bool:
    """Let a running job end after the chunk that is under way; whether it was running."""
    cur = await conn.execute(
        """
        update public.operator_job
        set state = 'stopped', finished_at = clock_timestamp()
        where job_id = %s and state = 'running'
        """,
        (job_id,),
    )
    return cur.rowcount == 1


async def mark_undone(conn: Connection, job_id: UUID, operator: str) -> None:
    """Record who took the job's retries back."""
    await conn.execute(
        "update public.operator_job set undone_at = clock_timestamp(), undone_by = %s"
        " where job_id = %s",
        (operator, job_id),
    )


async def delete_old_jobs(conn: Connection, older_than: timedelta, limit: int) -> int:
    """Delete up to *limit* jobs that ended more than *older_than* ago; how many there were."""
    cur = await conn.execute(
        """
        delete from public.operator_job where job_id in (
            select job_id from public.operator_job
            where state <> 'running' and finished_at < clock_timestamp() - %s
            order by created_at
            limit %s
        )
        """,
        (older_than, limit),
    )
    return cur.rowcount
