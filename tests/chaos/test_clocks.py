"""Hosts whose clocks are hours off, summer time that begins or ends: nothing is any different.

Only the database's clock counts, and its zone is a matter of display.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import sql

from commandbus import CommandBus, CommandStatus, Page
from commandbus.retention import RetentionRule
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import LONG, scaled
from tests.chaos.history import History
from tests.chaos.scenes import all_ended, command, content, mixture
from tests.chaos.worker_program import RENEWED_TYPE
from tests.e2e.served import served
from tests.facts import DOMAIN, Pool, register, rows, send, value
from tests.integration.pruning import left, make, prune
from tests.programs import Program, program
from tests.waiting import eventually

HOUR = 3600
NEW_YORK = "America/New_York"
LEASE_SECONDS = 2
# The database's zone changes so long after the start, while commands wait for their time.
CHANGE_SECONDS = 3
DELAY_SECONDS = 4
COMMANDS = scaled(60, 5_000)
# Nothing here takes long, so an hour too much or too little anywhere is beyond doubt.
SHORT_SECONDS = 600

# What the clocks show. The last two come to a change of New York's summer time in a moment.
CLOCKS = {
    "fast": lambda: time.time() + 2 * HOUR,
    "slow": lambda: time.time() - 2 * HOUR,
    "spring": lambda: datetime(2026, 3, 8, 6, 59, 57, tzinfo=UTC).timestamp(),
    "autumn": lambda: datetime(2026, 11, 1, 5, 59, 57, tzinfo=UTC).timestamp(),
}


def with_clock(name: str) -> tuple[str, ...]:
    """What makes Python run a module as on a host with this clock."""
    return ("-m", "tests.chaos.wrong_clock", str(CLOCKS[name]()))


def set_zone(database_url: str, zone: str) -> None:
    """Give the database a zone, for every session that begins after that."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        conn.execute(
            sql.SQL("alter database {} set timezone to {}").format(name, sql.Literal(zone))
        )


@pytest.fixture
def changing_zone(database_url: str) -> datetime:
    """The database's summer time begins in this moment."""
    change = datetime.now(UTC) + timedelta(seconds=CHANGE_SECONDS)
    day = change.timetuple().tm_yday - 1
    set_zone(database_url, f"WINTER0SUMMER-1,{day}/{change:%H:%M:%S},{(day + 180) % 365}")
    return change


@pytest.fixture
def new_york(database_url: str) -> None:
    """The database is in New York."""
    set_zone(database_url, NEW_YORK)


@pytest.fixture
async def wrong_workers(database_url: str, history: History) -> AsyncIterator[list[Program]]:
    """Workers on hosts in New York, each with another wrong clock."""
    options = json.dumps({"concurrency": 4, "visibility_timeout": LEASE_SECONDS})
    arguments = ("tests.chaos.worker_program", database_url, str(history.path), options)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(program(*with_clock(name), *arguments, TZ=NEW_YORK))
            for name in CLOCKS
        ]


# The zone of the database changes first: a session keeps the one that it began with.
async def test_workers_with_wrong_clocks_behave_as_with_right_ones(
    database_url, changing_zone, pool, conn, history, wrong_workers
):
    delayed = [
        dataclasses.replace(command("success"), delay=DELAY_SECONDS + number / 10)
        for number in range(5)
    ]
    renewed = dataclasses.replace(
        command("success", ms=2500 * LEASE_SECONDS), command_type=RENEWED_TYPE
    )
    mixed = mixture(COMMANDS, random.Random(7), lease_seconds=LEASE_SECONDS)
    harmless = [each for each in mixed if each.data["do"] not in ("exit", "kill", "segv")]
    commands = [*delayed, renewed, *harmless]
    batch_id = uuid4()

    for new in commands:
        history.attempted(str(new.command_id), content(new))
    await CommandBus(pool).send_many(DOMAIN, commands, batch_id=batch_id)
    for new in commands:
        history.acknowledged(str(new.command_id))
    await all_ended(database_url, seconds=scaled(60, 600))
    for worker in wrong_workers:
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ends() == 0, worker.output
    ended = await value(pool, "select clock_timestamp()")
    offset = "select extract(timezone from %s::timestamptz)"
    assert await value(pool, offset, changing_zone - timedelta(seconds=1)) == 0
    assert ended > changing_zone
    assert await value(pool, offset, ended) == HOUR

    assert_clean(history.read(), conn)
    assert history.read().starts_of(str(renewed.command_id)) == 1
    assert await retries_at_another_time(pool) == []
    for new in delayed:
        waited = await value(
            pool,
            "select extract(epoch from started_at - created_at)"
            " from command_bus_command where command_id = %s",
            new.command_id,
        )
        assert new.delay <= waited < SHORT_SECONDS
    # Every time is the database's, whoever wrote the row.
    for table, column in (
        ("command_bus_audit", "created_at"),
        ("command_bus_command", "updated_at"),
        ("command_bus_command", "finished_at"),
        ("command_bus_worker", "heartbeat_at"),
        ("command_bus_worker", "stopped_at"),
    ):
        [(first, last)] = await rows(pool, f"select min({column}), max({column}) from {table}")
        assert changing_zone - timedelta(seconds=60) < first <= last <= ended, (table, column)
    batch = await CommandBus(pool).get_batch(batch_id)
    assert batch is not None
    for percentiles in (batch.wait_ms, batch.run_ms, batch.total_ms):
        assert percentiles.p99 is not None
        assert 0 <= percentiles.p99 < SHORT_SECONDS * 1000


@pytest.mark.parametrize("clock", CLOCKS if LONG else ["fast"])
async def test_pages_of_a_host_with_a_wrong_clock_say_what_the_database_knows(
    clock, database_url, new_york, pool, wrong_workers
):
    [waiting] = await send(pool, delay=HOUR)
    due = await value(pool, "select due_at from command_bus_waiting")
    async with served(database_url, script=(*with_clock(clock), "run"), TZ=NEW_YORK) as web:

        async def workers() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await web.get("/api/v1/workers"))["workers"]
            return found

        all_alive = ["alive"] * len(wrong_workers)
        await eventually(workers, lambda found: [each["state"] for each in found] == all_alive)
        for path in ("/", "/commands", f"/commands/{waiting}", "/audit", "/workers"):
            page = await web.get(path)
            ages = re.findall(r'data-time="(?:relative|elapsed)">([^<]+)<', page)
            assert [age for age in ages if not is_recent(age)] == [], path
        assert ages, "the page Workers says how long each has been running"
        why = (await web.get(f"/api/v1/commands/{waiting}"))["explanation"]
        assert why == f"It is scheduled for {due.astimezone(UTC):%H:%M:%S} UTC."
        told = (await web.get("/api/v1/stats"))["last_updated"]
        now = await value(pool, "select clock_timestamp()")
        assert abs(datetime.fromisoformat(told) - now) < timedelta(seconds=SHORT_SECONDS)


def is_recent(age: str) -> bool:
    """Whether what a page says is less than an hour."""
    return re.fullmatch(r"now|(\d+ (ms|s|min)|\d+ min \d+ s)( ago)?", age) is not None


def last_change() -> datetime:
    """When New York's clocks were set last."""
    zone = ZoneInfo(NEW_YORK)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    while hour.astimezone(zone).utcoffset() == (
        (hour - timedelta(hours=1)).astimezone(zone).utcoffset()
    ):
        hour -= timedelta(hours=1)
    return hour


async def test_a_day_has_24_hours_when_pruning_looks_back_past_a_change(new_york, pool):
    age = datetime.now(UTC) - last_change() + timedelta(hours=12)
    older, younger = await make(pool, await register(pool), 2)
    for command_id, minutes in ((older, 30), (younger, -30)):
        ended = age + timedelta(minutes=minutes)
        await rows(
            pool,
            "update command_bus_command set (created_at, finished_at) = ("
            " clock_timestamp() - make_interval(secs => %s + 1),"
            " clock_timestamp() - make_interval(secs => %s)) where command_id = %s",
            ended.total_seconds(),
            ended.total_seconds(),
            command_id,
        )

    rule = RetentionRule(status=CommandStatus.COMPLETED, older_than=age)
    pruned = await prune(pool, [rule])

    assert pruned.commands.total() == 1
    assert await left(pool) == {younger}


async def test_filters_and_pages_tell_the_two_hours_apart_that_a_clock_shows_twice(new_york, pool):
    """At 01:30 and, an hour later, at 01:30 again."""
    first = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
    second = (first + timedelta(hours=1)).astimezone(ZoneInfo(NEW_YORK))
    earlier, later = await send(pool, 2)
    for command_id, moment in ((earlier, first), (later, second)):
        await rows(
            pool,
            "update command_bus_command set created_at = %s where command_id = %s",
            moment,
            command_id,
        )
    bus = CommandBus(pool)

    assert ids(await bus.query_commands(created_after=first)) == [later, earlier]
    assert ids(await bus.query_commands(created_after=second)) == [later]
    assert ids(await bus.query_commands(created_before=second)) == [earlier]
    page = await bus.query_commands(limit=1)
    assert ids(page) == [later]
    assert ids(await bus.query_commands(limit=1, cursor=page.next_cursor)) == [earlier]


def ids(page: Page) -> list[UUID]:
    """The commands of a page."""
    return [each.command_id for each in page.commands]


async def retries_at_another_time(pool: Pool) -> list[Any]:
    """Retries that began before their time, or much later."""
    return await rows(
        pool,
        """
        with step as (
            select command_id, event_type, created_at, details,
                lead(created_at) over trail as next_at, lead(event_type) over trail as next
            from command_bus_audit
            where event_type in ('RETRY_SCHEDULED', 'RECEIVED')
            window trail as (partition by command_id order by audit_id)
        )
        select command_id, details, created_at, next_at from step
        where event_type = 'RETRY_SCHEDULED' and next = 'RECEIVED'
            and next_at - (details ->> 'due_at')::timestamptz
                not between interval '0' and %s * interval '1 second'
        """,
        SHORT_SECONDS,
    )
