"""The whole server stands still, or the network to it, under programs of the project."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from app.loadtest.generating import BulkOrder, generate
from app.testcommand.behaviors import Behavior, BehaviorType
from commandbus import CommandBus, CommandStatus
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import LONG, scaled
from tests.chaos.faults import Fleet, running
from tests.chaos.freezing import (
    BACK_SECONDS,
    PATIENCE_SECONDS,
    Fault,
    forgotten,
    frozen,
    silent,
    timed,
)
from tests.chaos.history import Recorded
from tests.chaos.scenes import all_ended, command, send_on_record
from tests.chaos.worker_program import RENEWED_TYPE
from tests.e2e.served import served
from tests.facts import Pool, send
from tests.programs import program
from tests.waiting import eventually

LEASE_SECONDS = 2
SILENT_SECONDS = 30.0 if LONG else 2.5
DRAIN_SECONDS = 0.5
COMMANDS = scaled(300, 3000)
ALL_FAULTS = [silent, forgotten, frozen]


@pytest.mark.parametrize("fault", ALL_FAULTS if LONG else [frozen])
async def test_workers_outlive_it_and_start_nothing_on_a_lease_that_is_over(
    fault: Fault, server, proxy, url, own_pool, history, log
):
    commands = [
        command("success", ms=40, max_attempts=1 if n % 2 else None) for n in range(COMMANDS)
    ]
    commands += [replace(command("success", ms=400), command_type=RENEWED_TYPE) for _ in range(20)]
    await send_on_record(own_pool, history, commands)
    fleet = Fleet(
        proxy.url, history, log,
        size=2, concurrency=4, batch_size=20, visibility_timeout=LEASE_SECONDS, answer_timeout=1,
    )  # fmt: skip
    with running(fleet):
        await eventually(lambda: number_of(own_pool, CommandStatus.COMPLETED), lambda n: n >= 50)
        with fault(proxy, server):
            await asyncio.sleep(SILENT_SECONDS)
        left = await number_of(own_pool, CommandStatus.PENDING)
        await all_ended(url, seconds=BACK_SECONDS)
    assert left > 0, "UNKNOWN: the work was over before the database froze"
    assert fleet.deaths == [], log.read_text()[-4000:]
    recorded = history.read()
    with psycopg.connect(url, autocommit=True) as conn:
        assert_clean(recorded, conn)
        assert late_starts(recorded, conn) == []
        # A budget of one may be spent by a start that nobody heard of, and by nothing else.
        given_up = conn.execute("select command_id::text from command_bus_tsq").fetchall()
        assert [each for (each,) in given_up if not recorded.starts_of(each)] == []


async def number_of(pool: Pool, wanted: CommandStatus) -> int:
    return (await CommandBus(pool).count_by_status())[wanted]


def late_starts(recorded: Recorded, conn: psycopg.Connection[TupleRow]) -> list[Any]:
    """The attempts that were started after their first lease was over, and by how many seconds."""
    claimed = conn.execute(
        "select command_id::text, attempt, array_agg(extract(epoch from created_at)::float8)"
        " from command_bus_audit where event_type = 'RECEIVED' group by 1, 2"
    ).fetchall()
    late = []
    for command_id, attempt, moments in claimed:
        for at in recorded.started_at[command_id, attempt]:
            # A released attempt is given out again with the same number.
            claimed_at = max((moment for moment in moments if moment <= at), default=0.0)
            if at > claimed_at + LEASE_SECONDS:
                late.append((command_id, attempt, round(at - claimed_at - LEASE_SECONDS, 3)))
    return late


@pytest.mark.parametrize("fault", ALL_FAULTS if LONG else [silent])
async def test_a_worker_process_stops_in_time(fault: Fault, server, proxy, own_pool):
    await generate(
        own_pool,
        BulkOrder(count=4, behavior=Behavior(type=BehaviorType.SUCCESS, execution_time_ms=60_000)),
    )
    # It would wait for a minute for each answer, if it were not to stop.
    async with program(
        *("-m", "app.worker", "--drain-timeout", str(DRAIN_SECONDS)),
        DATABASE_URL=proxy.url,
        ANSWER_TIMEOUT="60",
    ) as worker:
        await eventually(lambda: number_of(own_pool, CommandStatus.IN_PROGRESS), lambda n: n == 4)
        with fault(proxy, server):
            # Its heartbeat and its claim, once a second each, are under way; nobody answers.
            await asyncio.sleep(1.2)
            worker.process.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            code = await worker.ends()
            took = time.monotonic() - asked
    assert code == 0, worker.output
    assert took < DRAIN_SECONDS + PATIENCE_SECONDS, worker.output


@pytest.mark.parametrize("fault", ALL_FAULTS if LONG else [forgotten])
async def test_the_web_answers_in_time_and_works_again(fault: Fault, server, proxy, own_pool):
    [command_id] = await send(own_pool)
    pages = [
        "/",
        "/commands",
        f"/commands/{command_id}",
        "/troubleshooting",
        "/workers",
        "/settings",
    ]
    api = ["/api/v1/commands", "/api/v1/config", "/api/v1/stats", "/api/v1/tsq", "/health/ready"]
    async with served(proxy.url, "--workers", "0", ANSWER_TIMEOUT="1") as web:
        for path in (*pages, *api):
            status_code, text = await web.request("GET", path)
            assert status_code == 200, (path, status_code, text)
        with fault(proxy, server):
            async with asyncio.TaskGroup() as asking:
                asked = {
                    path: asking.create_task(timed(web.raw("GET", path))) for path in (*pages, *api)
                }
                asked["POST"] = asking.create_task(
                    timed(web.raw("POST", "/api/v1/commands/quick", {}))
                )
            answers = {path: task.result() for path, task in asked.items()}
            # Many more than there are threads: they are not made to wait one after the other.
            async with asyncio.TaskGroup() as asking:
                crowd = [asking.create_task(timed(web.raw("GET", "/"))) for _ in range(40)]
            alive, took = await timed(web.raw("GET", "/health/live"))
            assert (alive[0], took < PATIENCE_SECONDS) == (200, True)
        answers |= {f"{n} of a crowd": task.result() for n, task in enumerate(crowd)}
        for path, ((code, headers), took) in answers.items():
            assert code in (503, 504), (path, code)
            assert int(headers["Retry-After"]) > 0, path
            assert took < PATIENCE_SECONDS + 10, (path, took)
        for path in (*pages, *api):
            await eventually(partial(web.raw, "GET", path), lambda seen: seen[0] == 200)
