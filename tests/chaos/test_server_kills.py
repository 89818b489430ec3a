"""PostgreSQL is killed with all its processes, again and again, and workers beside it.

Every command that was acknowledged is there afterwards, and ended once; and work goes on as soon as
the server is back.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from datetime import datetime

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from tests.chaos.checker import assert_clean
from tests.chaos.conftest import LONG, scaled
from tests.chaos.faults import Faults, Fleet, running
from tests.chaos.scenes import all_ended, mixture, send_on_record
from tests.facts import value
from tests.waiting import eventually

KILLS = scaled(2, 30)
PAUSE_SECONDS = (1.0, 2.0) if not LONG else (5.0, 15.0)
# Commands go on being sent until the last kill.
COMMANDS = scaled(400, 20_000)
LEASE_SECONDS = 2
# A worker tries again after half a second at most; the short form runs beside many other tests.
RESUMED_SECONDS = scaled(20, 1)
RESUMED_AT_LAST_SECONDS = scaled(20, 2)


async def test_a_server_that_is_killed_loses_nothing_and_work_goes_on(
    server, own_url, own_pool, history, log, seed
):
    chance = random.Random(seed)
    faults = Faults(2 * KILLS)
    resumed: list[float] = []
    commands = mixture(COMMANDS, chance, lease_seconds=LEASE_SECONDS)
    fleet = Fleet(own_url, history, log, size=3, concurrency=4, visibility_timeout=LEASE_SECONDS)

    async def kill_now_and_then() -> None:
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))
            fleet.kill_one(chance, faults)
            await asyncio.to_thread(server.kill)
            faults.happened()
            await asyncio.to_thread(server.start)
            resumed.append(await seconds_until_work_goes_on(own_url))

    duration = KILLS * (sum(PAUSE_SECONDS) / 2 + 1)
    with running(fleet):
        registered = "select count(*) >= 3 from command_bus_worker"
        await eventually(lambda: value(own_pool, registered), seconds=60)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_now_and_then())
            tasks.create_task(
                send_on_record(
                    own_pool, history, commands, chunk=20, pause=duration / (COMMANDS / 20)
                )
            )
        await all_ended(own_url, seconds=scaled(60, 300))

    faults.require()
    with psycopg.connect(own_url, autocommit=True) as conn:
        assert_clean(history.read(), conn)
    assert statistics.median(resumed) < RESUMED_SECONDS, resumed
    assert max(resumed) < RESUMED_AT_LAST_SECONDS, resumed


async def seconds_until_work_goes_on(url: str) -> float:
    """From the server's return to the first command that a worker claimed then, by its clock."""
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        returned = await _moment(conn, "select clock_timestamp()")
        assert returned is not None
        while True:
            claimed = await _moment(
                conn,
                "select min(created_at) from command_bus_audit"
                " where event_type = 'RECEIVED' and created_at > pg_postmaster_start_time()",
            )
            if claimed is not None:
                return (claimed - returned).total_seconds()
            await asyncio.sleep(0.05)


async def _moment(conn: AsyncConnection[TupleRow], query: str) -> datetime | None:
    cur = await conn.execute(query.encode())
    row = await cur.fetchone()
    return None if row is None else row[0]
