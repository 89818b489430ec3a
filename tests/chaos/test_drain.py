"""A worker that is told to stop, with handlers around its drain time: in time, and nothing lost.

Sixteen handlers run when SIGTERM comes; some end within the drain time, some do not, and commands
that were claimed ahead have not begun. The first ones complete, the second ones are left to their
leases and run again, and the last ones go back without having spent an attempt.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time

from app.loadtest.generating import BulkOrder, generate
from app.testcommand.behaviors import Behavior, BehaviorType
from commandbus import CommandBus, CommandStatus
from tests.chaos.conftest import scaled
from tests.facts import Pool, rows, value
from tests.programs import program
from tests.waiting import eventually

CONCURRENCY = 16
COMMANDS = 48
DRAIN_SECONDS = 0.6
LEASE_SECONDS = 2
# Handlers that outlive the drain time are cancelled, and what is open is told to the database. A
# busy machine takes its time for that; one that waited for its handlers would take minutes.
END_SECONDS = 10.0
LONGEST_MS = 60_000


async def send(pool: Pool, dice: random.Random) -> None:
    """Commands that end long before the drain time, about then, and never in this test."""
    for _ in range(COMMANDS):
        milliseconds = dice.choice((50, 300, 500, 600, 700, LONGEST_MS))
        behavior = Behavior(type=BehaviorType.SUCCESS, execution_time_ms=milliseconds)
        await generate(pool, BulkOrder(count=1, behavior=behavior, max_attempts=2))


def worker(database_url: str, *options: str, lease_seconds: int = LEASE_SECONDS):
    """A real worker process."""
    arguments = ("--concurrency", str(CONCURRENCY), "--batch-size", str(COMMANDS))
    lease = ("--visibility-timeout", str(lease_seconds), "--poll-interval", "0.2")
    return program(
        "-m", "app.worker", *arguments, *lease, *options, DATABASE_URL=database_url
    )  # fmt: skip


async def running(pool: Pool) -> int:
    """How many commands have begun and not ended."""
    return int(
        await value(pool, "select count(*) from test_command where attempts > 0 and result is null")
    )


async def test_a_worker_drains_in_time_and_loses_nothing(database_url, pool):
    dice = random.Random(8)
    released = 0
    for _ in range(scaled(2, 100)):
        await rows(pool, "delete from test_command")
        await send(pool, dice)
        before = await value(pool, "select coalesce(max(audit_id), 0) from command_bus_audit")
        async with worker(database_url, "--drain-timeout", str(DRAIN_SECONDS)) as stopped:
            await eventually(lambda: running(pool), lambda count: count >= CONCURRENCY // 2)
            await asyncio.sleep(dice.uniform(0, DRAIN_SECONDS))
            stopped.process.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            code = await stopped.ends()
            took = time.monotonic() - asked
        assert code == 0, stopped.output
        assert took < DRAIN_SECONDS + END_SECONDS, stopped.output

        # What never began has spent nothing: its row says so, and its test command was not touched.
        spent = await rows(
            pool,
            """
            select c.command_id, c.status, c.attempts, t.attempts
            from command_bus_command as c
            join test_command as t using (command_id)
            where c.status = 'PENDING' and (c.attempts > 0 or t.attempts > 0)
            """,
        )
        assert spent == []
        released += await value(
            pool,
            "select count(*) from command_bus_audit"
            " where audit_id > %s and event_type = 'RELEASED'",
            before,
        )

        # The rest is still there for another worker, which finds short commands only.
        await rows(
            pool,
            "update test_command set behavior = behavior || '{\"execution_time_ms\": 0}'"
            " where result is null",
        )
        async with worker(database_url) as second:
            bus = CommandBus(pool)
            await eventually(
                bus.count_by_status,
                lambda counts: (
                    not (counts[CommandStatus.PENDING] + counts[CommandStatus.IN_PROGRESS])
                ),
                seconds=60,
            )
            second.process.send_signal(signal.SIGTERM)
            assert await second.ends() == 0
        counts = await bus.count_by_status()
        assert counts[CommandStatus.IN_TSQ] == 0
        assert await rows(pool, "select * from command_bus.find_violations()") == []
    assert released > 0, "UNKNOWN: in every round each command had begun"


async def test_a_second_signal_ends_a_worker_at_once(database_url, pool):
    behavior = Behavior(type=BehaviorType.SUCCESS, execution_time_ms=LONGEST_MS)
    await generate(pool, BulkOrder(count=CONCURRENCY, behavior=behavior))
    async with worker(database_url, "--drain-timeout", "300", lease_seconds=300) as stopped:
        await eventually(lambda: running(pool), lambda count: count == CONCURRENCY)
        stopped.process.send_signal(signal.SIGTERM)
        await stopped.says("stop_signal")
        asked = time.monotonic()
        stopped.process.send_signal(signal.SIGTERM)
        await stopped.ends()
        assert time.monotonic() - asked < END_SECONDS
    left = await rows(pool, "select status, count(*) from command_bus_command group by 1")
    assert left == [("IN_PROGRESS", CONCURRENCY)]
    assert await rows(pool, "select * from command_bus.find_violations()") == []
