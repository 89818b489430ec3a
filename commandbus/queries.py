"""What the library reads: the rows of commands, trails, the troubleshooting queue and queues.

Every function takes a connection and never commits, as those of store.py. What reads tables by
itself ends with an offset that refuses it where row-level security would hide rows, as
``row_security = off`` refuses the SQL functions: a setting of the session would bind also the other
statements of the pool's owner, and of whom a pooler gives the session to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.errors import RaiseException, UndefinedTable
from psycopg.rows import class_row, dict_row

from commandbus.errors import UnknownDomainError, UnknownReplyQueueError
from commandbus.models import (
    AuditEvent,
    AuditEventType,
    BatchProgress,
    CommandRecord,
    CommandStatus,
    LaneGroup,
    LaneSettings,
    OutboxEvent,
    Pause,
    Percentiles,
    TroubledCommand,
)
from commandbus.payload import decode_json, decode_or_note
from commandbus.store import Connection, fetch

_SELECT_COMMAND = sql.SQL(
    """
    select command_id, domain, command_type, data::text as data, correlation_id, reply_to, batch_id,
        created_at, status, attempts, max_attempts, msg_id, claim_no, worker_id,
        result::text as result, last_error_type, last_error_code, last_error_message, updated_at,
        started_at, finished_at, lease_until,
        headers::text as headers, causation_id, lane
    from public.command_bus_command
    """
)

# PGMQ folds the case of names.
_NONE_OF_QUEUE_HIDDEN = (
    "command_bus.none_hidden(to_regclass(format('pgmq.%%I', 'q_' || lower(%s))))"
)


def _none_hidden(table: str) -> sql.Composable:
    """The end of a query of *table*: it is refused where row-level security would hide rows.

    An offset is evaluated before any row is looked for. A condition would not be where a policy
    shows no rows at all, as the planner leaves out what comes to nothing.
    """
    return sql.SQL("offset command_bus.none_hidden({})").format(sql.Literal(table))


def _record(row: dict[str, Any]) -> CommandRecord:
    """Read one row; what cannot be decoded spoils neither it nor the page that it is on."""
    return CommandRecord(
        **{
            **row,
            "status": CommandStatus(row["status"]),
            "data": decode_or_note(row["data"]),
            "result": decode_or_note(row["result"]),
            "headers": decode_or_note(row["headers"]) or {},
        }
    )


async def get_command(conn: Connection, domain: str, command_id: UUID) -> CommandRecord | None:
    """One command, or None."""
    query = sql.SQL("{} where command_id = %s and domain = %s {}").format(
        _SELECT_COMMAND, _none_hidden("public.command_bus_command")
    )
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute(query, (command_id, domain))
        row = await cur.fetchone()
        return None if row is None else _record(row)


async def lane_groups(conn: Connection, domain: str | None) -> list[LaneGroup]:
    """The groups of lanes that have something to do, had a short time ago, or have settings."""
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute("select * from command_bus.lane_groups(%s)", (domain,))
        rows = await cur.fetchall()
    names = ("max_in_flight", "weight", "lane_limit", "on_trouble")
    return [
        LaneGroup(
            group=row.pop("lane_group"),
            settings=LaneSettings(**{name: row.pop(name) for name in names}),
            **row,
        )
        for row in rows
    ]


async def read_outbox(conn: Connection, limit: int) -> list[OutboxEvent]:
    """The first *limit* events of the outbox."""
    query = sql.SQL(
        """
        select position, event_id, event_type, key, data::text as data, headers::text as headers,
            created_at, domain, command_id
        from public.command_bus_outbox order by position limit %s {}
        """
    ).format(_none_hidden("public.command_bus_outbox"))
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute(query, (limit,))
        return [
            OutboxEvent(
                **{
                    **row,
                    "data": decode_or_note(row["data"]),
                    "headers": decode_or_note(row["headers"]) or {},
                }
            )
            for row in await cur.fetchall()
        ]


async def query_commands(
    conn: Connection,
    filters: dict[str, Any],
    *,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[CommandRecord]:
    """Commands that match every given filter, newest first, after the key *before*."""
    conditions = [_CONDITIONS.get(name) or _equals(name) for name in filters]
    query, params = _page(
        _SELECT_COMMAND,
        "public.command_bus_command",
        "created_at",
        conditions,
        filters,
        before,
        limit,
    )
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute(query, params)
        return [_record(row) for row in await cur.fetchall()]


_CONDITIONS = {
    "status": sql.SQL("status = %(status)s::command_bus.command_status"),
    "created_after": sql.SQL("created_at >= %(created_after)s"),
    "created_before": sql.SQL("created_at < %(created_before)s"),
}


def _equals(column: str) -> sql.Composable:
    return sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder(column))


def _where(conditions: list[sql.Composable]) -> sql.Composable:
    if not conditions:
        return sql.SQL("")
    return sql.SQL(" where ") + sql.SQL(" and ").join(conditions)


def _page(
    select: sql.Composable,
    table: str,
    order: str,
    conditions: list[sql.Composable],
    filters: dict[str, Any],
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> tuple[sql.Composed, dict[str, Any]]:
    """A page by key: newest first by the column *order*, ties by command_id."""
    params: dict[str, Any] = {**filters, "limit": limit}
    column = sql.Identifier(order)
    if before is not None:
        params["key_at"], params["key_id"] = before
        conditions = [
            *conditions,
            sql.SQL("({}, command_id) < (%(key_at)s, %(key_id)s)").format(column),
        ]
    tail = sql.SQL(" order by {} desc, command_id desc limit %(limit)s {}").format(
        column, _none_hidden(table)
    )
    return sql.Composed([select, _where(conditions), tail]), params


async def get_audit_trail(
    conn: Connection, command_id: UUID, domain: str | None
) -> list[AuditEvent]:
    """The events of a command in the order in which they happened."""
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute(
            """
            select audit_id, domain, command_id, event_type, created_at,
                jsonb_strip_nulls(jsonb_build_object(
                    'attempt', attempt, 'msg_id', msg_id, 'worker_id', worker_id
                ))::text as columns, details::text as details
            from public.command_bus_audit
            where command_id = %(command_id)s and (%(domain)s::text is null or domain = %(domain)s)
            order by audit_id
            offset command_bus.none_hidden('public.command_bus_audit')
            """,
            {"command_id": command_id, "domain": domain},
        )
        return [_event(row) for row in await cur.fetchall()]


def _event(row: dict[str, Any]) -> AuditEvent:
    known, details = decode_json(row.pop("columns")), decode_or_note(row["details"]) or {}
    return AuditEvent(
        **{
            **row,
            "event_type": AuditEventType(row["event_type"]),
            "details": {**known, **details},
        }
    )


async def list_troubled(
    conn: Connection,
    filters: dict[str, Any],
    *,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[TroubledCommand]:
    """The troubleshooting queue, the latest arrivals first, after the key *before*."""
    query, params = _page(
        sql.SQL("select * from public.command_bus_tsq"),
        "public.command_bus_tsq",
        "entered_at",
        [_equals(name) for name in filters],
        filters,
        before,
        limit,
    )
    async with conn.cursor(row_factory=class_row(TroubledCommand)) as cur:
        await cur.execute(query, params)
        return await cur.fetchall()


async def count_troubled(conn: Connection, filters: dict[str, Any]) -> int:
    """How many commands in the troubleshooting queue match; exact."""
    query = sql.SQL("select count(*) from public.command_bus_tsq {} {}").format(
        _where([_equals(name) for name in filters]), _none_hidden("public.command_bus_tsq")
    )
    cur = await conn.execute(query, filters)
    row = await cur.fetchone()
    return int(row[0]) if row else 0


async def count_by_status(conn: Connection, domain: str | None) -> dict[CommandStatus, int]:
    """Exact counts by status, cheap at any table size."""
    [row] = await fetch(conn, "select * from command_bus.count_by_status(%s)", (domain,))
    return dict(zip(CommandStatus, row, strict=True))


async def get_batch(conn: Connection, batch_id: UUID) -> BatchProgress | None:
    """The counters of a batch, or None where no command was sent in it."""
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute("select * from command_bus.batch_progress(%s)", (batch_id,))
        row = await cur.fetchone()
    if row is None:
        return None
    return BatchProgress(
        batch_id=batch_id,
        counts={status: row[status.lower()] for status in CommandStatus},
        wait_ms=Percentiles(*row["wait_ms"]),
        run_ms=Percentiles(*row["run_ms"]),
        total_ms=Percentiles(*row["total_ms"]),
        **{
            name: row[name]
            for name in (
                "domain",
                "created_at",
                "first_processed_at",
                "last_processed_at",
                "sent",
                "processed",
                "retried",
            )
        },
    )


async def get_reply_queue(conn: Connection, domain: str) -> str:
    """The name of a domain's reply queue; raises UnknownDomainError."""
    query = (
        "select reply_queue from public.command_bus_domain where domain = %s"
        " offset command_bus.none_hidden('public.command_bus_domain')"
    )
    rows = await fetch(conn, query, (domain,))
    if not rows:
        raise UnknownDomainError(f'domain "{domain}" does not exist')
    return str(rows[0][0])


async def read_messages(
    conn: Connection, queue: str, visibility_timeout: int, limit: int
) -> list[tuple[int, str]]:
    """Read messages of a queue of replies: (msg_id, message as JSON)."""
    await _refuse_command_queue(conn, queue)
    with _queue_must_exist(queue):
        cur = await conn.execute(
            "select msg_id, message::text"  # nosec B608
            " from pgmq.read(%s, %s::integer, %s::integer) order by msg_id"
            f" offset {_NONE_OF_QUEUE_HIDDEN}",
            (queue, visibility_timeout, limit, queue),
        )
        return [(msg_id, message) for msg_id, message in await cur.fetchall()]


async def delete_messages(conn: Connection, queue: str, msg_ids: Sequence[int]) -> list[int]:
    """Delete messages of a queue of replies; returns the ids that were there."""
    await _refuse_command_queue(conn, queue)
    with _queue_must_exist(queue):
        cur = await conn.execute(
            f"select * from pgmq.delete(%s, %s::bigint[]) offset {_NONE_OF_QUEUE_HIDDEN}",  # nosec B608
            (queue, list(msg_ids), queue),
        )
        return [msg_id for (msg_id,) in await cur.fetchall()]


async def _refuse_command_queue(conn: Connection, queue: str) -> None:
    """Raise UnknownReplyQueueError where workers look for commands in *queue*.

    They would miss what is read there, and lose what is deleted. PGMQ folds case.
    """
    query = (
        "select domain from public.command_bus_domain where lower(command_queue) = lower(%s)"
        " offset command_bus.none_hidden('public.command_bus_domain')"
    )
    for (domain,) in await fetch(conn, query, (queue,)):
        raise UnknownReplyQueueError(
            f'queue "{queue}" takes the commands of domain "{domain}", not replies'
        )


@contextmanager
def _queue_must_exist(queue: str) -> Iterator[None]:
    """PGMQ knows a queue only by its table, and refuses names that no queue can have."""
    try:
        yield
    except (UndefinedTable, RaiseException) as exc:
        raise UnknownReplyQueueError(f'queue "{queue:.100}" does not exist') from exc


async def list_pauses(
    conn: Connection,
    *,
    domain: str | None = None,
    pause_id: int | None = None,
    ended: bool = False,
    limit: int = 1,
) -> list[Pause]:
    """The pauses in force, the latest first; with *ended* also others, with *pause_id* that one."""
    query = sql.SQL(
        """
        select pause_id, domain, command_type, reason, paused_by, paused_at, ends_at, ended_at,
            ended_by
        from public.command_bus_pause
        where (%(domain)s::text is null or domain = %(domain)s)
            and (%(pause_id)s::bigint is null or pause_id = %(pause_id)s)
            and (%(ended)s or ended_at is null
                and coalesce(ends_at, 'infinity') > clock_timestamp())
        order by pause_id desc
        limit %(limit)s
        """
    ) + _none_hidden("command_bus_pause")
    async with conn.cursor(row_factory=class_row(Pause)) as cur:
        values = {"domain": domain, "pause_id": pause_id, "ended": ended, "limit": limit}
        await cur.execute(query, values)
        return await cur.fetchall()
