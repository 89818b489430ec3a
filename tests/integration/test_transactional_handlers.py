"""Handlers whose writes count exactly when their success counts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.errors import DivisionByZero

from commandbus import (
    BusinessRuleError,
    CommandStatus,
    HandlerContext,
    PermanentCommandError,
    TransientCommandError,
)
from tests.facts import DOMAIN, Pool, assert_books_balance, events, register, rows, value
from tests.waiting import eventually, until

OPEN = (CommandStatus.PENDING, CommandStatus.IN_PROGRESS)


@pytest.fixture(autouse=True)
async def business(pool: Pool) -> None:
    await rows(
        pool,
        "create table business (command_id uuid, attempt int,"
        " unique (command_id) deferrable initially deferred)",
    )


async def insert(command: Any, context: HandlerContext) -> None:
    await context.conn.execute(
        "insert into business values (%s, %s)", (command.command_id, context.attempt)
    )


async def ended(bus, command_id: UUID) -> CommandStatus:
    async def look() -> CommandStatus:
        status: CommandStatus = (await bus.get_command(DOMAIN, command_id)).status
        return status

    return await eventually(look, lambda seen: seen not in OPEN)


async def written(pool: Pool) -> list[Any]:
    return await rows(pool, "select command_id, attempt from business order by 1")


async def test_what_it_writes_is_there_with_its_success(pool, bus, start_worker, registry):
    seen: list[Any] = []

    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        await insert(command, context)
        context.send(DOMAIN, "Next", data={})
        context.publish("Done", {}, "k")
        seen.append(await written(pool))
        return {"ok": True}

    @registry.handler(DOMAIN, "Next")
    async def after(command, context):
        seen.append(await written(pool))

    worker = await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})
    assert await ended(bus, command_id) is CommandStatus.COMPLETED

    await until(lambda: len(seen) == 2)
    assert seen == [[], [(command_id, 1)]]
    assert (await bus.get_command(DOMAIN, command_id)).result == {"ok": True}
    assert len(await bus.read_outbox()) == 1
    await until(lambda: worker.outcomes_recorded == 2)
    await assert_books_balance(pool)


@pytest.mark.parametrize(
    "error",
    [
        TransientCommandError("T", "again"),
        PermanentCommandError("P", "never"),
        BusinessRuleError("B", "no"),
        ValueError("unexpected"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failure_undoes_what_it_wrote(pool, bus, start_worker, registry, error):
    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        await insert(command, context)
        raise error

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, max_attempts=1)
    await ended(bus, command_id)

    assert await written(pool) == []
    failed = await bus.get_command(DOMAIN, command_id)
    assert failed.last_error_code == getattr(error, "code", "ValueError")


async def test_a_refused_follow_up_undoes_what_it_wrote(pool, bus, start_worker, registry):
    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        await insert(command, context)
        context.send("nowhere", "Next")

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})

    assert await ended(bus, command_id) is CommandStatus.IN_TSQ
    assert (await bus.get_command(DOMAIN, command_id)).last_error_code == "FOLLOW_UP_REFUSED"
    assert await written(pool) == []


async def test_a_late_result_undoes_what_it_wrote(pool, bus, start_worker, registry):
    """The command went to somebody else while the handler ran on."""
    go_on, runs = asyncio.Event(), []

    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        runs.append(context.attempt)
        await insert(command, context)
        if context.attempt == 1:
            await go_on.wait()

    await start_worker(concurrency=2)
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})
    await until(lambda: runs == [1])
    await rows(pool, "update command_bus_command set lease_until = now() - interval '1 s'")
    await rows(pool, "update pgmq.q_test__commands set vt = now()")
    await until(lambda: runs == [1, 2])
    go_on.set()

    assert await ended(bus, command_id) is CommandStatus.COMPLETED
    await eventually(lambda: events(pool, command_id), lambda seen: "LATE_RESULT" in seen)
    assert await written(pool) == [(command_id, 2)]
    await assert_books_balance(pool)


async def test_a_statement_that_failed_unseen_saves_nothing(pool, bus, start_worker, registry):
    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        await insert(command, context)
        with suppress(DivisionByZero):
            await context.conn.execute("select 1 / 0")

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, max_attempts=1)

    assert await ended(bus, command_id) is CommandStatus.IN_TSQ
    assert (await bus.get_command(DOMAIN, command_id)).last_error_code == "TRANSACTION_UNDONE"
    assert await written(pool) == []


async def test_what_the_commit_refuses_is_a_failure(pool, bus, start_worker, registry):
    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        await insert(command, context)
        await insert(command, context)

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, max_attempts=1)

    assert await ended(bus, command_id) is CommandStatus.IN_TSQ
    assert (await bus.get_command(DOMAIN, command_id)).last_error_code == "UniqueViolation"
    assert await written(pool) == []
    await assert_books_balance(pool)


@pytest.mark.parametrize("when", ["in the handler", "after it"])
async def test_a_lost_connection_spends_no_attempt(pool, bus, start_worker, registry, when):
    runs: list[int] = []

    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        runs.append(context.attempt)
        await insert(command, context)
        if len(runs) == 1:
            [(pid,)] = await rows_of(context, "select pg_backend_pid()")
            await value(pool, "select pg_terminate_backend(%s)", pid)
            if when == "in the handler":
                await context.conn.execute("select 1")

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, max_attempts=1)

    assert await ended(bus, command_id) is CommandStatus.COMPLETED
    assert runs == [1, 1]
    assert await written(pool) == [(command_id, 1)]
    await assert_books_balance(pool)


@pytest.mark.parametrize("how", ["closes it", "makes it read-only", "ends its session"])
async def test_a_handler_that_spoils_its_connection_each_time_spends_attempts_in_the_end(
    pool, bus, start_worker, registry, monkeypatch, how
):
    monkeypatch.setattr("commandbus.transactions.LONGEST_SECONDS", 0.05)
    runs: list[int] = []

    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        runs.append(context.attempt)
        await insert(command, context)
        if how == "closes it":
            await context.conn.close()
        elif how == "makes it read-only":
            await context.conn.execute("set transaction read only")
        else:
            await context.conn.execute("select pg_terminate_backend(pg_backend_pid())")

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, max_attempts=2)

    assert await ended(bus, command_id) is CommandStatus.IN_TSQ
    assert (await bus.get_command(DOMAIN, command_id)).last_error_code == "TRANSACTION_FAULT"
    assert runs == [1] * 11 + [2] * 11
    assert await written(pool) == []
    await assert_books_balance(pool)


async def rows_of(context: HandlerContext, query: str) -> list[Any]:
    cur = await context.conn.execute(query.encode())
    return await cur.fetchall()


async def test_what_is_locked_is_waited_for(pool, bus, start_worker, registry):
    """The table of commands, while the handler is about to commit: it runs once."""
    started, go_on, runs = asyncio.Event(), asyncio.Event(), []

    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        runs.append(context.attempt)
        await insert(command, context)
        started.set()
        await go_on.wait()

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})
    await started.wait()
    async with pool.connection() as conn:
        await conn.execute("lock table command_bus_audit in access exclusive mode")
        go_on.set()
        await eventually(
            lambda: value(
                pool,
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                " and strpos(query, 'settle_and_hand_off') > 0",
            )
        )

    assert await ended(bus, command_id) is CommandStatus.COMPLETED
    assert runs == [1]
    assert await written(pool) == [(command_id, 1)]


async def test_what_a_handler_sets_is_gone_for_the_next_one(bus, start_worker, registry):
    seen: list[Any] = []

    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        seen.append(await rows_of(context, "select current_setting('app.tenant', true)"))
        seen.append(await rows_of(context, "select pg_try_advisory_lock(7)"))
        seen.append(await rows_of(context, "select to_regclass('pg_temp.kept') is null"))
        await context.conn.execute("create temp table kept (n integer)")
        await context.conn.execute("select set_config('app.tenant', 'a', false)")

    await start_worker(concurrency=1)
    for _ in range(2):
        command_id = uuid4()
        await bus.send(DOMAIN, "DoIt", command_id, {})
        await ended(bus, command_id)

    assert [row in ([(None,)], [("",)], [(True,)]) for row in seen] == [True] * 6


async def test_other_handlers_have_no_transaction(bus, start_worker, registry):
    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        with pytest.raises(RuntimeError, match="transactional"):
            _ = context.conn

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})
    assert await ended(bus, command_id) is CommandStatus.COMPLETED


async def test_as_many_run_as_the_worker_has_slots(pool, bus, start_worker, registry):
    running, most = 0, 0
    enough = asyncio.Event()

    @registry.handler(DOMAIN, "DoIt", transactional=True)
    async def do_it(command, context):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 12:
            enough.set()
        await enough.wait()
        await insert(command, context)
        running -= 1

    worker = await start_worker(concurrency=2, batch_size=20)
    worker.configure(concurrency=12)
    for _ in range(24):
        await bus.send(DOMAIN, "DoIt", uuid4(), {})
    await until(lambda: worker.outcomes_recorded == 24)

    assert most == 12
    assert len(await written(pool)) == 24
    await assert_books_balance(pool)
    assert await register(pool)
