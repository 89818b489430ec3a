"""The command bus as tests see it: acting as a worker by hand, moving time, looking at the rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID, uuid4

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import CommandStatus, NewCommand, SendResult, store
from commandbus.bus import CommandBus
from commandbus.models import ClaimedCommand, Settlement
from tests.waiting import eventually

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

DOMAIN = "test"
QUEUE = "test__commands"
REPLIES = "test__replies"


async def rows(pool: Pool, query: str, *params: Any) -> list[TupleRow]:
    """The rows of a query, in a transaction of its own."""
    async with pool.connection() as conn:
        cur = await conn.execute(query.encode(), params or None)
        return await cur.fetchall() if cur.description else []


async def value(pool: Pool, query: str, *params: Any) -> Any:
    """The only value of a query."""
    [[only]] = await rows(pool, query, *params)
    return only


async def send(pool: Pool, count: int = 1, **fields: Any) -> list[UUID]:
    """Send *count* commands of type DoIt; their ids."""
    commands = [
        NewCommand(**{"command_type": "DoIt", "command_id": uuid4(), **fields})
        for _ in range(count)
    ]
    sent: Sequence[SendResult] = await CommandBus(pool).send_many(DOMAIN, commands)
    return [result.command_id for result in sent]


# A worker, step by step


async def register(pool: Pool, domain: str = DOMAIN, *, heartbeat_seconds: float = 1.0) -> int:
    """The id of a worker that has just registered, and sends no heartbeat of its own."""
    description = {
        "domain": domain,
        "host": "test",
        "pid": 1,
        "version": "0",
        "concurrency": 1,
        "heartbeat_seconds": heartbeat_seconds,
    }
    async with store.autocommit(pool) as conn:
        return await store.register_worker(conn, description)


async def claim(
    pool: Pool,
    worker_id: int,
    *,
    domain: str = DOMAIN,
    limit: int = 100,
    seconds: int = 30,
    max_attempts: int = 3,
    leave: Sequence[str] | None = None,
) -> list[ClaimedCommand]:
    """What a claim gives by a worker that has no handler for the types *leave*."""
    async with store.autocommit(pool) as conn:
        claimed = await store.claim_or_reject(
            conn, domain, worker_id, limit, seconds, max_attempts, leave
        )
    return claimed.commands


async def claim_parked(pool: Pool, worker_id: int, *types: str, limit: int = 100) -> list[Any]:
    """What a claim of parked commands of *types* gives."""
    async with store.autocommit(pool) as conn:
        return await store.claim_parked(conn, DOMAIN, worker_id, limit, 30, 3, types)


async def park(pool: Pool, worker_id: int, claimed: Iterable[ClaimedCommand]) -> int:
    """How many were put aside by a worker that has no handler for them."""
    async with store.autocommit(pool) as conn:
        return await store.park_unhandled(conn, DOMAIN, worker_id, store.tokens_of(claimed))


async def claim_one(pool: Pool, worker_id: int, **options: Any) -> ClaimedCommand:
    """What a claim gives when exactly one command can be claimed."""
    [claimed] = await claim(pool, worker_id, **options)
    return claimed


async def claim_suspect(
    pool: Pool, worker_id: int, *, max_attempts: int = 3
) -> list[ClaimedCommand]:
    """What the claim of a suspect gives."""
    async with store.autocommit(pool) as conn:
        return await store.claim_suspect(conn, DOMAIN, worker_id, 30, max_attempts)


def completed(claimed: ClaimedCommand, result: Any = None, *, run_us: int = 1000) -> dict[str, Any]:
    """A success, as settle takes it."""
    return {**token(claimed), "run_us": run_us, "result": result}


def failed(
    claimed: ClaimedCommand, kind: str = "transient", *, run_us: int = 1000, **fields: Any
) -> dict[str, Any]:
    """A failure, as settle takes it; retried at once unless *retry_delay_ms* is given."""
    return {
        **token(claimed),
        "run_us": run_us,
        "kind": kind,
        "error_type": kind.upper(),
        "error_code": "E_CODE",
        "error_message": "It did not work",
        "error_details": None,
        "max_attempts": claimed.max_attempts,
        "retry_delay_ms": 0,
        **fields,
    }


def token(claimed: ClaimedCommand) -> dict[str, Any]:
    """What names an attempt."""
    return {
        "command_id": str(claimed.command.command_id),
        "msg_id": claimed.msg_id,
        "claim_no": claimed.claim_no,
    }


async def settle(
    pool: Pool, worker_id: int, *outcomes: dict[str, Any], domain: str = DOMAIN
) -> list[Settlement]:
    """The answers to outcomes made by ``completed`` and ``failed``."""
    async with store.autocommit(pool) as conn:
        return await store.settle_commands(
            conn,
            domain,
            worker_id,
            json.dumps([each for each in outcomes if "kind" not in each]),
            json.dumps([each for each in outcomes if "kind" in each]),
        )


async def release(pool: Pool, worker_id: int, claimed: Iterable[ClaimedCommand]) -> int:
    """How many were given back."""
    async with store.autocommit(pool) as conn:
        return await store.release_commands(conn, DOMAIN, worker_id, store.tokens_of(claimed))


async def renew(pool: Pool, worker_id: int, claimed: ClaimedCommand, seconds: int = 60) -> bool:
    """Whether the lease was made longer."""
    async with store.autocommit(pool) as conn:
        tokens = store.tokens_of([claimed])
        return bool(await store.renew_leases(conn, DOMAIN, worker_id, tokens, seconds))


# Moving time


async def expire_leases(pool: Pool, *command_ids: UUID, worker_lives: bool = True) -> None:
    """Let leases run out a minute ago; the worker sent heartbeats since, or none since before."""
    await rows(
        pool,
        """
        with late as (
            update command_bus_command
            set lease_until = clock_timestamp() - interval '1 minute'
            where command_id = any (%s) and status = 'IN_PROGRESS'
            returning msg_id, worker_id
        ),
        beaten as (
            update command_bus_worker
            set heartbeat_at = clock_timestamp() - %s * interval '1 minute'
            where worker_id in (select worker_id from late)
        )
        select pgmq.set_vt('test__commands', msg_id, 0) from late
        """,
        list(command_ids),
        0 if worker_lives else 2,
    )


async def make_due(pool: Pool, *command_ids: UUID) -> None:
    """Let the time of waiting commands have come."""
    await rows(
        pool,
        "update command_bus_waiting set due_at = clock_timestamp() - interval '1 second'"
        " where command_id = any (%s)",
        list(command_ids),
    )


# Looking


async def status(pool: Pool, command_id: UUID) -> CommandStatus:
    """Where the command is."""
    command = await CommandBus(pool).get_command(DOMAIN, command_id)
    assert command is not None
    return command.status


async def ended(
    pool: Pool, *command_ids: UUID, expected: str = "COMPLETED", seconds: float = 15
) -> None:
    """Every command has come to *expected*."""

    async def look() -> set[str]:
        return {(await status(pool, each)).value for each in command_ids}

    await eventually(look, lambda seen: seen == {expected}, seconds=seconds)


async def events(pool: Pool, command_id: UUID) -> list[str]:
    """What happened to the command, in order."""
    return [event.event_type.value for event in await CommandBus(pool).get_audit_trail(command_id)]


async def queued(pool: Pool, command_id: UUID | None = None, *, queue: str = QUEUE) -> int:
    """How many messages the queue holds (for one command), visible or not."""
    return int(
        await value(
            pool,
            f"select count(*) from pgmq.q_{queue}"
            " where %s::text is null or message ->> 'command_id' = %s",
            *(2 * [None if command_id is None else str(command_id)]),
        )
    )


async def count(pool: Pool, table: str, command_id: UUID) -> int:
    """How many rows a table has for a command."""
    return int(await value(pool, f"select count(*) from {table} where command_id = %s", command_id))


async def replies(pool: Pool, command_id: UUID | None = None, queue: str = REPLIES) -> list[Any]:
    """The replies in a queue (for one command), oldest first."""
    found = await rows(
        pool,
        f"select message from pgmq.q_{queue}"
        " where %s::text is null or message ->> 'command_id' = %s order by msg_id",
        *(2 * [None if command_id is None else str(command_id)]),
    )
    return [message for (message,) in found]


async def recount(pool: Pool) -> dict[CommandStatus, int]:
    """The counts by status as the rows give them."""
    query = "select status::text, count(*) from command_bus_command group by 1"
    found: dict[str, int] = dict(await rows(pool, query))
    return {each: found.get(each.value, 0) for each in CommandStatus}


async def assert_books_balance(pool: Pool) -> None:
    """Counters equal a recount, and the small tables hold what the command rows say."""
    assert await CommandBus(pool).count_by_status() == await recount(pool)
    assert await rows(pool, "select * from command_bus.find_violations()") == []
    strays = await rows(
        pool,
        """
        select 'tsq', c.command_id, c.status::text from command_bus_command as c
        full join command_bus_tsq as t using (command_id, domain)
        where (c.status = 'IN_TSQ') is distinct from (t.command_id is not null)
        union all
        select 'unsuccessful', c.command_id, c.status::text from command_bus_command as c
        full join command_bus_unsuccessful as u using (command_id, domain)
        where (c.status in ('FAILED', 'CANCELLED')) is distinct from (u.command_id is not null)
        union all
        select 'waiting', w.command_id, c.status::text from command_bus_waiting as w
        left join command_bus_command as c using (command_id, domain)
        where c.status is distinct from 'PENDING' or c.msg_id is not null
        union all
        select 'suspect', s.command_id, c.status::text from command_bus_suspect as s
        left join command_bus_command as c using (command_id, domain)
        where c.status is distinct from 'PENDING' or c.msg_id is not null
        union all
        select 'parked', p.command_id, c.status::text from command_bus_parked as p
        left join command_bus_command as c using (command_id, domain)
        where c.status is distinct from 'PENDING' or c.msg_id is not null
        union all
        select 'carried', c.command_id, c.status::text from command_bus_command as c
        left join command_bus_waiting as w using (command_id, domain)
        left join command_bus_suspect as s using (command_id, domain)
        left join command_bus_parked as p using (command_id, domain)
        left join command_bus_lane as l using (command_id, domain)
        where c.status = 'PENDING' and num_nonnulls(
            c.msg_id, w.command_id, s.command_id, p.command_id, l.command_id) <> 1
        """,
    )
    assert strays == []
