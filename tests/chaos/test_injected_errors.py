"""Errors of the infrastructure, answered to each statement that a worker makes.

The statement is tried again, its command spends no attempt on it, and a handler that has run does
not run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import CommandBus, CommandStatus, HandlerRegistry, RetryPolicy, Worker, uuid7
from commandbus.errors import INFRASTRUCTURE_ERRORS
from tests.chaos.conftest import LONG
from tests.chaos.proxy import Error, Proxy, proxied
from tests.facts import Pool, events, queued, replies, rows, send, status, value
from tests.waiting import eventually, until

SQLSTATES = ("40P01", "40001", "57014", "55P03", "25P03", "25P04", "53300", "57P01", "08006")
STATEMENTS = (
    "register_worker",
    "claim_commands",
    "look_ahead",
    "heartbeat",
    "fold_deltas",
    "renew_leases",
    "settle_commands",
    "worker_stopped",
    "listen",
)
MATTER_MOST = ("claim_commands", "settle_commands")


@asynccontextmanager
async def proxied_pool(database_url: str) -> AsyncIterator[tuple[Proxy, Pool]]:
    """A pool behind a proxy that can read its statements: none is prepared."""
    async with (
        proxied(database_url) as proxy,
        AsyncConnectionPool(
            proxy.url,
            connection_class=AsyncConnection[TupleRow],
            kwargs={"prepare_threshold": None},
            min_size=1,
            max_size=4,
            open=False,
        ) as near,
    ):
        await near.wait()
        yield proxy, near


async def drive(database_url, pool, error: Error, *, extends: bool = False) -> tuple[UUID, int]:
    """Run one command of a worker whose statements meet *error*; the command's id, and its runs.

    Its lease is renewed for its handler, unless that *extends* it by itself.
    """
    runs = 0
    # Where renewals meet it, the handler outlasts a lease that one of them may be late for.
    renewed = error.statement == b"renew_leases" and not extends
    lease_seconds, handler_seconds = (2, 2.6) if renewed else (30, 0.1)
    registry = HandlerRegistry()

    async def handle(command, context):
        nonlocal runs
        runs += 1
        if extends:
            await context.extend_visibility(60)
        await asyncio.sleep(handler_seconds)
        return {}

    registry.register("test", "DoIt", handle, auto_renew=not extends)
    async with proxied_pool(database_url) as (proxy, near):
        proxy.error = error
        worker = Worker(
            near,
            domain="test",
            handler_registry=registry,
            visibility_timeout=lease_seconds,
            poll_interval=0.05,
            drain_timeout=5,
            retry_policy=RetryPolicy(max_attempts=1),
        )
        task = asyncio.create_task(worker.run())
        try:
            await until(lambda: worker.worker_id is not None)
            [command_id] = await send(pool, reply_to="test__replies")
            await until(lambda: worker.outcomes_recorded == 1)
            if error.statement != b"worker_stopped":
                await until(lambda: error.happened == error.times)
        finally:
            worker.stop()
            await task
    if error.happened < error.times:
        pytest.fail(f"UNKNOWN: the error happened {error.happened} of {error.times} times")
    return command_id, runs


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_a_fault_in_any_statement_of_a_worker_is_waited_out(database_url, pool, statement):
    """Each kind of fault in a life of its own."""

    async def live(sqlstate: str) -> None:
        times = 2 if statement in MATTER_MOST else 1
        command_id, runs = await drive(
            database_url, pool, Error(statement.encode(), sqlstate, times=times)
        )
        seen.append((command_id, runs))

    seen: list[tuple[UUID, int]] = []
    for number, sqlstate in enumerate(SQLSTATES):
        # In the short form each statement meets some of them, and those that matter most all.
        turn = number % 4 == STATEMENTS.index(statement) % 4
        if LONG or turn or statement in MATTER_MOST:
            await live(sqlstate)

    for command_id, runs in seen:
        assert runs == 1
        assert await status(pool, command_id) is CommandStatus.COMPLETED
        trail = await events(pool, command_id)
        assert trail.count("RECEIVED") - trail.count("RELEASED") == 1
        assert len(await replies(pool, command_id)) == 1
        assert await queued(pool, command_id) == 0
    assert await rows(pool, "select * from command_bus.find_violations()") == []


@pytest.mark.parametrize("sqlstate", ["40001", "57P01"])
async def test_a_handler_that_makes_its_lease_longer_does_not_hear_of_a_fault(
    database_url, pool, sqlstate
):
    error = Error(b"renew_leases", sqlstate, times=2)

    command_id, runs = await drive(database_url, pool, error, extends=True)

    assert runs == 1
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]


async def test_the_log_names_the_commands_whose_outcomes_are_recorded_late(
    database_url, pool, caplog
):
    command_id, _ = await drive(database_url, pool, Error(b"settle_commands", "40001"))

    [line] = [vars(record) for record in caplog.records if record.msg == "settle_retried"]
    assert (line["domain"], line["command_ids"]) == ("test", [str(command_id)])
    worker_id = await value(pool, "select worker_id from command_bus_worker")
    assert line["worker_id"] == worker_id


@pytest.mark.parametrize("statement", ["register_worker", "claim_commands"])
async def test_work_that_arrives_does_not_shorten_the_pauses_after_faults(database_url, statement):
    async with proxied_pool(database_url) as (proxy, near):
        proxy.error = error = Error(statement.encode(), "53300", times=6)
        worker = Worker(near, domain="test", handler_registry=HandlerRegistry())
        started = time.monotonic()
        task = asyncio.create_task(worker.run())
        try:

            def over() -> bool:
                worker._state.wake()
                return error.happened == error.times

            await until(over)
            seconds = time.monotonic() - started
        finally:
            worker.stop()
            await task
    # Five pauses that double from 0.05 s, each shortened by a half at most.
    assert seconds > 0.7


@pytest.mark.parametrize("sqlstate", SQLSTATES)
async def test_a_sender_learns_of_a_fault_and_may_send_again(database_url, pool, sqlstate):
    command_id = uuid7()
    async with proxied_pool(database_url) as (proxy, near):
        # The bus itself tries again what the server refused, and once where a connection broke.
        proxy.error = Error(b"offer_command(", sqlstate, times=1_000)
        bus = CommandBus(near, answer_timeout=1)

        with pytest.raises(INFRASTRUCTURE_ERRORS):
            await bus.send("test", "DoIt", command_id, {})
        proxy.error = None
        assert await bus.get_command("test", command_id) is None
        assert (await bus.send("test", "DoIt", command_id, {})).created
    assert await eventually(lambda: queued(pool, command_id)) == 1
