"""The commands of a recorded run, as its clean-up reads and cancels them."""

from __future__ import annotations

from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg.rows import TupleRow

from app.database.pools import Pool
from commandbus.pools import autocommit


class Waiting(NamedTuple):
    """A command that no worker has taken."""

    command_id: UUID
    domain: str
    created_at: datetime


async def troubled(pool: Pool, run_id: UUID, limit: int) -> list[TupleRow]:
    """Each domain with its commands of the run in the troubleshooting queue, *limit* in total."""
    return await _rows(
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
        limit,
    )


async def waiting(pool: Pool, run_id: UUID, after: Waiting | None, limit: int) -> list[Waiting]:
    """The pending commands of the run that come after *after*, oldest first."""
    found = await _rows(
        pool,
        """
        select c.command_id, c.domain, c.created_at
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
        after and after.created_at,
        after and after.command_id,
        limit,
    )
    return [Waiting(*row) for row in found]


async def cancel_queued(
    pool: Pool, domain: str, ids: list[UUID], by: str, reason: str
) -> set[UUID]:
    """Cancel those of *ids* that wait in the queue and that nobody holds now; returns them."""
    found = await _rows(
        pool, "select * from command_bus.cancel_queued(%s, %s, %s, %s)", domain, ids, by, reason
    )
    return {row[0] for row in found}


async def _rows(pool: Pool, query: LiteralString, *parameters: object) -> list[TupleRow]:
    async with autocommit(pool) as conn:
        cur = await conn.execute(query, parameters)
        return await cur.fetchall()
