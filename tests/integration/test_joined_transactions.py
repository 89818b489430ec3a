"""A send that joins the caller's transaction: what is refused leaves it as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncRawCursor
from psycopg.rows import dict_row, namedtuple_row

from commandbus import (
    CommandBus,
    CommandBusError,
    CommandNotFoundError,
    CommandStatus,
    DuplicateCommandError,
    InvalidCommandError,
    InvalidStateError,
    NewCommand,
    OperatorVerdict,
    Pruner,
    RetentionRule,
    TransactionRolledBackError,
    TroubleshootingQueue,
    UnknownDomainError,
    UnknownReplyQueueError,
)
from commandbus.bus import SEND_CHUNK
from tests.facts import (
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    failed,
    queued,
    register,
    rows,
    send,
    settle,
    value,
)

Send = Callable[[CommandBus, AsyncConnection[Any], UUID], Awaitable[Any]]


def new(command_id: UUID | None = None, **fields: Any) -> NewCommand:
    return NewCommand(command_type="DoIt", command_id=command_id or uuid4(), **fields)


REFUSED: list[tuple[type[CommandBusError], Send]] = [
    (
        DuplicateCommandError,
        lambda bus, conn, known: bus.send("test", "DoIt", known, {"v": 2}, conn=conn),
    ),
    (
        DuplicateCommandError,
        lambda bus, conn, known: bus.send("test", "DoIt", known, {"v": 2}, delay=60, conn=conn),
    ),
    (
        DuplicateCommandError,
        lambda bus, conn, known: bus.send_many(
            "test", [new(), new(known, data={"v": 2}), new(delay=60)], conn=conn
        ),
    ),
    (
        DuplicateCommandError,
        lambda bus, conn, known: bus.send_many(
            "test",
            [*(new(UUID(int=n)) for n in range(SEND_CHUNK)), new(known, data={"v": 2})],
            conn=conn,
        ),
    ),
    (
        UnknownDomainError,
        lambda bus, conn, _: bus.send("nowhere", "DoIt", uuid4(), {}, conn=conn),
    ),
    (UnknownDomainError, lambda bus, conn, _: bus.send_many("nowhere", [new()], conn=conn)),
    (
        UnknownReplyQueueError,
        lambda bus, conn, _: bus.send("test", "DoIt", uuid4(), {}, reply_to="no", conn=conn),
    ),
    (
        UnknownReplyQueueError,
        lambda bus, conn, _: bus.send_many("test", [new(), new(reply_to="no")], conn=conn),
    ),
    (
        InvalidCommandError,
        lambda bus, conn, _: bus.send("test", "DoIt", uuid4(), {"a": "\0"}, conn=conn),
    ),
    (
        InvalidCommandError,
        lambda bus, conn, _: bus.send_many("test", [new(), new(data="\ud800")], conn=conn),
    ),
]


async def make_orders(pool: Pool) -> UUID:
    """A table of the caller's, and a command that was sent before."""
    await rows(pool, "create table my_order (id int primary key)")
    known = UUID(int=2**128 - 1)
    await CommandBus(pool).send("test", "DoIt", known, {"v": 1})
    return known


def give_up() -> None:
    raise psycopg.Rollback


async def saved(pool: Pool) -> tuple[int, int, int]:
    """How many orders, commands and messages there are."""
    orders = await value(pool, "select count(*) from my_order")
    return orders, await value(pool, "select count(*) from command_bus_command"), await queued(pool)


@pytest.mark.parametrize(("error", "ask"), REFUSED)
async def test_a_refused_send_leaves_the_callers_transaction_usable(bus, pool, error, ask):
    known = await make_orders(pool)

    async with bus.transaction() as conn:
        await conn.execute("insert into my_order values (1)")
        with pytest.raises(error):
            await ask(bus, conn, known)
        await conn.execute("insert into my_order values (2)")
        await bus.send("test", "DoIt", uuid4(), {}, conn=conn)

    assert await saved(pool) == (2, 2, 2)
    await assert_books_balance(pool)


@asynccontextmanager
async def plain(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(url) as conn:
        yield conn


@asynccontextmanager
async def in_dictionaries(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(url, row_factory=dict_row) as conn:
        yield conn


@asynccontextmanager
async def by_client_cursors(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    connecting = AsyncConnection.connect(
        url, row_factory=namedtuple_row, cursor_factory=AsyncClientCursor
    )
    async with await connecting as conn:
        yield conn


@asynccontextmanager
async def by_raw_cursors(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(url, cursor_factory=AsyncRawCursor) as conn:
        yield conn


@asynccontextmanager
async def in_a_pipeline(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(url) as conn, conn.pipeline():
        yield conn


@asynccontextmanager
async def in_a_savepoint(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(url) as conn, conn.transaction(), conn.transaction():
        yield conn


@asynccontextmanager
async def in_autocommit(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        yield conn


@pytest.mark.parametrize(
    "connected",
    [
        plain,
        in_dictionaries,
        by_client_cursors,
        by_raw_cursors,
        in_a_pipeline,
        in_a_savepoint,
        in_autocommit,
    ],
)
async def test_a_connection_of_any_kind_goes_on_after_a_refusal(bus, pool, database_url, connected):
    known = await make_orders(pool)

    async with connected(database_url) as conn:
        await conn.execute("insert into my_order values (1)")
        for ask in (ask for error, ask in REFUSED if error is DuplicateCommandError):
            with pytest.raises(DuplicateCommandError):
                await ask(bus, conn, known)
        assert (await bus.send("test", "DoIt", uuid4(), {}, conn=conn)).created
        [sent] = await bus.send_many("test", [new()], conn=conn)
        assert sent.created

    assert await saved(pool) == (1, 3, 3)


@pytest.mark.parametrize("connected", [in_dictionaries, by_client_cursors, by_raw_cursors])
async def test_an_operators_action_joins_the_callers_transaction(
    bus, pool, tsq, database_url, connected
):
    worker_id = await register(pool)
    await rows(pool, "create table my_order (id int primary key)")
    [retried, cancelled, done, kept] = await send(pool, 4)
    claimed = await claim(pool, worker_id, limit=4)
    await settle(pool, worker_id, *(failed(each, "permanent") for each in claimed))
    [pending] = await send(pool)

    async with connected(database_url) as conn:
        await conn.execute("insert into my_order values (1)")
        await tsq.operator_retry("test", retried, "olga", delay_seconds=60, conn=conn)
        await tsq.operator_cancel("test", cancelled, "olga", "why", conn=conn)
        await tsq.operator_complete("test", done, "olga", {"a": 1}, notes="n", conn=conn)
        await tsq.cancel_pending("test", pending, "olga", "why", conn=conn)
        # Nothing of it is seen before it is committed.
        assert await tsq.count() == 4
        with pytest.raises(InvalidStateError):
            await tsq.operator_retry("test", cancelled, "olga", conn=conn)
        with pytest.raises(CommandNotFoundError):
            await tsq.undo_retry("test", uuid4(), "olga", conn=conn)
        with pytest.raises(UnknownDomainError):
            await tsq.operator_retry_many("nowhere", [kept], "olga", conn=conn)
        [answer] = await tsq.undo_retry_many("test", [retried], "olga", conn=conn)
        assert answer.verdict is OperatorVerdict.DONE

    assert await value(pool, "select count(*) from my_order") == 1
    counts = await bus.count_by_status()
    assert counts[CommandStatus.IN_TSQ] == 2
    assert counts[CommandStatus.CANCELLED] == 2
    assert counts[CommandStatus.COMPLETED] == 1
    await assert_books_balance(pool)


async def test_an_operators_action_is_undone_with_the_callers_transaction(bus, pool):
    [pending] = await send(pool)

    async with bus.transaction() as conn, conn.transaction():
        await TroubleshootingQueue(pool).cancel_pending("test", pending, "olga", conn=conn)
        give_up()

    assert (await bus.get_command("test", pending)).status is CommandStatus.PENDING
    with pytest.raises(TypeError, match="AsyncConnection"):
        await TroubleshootingQueue(pool).cancel_pending("test", pending, "olga", conn=pool)
    await assert_books_balance(pool)


async def test_what_was_sent_in_several_sets_is_sent_with_the_callers_rows_or_not_at_all(bus, pool):
    await make_orders(pool)
    commands = [new() for _ in range(SEND_CHUNK + 1)]
    async with bus.transaction() as conn:
        await bus.send_many("test", commands, conn=conn)
        give_up()
    assert (await saved(pool))[1] == 1

    async with bus.transaction() as conn:
        sent = await bus.send_many("test", commands, conn=conn)

    assert [each.command_id for each in sent] == [each.command_id for each in commands]
    assert (await saved(pool))[1] == SEND_CHUNK + 2


async def test_a_transaction_that_cannot_be_committed_says_so(bus, pool):
    await make_orders(pool)

    async def swallow_an_error() -> None:
        async with bus.transaction() as conn:
            await bus.send("test", "DoIt", uuid4(), {}, conn=conn)
            with suppress(psycopg.errors.UndefinedTable):
                await conn.execute("insert into no_such_table values (1)")

    with pytest.raises(TransactionRolledBackError, match="nothing of it was saved"):
        await swallow_an_error()

    assert (await saved(pool))[1] == 1


async def test_a_transaction_that_somebody_ended_inside_says_so(bus, pool):
    await make_orders(pool)

    async def end_it() -> None:
        async with bus.transaction() as conn:
            await conn.execute("rollback")

    with pytest.raises(TransactionRolledBackError, match="ended inside"):
        await end_it()


async def test_a_failure_in_a_savepoint_keeps_the_outer_transaction(bus, pool):
    await make_orders(pool)

    async with bus.transaction() as conn:
        with pytest.raises(psycopg.errors.UndefinedTable):
            async with conn.transaction():
                await conn.execute("insert into no_such_table values (1)")
        await bus.send("test", "DoIt", uuid4(), {}, conn=conn)

    assert (await saved(pool))[1] == 2


async def test_a_transaction_may_be_given_up_without_an_error(bus, pool):
    await make_orders(pool)

    async with bus.transaction() as conn:
        await bus.send("test", "DoIt", uuid4(), {}, conn=conn)
        give_up()

    assert (await saved(pool))[1] == 1


async def test_pruning_does_not_count_what_was_not_deleted(pool, database_url):
    await send(pool)
    worker_id = await register(pool)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id)))

    async def swallow(conn: AsyncConnection[Any], _: list[UUID]) -> None:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await conn.execute("delete from no_such_table")

    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        pruner = Pruner(conn, on_pruned=swallow)
        with pytest.raises(TransactionRolledBackError):
            await pruner.prune([RetentionRule(status=CommandStatus.COMPLETED, keep=0)])

    assert await value(pool, "select count(*) from command_bus_command") == 1
