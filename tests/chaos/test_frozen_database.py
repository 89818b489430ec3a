"""The database freezes: a process of it is stopped, all of them are, or the network falls silent.

Nothing is refused and nothing is closed, so whoever waits for an answer waits until it gives up by
itself. Every call has to; no handler may start on a lease that is over by then; and once the
database is back, work goes on, nothing is lost, nothing is done twice, and no budget is spent.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.behaviors import Behavior, BehaviorType
from app.bulk import BulkOrder, generate
from app.database.opening import prepare
from commandbus import (
    CommandBus,
    CommandStatus,
    TroubleshootingQueue,
    uuid7,
)
from commandbus.errors import INFRASTRUCTURE_ERRORS
from commandbus.models import NewCommand
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import LONG, scaled
from tests.chaos.faults import Fleet, OwnServer, own_server, running, stopped
from tests.chaos.freezing import (
    Fault,
    GatedHandler,
    forgotten,
    frozen,
    moments_later,
    pool_of,
    silent,
    stopped_in,
    working,
    writes_wait,
)
from tests.chaos.history import History, Recorded
from tests.chaos.proxy import Proxy, proxied
from tests.chaos.scenes import Pool, all_ended, command, send_on_record, uuids
from tests.chaos.worker_program import RENEWED_TYPE
from tests.e2e.served import served
from tests.facts import DOMAIN, send, value
from tests.programs import program
from tests.waiting import eventually, until

LEASE_SECONDS = 2
SILENT_SECONDS = scaled(3, 30)
COMMANDS = scaled(300, 3000)
# Bounds of the tests, not of what they test: a busy machine takes its time for everything.
PATIENCE_SECONDS = 10.0
BACK_SECONDS = 40.0


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A server whose processes these tests may stop."""
    with own_server() as own:
        prepare(own.url("template_chaos"), on_step=lambda _: None)
        yield own


@pytest.fixture
def url(server: OwnServer) -> str:
    """A migrated database on it, of the test's own."""
    name = f"chaos_{uuid4().hex[:8]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute(
            sql.SQL("create database {} template template_chaos").format(sql.Identifier(name))
        )
    return server.url(name)


@pytest.fixture
async def own_pool(url: str) -> AsyncIterator[Pool]:
    """A pool of the test's, past everything that freezes."""
    async with pool_of(url) as opened:
        yield opened


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy to the test's database."""
    async with proxied(url) as opened:
        yield opened


# One process of the server


async def all_completed(pool: Pool, commands: Sequence[NewCommand]) -> None:
    """Wait until *commands* are."""
    ids = uuids(commands)
    await eventually(
        lambda: value(
            pool,
            "select count(*) from command_bus_command"
            " where command_id = any(%s) and status = 'COMPLETED'",
            ids,
        ),
        lambda number: number == len(ids),
        seconds=BACK_SECONDS,
    )


def assert_each_ran_once(url: str, history: History) -> None:
    """The history is clean, and each command was started once and completed at that."""
    recorded = history.read()
    with psycopg.connect(url, autocommit=True) as conn:
        assert_clean(recorded, conn)
        found = conn.execute(
            "select distinct status::text, attempts from command_bus_command"
        ).fetchall()
    assert found == [("COMPLETED", 1)]
    assert {recorded.starts_of(each) for each in recorded.attempted} == {1}


async def test_a_claim_that_stands_still_loses_nothing_and_spends_nothing(url, own_pool, history):
    handler = GatedHandler(history)
    handler.gate.set()
    # With a budget of one, an attempt that was spent without a start would end in the TSQ.
    caught = [command("success", max_attempts=1) for _ in range(4)]
    beside = [command("success", max_attempts=1) for _ in range(10)]
    await send_on_record(own_pool, history, caught)
    async with (
        pool_of(url) as pool,
        writes_wait(own_pool) as lock,
        working(pool, handler, visibility_timeout=LEASE_SECONDS),
    ):
        async with stopped_in("claim_commands", own_pool, lock):
            await send_on_record(own_pool, history, beside)
            await all_completed(own_pool, beside)
            await moments_later(own_pool, LEASE_SECONDS + 0.5)
        await all_completed(own_pool, caught)
    assert_each_ran_once(url, history)


async def test_a_claim_that_is_made_long_after_it_was_given_up_takes_nothing(
    url, own_pool, history
):
    handler = GatedHandler(history)
    handler.gate.set()
    sessions = (
        "select coalesce(array_agg(pid), '{}') from pg_stat_activity"
        " where datname = current_database() and application_name = 'to be stopped'"
        " and not starts_with(lower(query), 'listen')"
    )
    # It holds little in advance, so that something is left for others to take.
    options = {"visibility_timeout": LEASE_SECONDS, "poll_interval": 0.05, "batch_size": 1}
    async with (
        pool_of(f"{url}&application_name=to%20be%20stopped") as pool,
        working(pool, handler, **options) as worker,
    ):
        await until(lambda: worker.worker_id is not None)
        pids = await value(own_pool, sessions)
        with stopped(*pids):
            # Whatever the worker asks next is read when they go on.
            await eventually(
                lambda: value(own_pool, sessions), lambda found: set(found) - set(pids)
            )
            for _ in range(8):
                passing = [command("success", max_attempts=1)]
                await send_on_record(own_pool, history, passing)
                await all_completed(own_pool, passing)
                await moments_later(own_pool, 0.5)
            handler.gate.clear()
            filling = [replace(command("success"), command_type=RENEWED_TYPE) for _ in range(4)]
            await send_on_record(own_pool, history, filling)
            await until(lambda: handler.running == len(filling))
            behind = [command("success", max_attempts=1) for _ in range(8)]
            await send_on_record(own_pool, history, behind)
        await eventually(
            lambda: value(own_pool, sessions), lambda found: not set(found) & set(pids)
        )
        await moments_later(own_pool, LEASE_SECONDS + 0.5)
        handler.gate.set()
        await all_completed(own_pool, behind)
    assert_each_ran_once(url, history)


async def test_a_renewal_that_stands_still_is_made_on_another_connection(url, own_pool, history):
    handler = GatedHandler(history)
    held = [replace(command("success"), command_type=RENEWED_TYPE) for _ in range(4)]
    await send_on_record(own_pool, history, held)
    async with pool_of(url) as pool, working(pool, handler, visibility_timeout=6):
        await until(lambda: handler.running == len(held))
        async with writes_wait(own_pool) as lock, stopped_in("renew_leases", own_pool, lock):
            await moments_later(own_pool, 6.5)
            handler.gate.set()
            await all_completed(own_pool, held)
    assert_each_ran_once(url, history)


async def test_an_outcome_whose_recording_stands_still_is_recorded_once(
    url, own_pool, history, caplog
):
    handler = GatedHandler(history)
    held = [command("success") for _ in range(4)]
    await send_on_record(own_pool, history, held)
    async with pool_of(url) as pool, working(pool, handler, visibility_timeout=300):
        await until(lambda: handler.running == len(held))
        async with writes_wait(own_pool) as lock:
            handler.gate.set()
            async with stopped_in("settle_commands", own_pool, lock):
                await until(lambda: "settle_retried" in caplog.messages)
            await all_completed(own_pool, held)
    assert_each_ran_once(url, history)


# The network, and the whole server


ALL_FAULTS = [silent, forgotten, frozen]


@pytest.mark.parametrize("fault", ALL_FAULTS if LONG else [forgotten, frozen])
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
        "-m", "app.worker", "--drain-timeout", "1", DATABASE_URL=proxy.url, ANSWER_TIMEOUT="60"
    ) as worker:
        await eventually(lambda: number_of(own_pool, CommandStatus.IN_PROGRESS), lambda n: n == 4)
        with fault(proxy, server):
            # Its heartbeat and its claim are under way, and nobody answers them.
            await asyncio.sleep(2.5)
            worker.process.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            code = await worker.ends()
            took = time.monotonic() - asked
    assert code == 0, worker.output
    assert took < 1 + PATIENCE_SECONDS, worker.output


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


async def timed(call: Awaitable[Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return await call, time.monotonic() - began


async def refused(call: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises(INFRASTRUCTURE_ERRORS):
        await call()


# The library in somebody else's program


@pytest.mark.parametrize(
    ("fault", "checked"), [(silent, False), (forgotten, True), (frozen, False)]
)
async def test_each_call_of_the_library_ends_in_time(
    fault: Fault, checked: bool, server, proxy, own_pool
):
    check = AsyncConnectionPool.check_connection if checked else None
    new = [NewCommand(command_type="DoIt", command_id=uuid7(), data=n) for n in range(2500)]
    async with pool_of(proxy.url, check=check) as pool:
        bus = CommandBus(pool, answer_timeout=0.5)
        tsq = TroubleshootingQueue(pool, answer_timeout=0.5)

        async def transaction() -> None:
            async with bus.transaction() as conn:
                await bus.send(DOMAIN, "DoIt", uuid7(), {}, conn=conn)

        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: bus.send(DOMAIN, "DoIt", new[0].command_id, 0),
            lambda: bus.send_many(DOMAIN, new),
            lambda: bus.get_command(DOMAIN, new[0].command_id),
            lambda: tsq.operator_retry(DOMAIN, new[0].command_id),
            tsq.count,
            transaction,
        ]
        await bus.count_by_status()  # there is a connection that will fall silent
        with fault(proxy, server):
            ended = await asyncio.gather(
                *(timed(refused(call)) for call in calls), return_exceptions=True
            )
        for call, answer in zip(calls, ended, strict=True):
            assert not isinstance(answer, BaseException), call
            assert answer[1] < PATIENCE_SECONDS, call

        async def sent() -> int:
            try:
                return len(await bus.send_many(DOMAIN, new))
            except INFRASTRUCTURE_ERRORS:
                return 0

        await eventually(sent, lambda number: number == len(new))
    assert await value(own_pool, "select count(*) from command_bus_command where data <> '{}'") == (
        len(new)
    )


async def test_a_worker_hears_of_work_again_after_its_listener_was_forgotten(
    proxy, own_pool, history, monkeypatch
):
    monkeypatch.setattr("commandbus.listener.CHECK_SECONDS", 0.2)
    handler = GatedHandler(history)
    handler.gate.set()
    async with pool_of(proxy.url) as pool, working(pool, handler, poll_interval=3600.0):
        first, second = command("success"), command("success")
        await send_on_record(own_pool, history, [first])
        await all_completed(own_pool, [first])
        proxy.forget()
        await send_on_record(own_pool, history, [second])
        await all_completed(own_pool, [second])
