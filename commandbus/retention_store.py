"""The calls of retention: one Python function for each SQL function, as in store.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from commandbus.errors import translate_errors
from commandbus.models import CommandStatus
from commandbus.store import Connection, fetch


@dataclass(frozen=True, slots=True)
class PrunedBatch:
    """What one call of prune_commands deleted, and how far it looked."""

    command_ids: list[UUID]
    events: int
    last: tuple[datetime | None, UUID | None]
    more: bool


async def _see_what_was_waited_for(conn: Connection) -> None:
    """Let each statement of this transaction see what was committed before it.

    The locks of pruning are no use to a snapshot that is older than the wait for them. Where the
    transaction has another level, it must not have done anything yet.
    """
    await conn.execute("set transaction isolation level read committed")


async def prune_commands(
    conn: Connection,
    status: CommandStatus,
    before: datetime,
    limit: int,
    *,
    domain: str | None,
    after: tuple[datetime | None, UUID | None],
    dry_run: bool,
) -> PrunedBatch:
    """Delete up to *limit* commands that ended with *status* before *before*, oldest first."""
    await _see_what_was_waited_for(conn)
    with translate_errors():
        # The function returns exactly one row.
        [(command_ids, events, last_created_at, last_id, more)] = await fetch(
            conn,
            "select command_ids, events, last_created_at, last_id, more"
            " from command_bus.prune_commands(%s, %s, %s::integer, %s, %s, %s, p_dry_run => %s)",
            (status.value, before, limit, domain, *after, dry_run),
        )
    return PrunedBatch(command_ids, events, (last_created_at, last_id), more)


async def delete_batch(conn: Connection, batch_id: UUID, limit: int) -> list[UUID]:
    """Delete up to *limit* commands of a batch that have ended, and say which."""
    await _see_what_was_waited_for(conn)
    cur = await conn.execute(
        "select command_ids from command_bus.delete_batch(%s, %s::integer)", (batch_id, limit)
    )
    row = await cur.fetchone()
    return [] if row is None else row[0]


async def prune_history(conn: Connection, before: datetime, limit: int) -> dict[str, int]:
    """Delete up to *limit* rows of each kind that are older than *before*; how many, by kind."""
    query = (
        "select kind, sum(deleted)::bigint from command_bus.prune_history(%s, %s::integer)"
        " group by kind"
    )
    async with conn.transaction():
        await _see_what_was_waited_for(conn)
        return dict(await fetch(conn, query, (before, limit)))


async def may_prune(conn: Connection) -> bool:
    """Whether the connection's role has been granted to prune."""
    cur = await conn.execute(
        "select bool_and(has_function_privilege(p.oid, 'execute')) from pg_proc as p"
        " where p.pronamespace = 'command_bus'::regnamespace"
        " and p.proname in ('prune_commands', 'prune_history')"
    )
    row = await cur.fetchone()
    return row == (True,)


async def become_pruner(conn: Connection) -> bool:
    """Whether no other session is the one that prunes on schedule; then this one is, to its end."""
    cur = await conn.execute(
        "select pg_try_advisory_lock(hashtextextended('command_bus.retention', 0))"
    )
    row = await cur.fetchone()
    return row == (True,)
