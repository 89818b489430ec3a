"""Writes of operator jobs; no function commits, each takes a connection of the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

Connection = AsyncConnection[TupleRow]

LEASE_SECONDS = 15.0
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


async def lock_job(
    conn: Connection, job_id: UUID, runner: UUID, cursor: str | None, *, lease_seconds: float
) -> bool:
    """Whether the job is *runner*'s, is running and stands at *cursor*; if so, it stays so in this
    transaction.

    A process that froze since it read the job finds it elsewhere and deals with nothing twice. One
    that freezes now loses its session, and with it the lock, after *lease_seconds*.
    """
    cur = await conn.execute(
        """
        select set_config('idle_in_transaction_session_timeout', %(milliseconds)s, true)
        from public.operator_job
        where job_id = %(job_id)s and runner = %(runner)s and state = 'running'
            and cursor is not distinct from %(cursor)s
        for update
        """,
        {
            "job_id": job_id,
            "runner": runner,
            "cursor": cursor,
            "milliseconds": str(round(lease_seconds * 1000)),
        },
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


async def adopt_jobs(
    conn: Connection, runner: UUID, *, lease_seconds: float, but: Sequence[UUID], limit: int
) -> list[UUID]:
    """Give *runner* up to *limit* running jobs whose process has died; returns their ids.

    *but*: those that it works on itself. One that is locked has a process that deals with a chunk.
    """
    cur = await conn.execute(
        """
        update public.operator_job
        set runner = %(runner)s, heartbeat_at = clock_timestamp()
        where job_id in (
            select job_id
            from public.operator_job
            where state = 'running' and job_id <> all(%(but)s)
                and heartbeat_at < clock_timestamp() - make_interval(secs => %(lease_seconds)s)
            order by heartbeat_at
            limit %(limit)s
            for update skip locked
        )
        returning job_id
        """,
        {"runner": runner, "lease_seconds": lease_seconds, "but": list(but), "limit": limit},
    )
    return [row[0] for row in await cur.fetchall()]


async def has_abandoned_work(
    conn: Connection, *, lease_seconds: float, run_seconds: float
) -> tuple[bool, bool]:
    """Whether a job, and whether the generation of a run, was silent for so many seconds."""
    cur = await conn.execute(
        """
        select
            exists (
                select from public.operator_job
                where state = 'running'
                    and heartbeat_at < clock_timestamp() - make_interval(secs => %s)
            ),
            exists (
                select from load_test_run
                where finished_at is null and state = 'generating'
                    and heartbeat_at < clock_timestamp() - make_interval(secs => %s)
            )
        """,
        (lease_seconds, run_seconds),
    )
    [(jobs, runs)] = await cur.fetchall()
    return jobs, runs


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
