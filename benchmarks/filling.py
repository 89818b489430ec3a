"""Filling a database with commands that have a past, by the bus's own functions."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from app.loadtest.generating import BulkOrder
from app.loadtest.runs import Origin, create_run, generate_run
from commandbus import CommandBus, NewCommand, uuid7

CHUNK = 1_000
THREADS = 4

_WORK_OFF = """
with claimed as materialized (
    select * from command_bus.claim_commands('test', %(worker)s, %(limit)s, 60, 3)
),
outcome as (
    select coalesce(jsonb_agg(jsonb_build_object(
        'command_id', command_id, 'msg_id', msg_id, 'claim_no', claim_no,
        'run_us', 1500 + (msg_id * 7919) %% 4000, 'result', '{"status": "success"}'::jsonb,
        'kind', %(kind)s::text, 'error_type', 'PermanentCommandError',
        'error_code', 'CODE_' || msg_id %% 7,
        'error_message', 'Order ' || msg_id || ' was refused by system ' || msg_id %% 5,
        'max_attempts', max_attempts, 'retry_delay_ms', %(delay_ms)s)), '[]') as ends,
        count(*) as n
    from claimed
),
settled as (
    select count(*) as n from outcome, lateral command_bus.settle_commands(
        'test', %(worker)s,
        case when %(kind)s::text = 'success' then ends else '[]' end,
        case when %(kind)s::text = 'success' then '[]' else ends end)
)
select outcome.n from outcome, settled
"""


def register_worker(conn: psycopg.Connection) -> int:
    """The id of a worker that does nothing by itself."""
    worker = {
        "domain": "test",
        "host": "bench",
        "pid": 1,
        "version": "1",
        "concurrency": 1,
        "heartbeat_seconds": 5,
    }
    return conn.execute("select command_bus.register_worker(%s)", (json.dumps(worker),)).fetchone()[
        0
    ]


def work_off(url: str, kind: str = "success", *, delay_ms: int = 0) -> int:
    """End all commands that are due in one way, as handlers that take no time would."""

    def work(_: int) -> int:
        done = 0
        with psycopg.connect(url, autocommit=True) as conn:
            values = {
                "worker": register_worker(conn),
                "limit": CHUNK,
                "kind": kind,
                "delay_ms": delay_ms,
            }
            while n := conn.execute(_WORK_OFF, values).fetchone()[0]:
                done += n
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def fold(url: str) -> None:
    """Fold the counters and let the planner know the tables, as a live system has done long ago."""
    with psycopg.connect(url, autocommit=True) as conn:
        while conn.execute("select command_bus.fold_deltas()").fetchone()[0]:
            pass
        conn.execute("vacuum (analyze)")


def settle(conn: psycopg.Connection, worker_id: int, claimed: list[tuple[UUID, int, int]]) -> None:
    """Complete what was claimed."""
    outcomes = [
        {"command_id": str(each), "msg_id": msg_id, "claim_no": claim_no, "run_us": 1}
        for each, msg_id, claim_no in claimed
    ]
    conn.execute(
        "select command_bus.settle_commands_v2('test', %s, %s::jsonb, '[]')",
        (worker_id, json.dumps(outcomes)),
    )


def send(
    url: str, count: int, *, batch_id: UUID | None = None, lanes: int = 0, groups: int = 1
) -> None:
    """Send no-op commands on one connection; with *lanes* in turns into so many of them."""

    def lane(n: int) -> str | None:
        return f"group-{n % lanes % groups}/{n % lanes}" if lanes else None

    async def send_all() -> None:
        async with AsyncConnectionPool(
            url, connection_class=AsyncConnection, min_size=1, max_size=1, open=False
        ) as pool:
            bus = CommandBus(pool)
            for start in range(0, count, CHUNK):
                size = min(CHUNK, count - start)
                commands = [
                    NewCommand(
                        command_type="Noop",
                        command_id=uuid7(),
                        data={"n": start + n},
                        lane=lane(start + n),
                    )
                    for n in range(size)
                ]
                await bus.send_many("test", commands, batch_id=batch_id)

    asyncio.run(send_all())


def send_tests(url: str, count: int) -> None:
    """Generate test commands, as the pages and the load test do."""

    async def generate_all() -> None:
        async with AsyncConnectionPool(
            url, connection_class=AsyncConnection, min_size=1, max_size=3, open=False
        ) as pool:
            order = BulkOrder(count=count)
            await create_run(pool, order, origin=Origin.CLI)
            await generate_run(pool, order)

    asyncio.run(generate_all())


def finish(url: str, count: int, *, tests: bool = False) -> None:
    """Have *count* commands completed."""
    make = send_tests if tests else send
    for start in range(0, count, 250_000):
        make(url, min(250_000, count - start))
        work_off(url)
    fold(url)
