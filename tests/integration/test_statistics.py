"""Counts are exact at any moment, whoever folds; percentiles are within 2 %."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from commandbus import CommandBus, CommandStatus, NewCommand, queries, store
from tests.facts import (
    Pool,
    assert_books_balance,
    claim,
    completed,
    failed,
    recount,
    register,
    rows,
    settle,
    value,
)
from tests.integration.pruning import prune, prune_history


async def fold(pool: Pool) -> int:
    async with store.autocommit(pool) as conn:
        return await store.fold_deltas(conn)


async def send_in_batch(pool: Pool, count: int, batch_id: UUID | None = None) -> list[UUID]:
    commands = [NewCommand(command_type="DoIt", command_id=uuid4()) for _ in range(count)]
    sent = await CommandBus(pool).send_many("test", commands, batch_id=batch_id)
    return [each.command_id for each in sent]


async def work(pool: Pool, worker_id: int, dice: random.Random) -> None:
    """Claim some, and end them in every way."""
    claimed = await claim(pool, worker_id, limit=dice.randint(1, 20))
    outcomes = [
        completed(each, run_us=dice.randint(1, 10**7))
        if kind == "success"
        else failed(each, kind, run_us=dice.randint(1, 10**7))
        for each in claimed
        for kind in [dice.choice(["success", "success", "business", "permanent", "transient"])]
    ]
    await settle(pool, worker_id, *outcomes)


async def test_nothing_is_counted_before_anything_was_sent(bus: CommandBus):
    assert await bus.count_by_status() == dict.fromkeys(CommandStatus, 0)
    assert await bus.get_batch(uuid4()) is None


async def test_counts_equal_a_recount_while_everybody_works_and_folds(bus, tsq, pool):
    batch_id = uuid4()
    worker_id = await register(pool)
    dice = random.Random(7)

    async def send_some() -> None:
        for _ in range(10):
            await send_in_batch(
                pool, dice.randint(1, 30), batch_id if dice.random() < 0.5 else None
            )

    async def work_some() -> None:
        for _ in range(15):
            await work(pool, worker_id, dice)

    async def fold_some() -> None:
        for _ in range(20):
            await fold(pool)

    async def compare() -> None:
        """Counts and rows seen at one moment agree, whatever is folded meanwhile."""
        for _ in range(10):
            async with pool.connection() as conn:
                await conn.execute("set transaction isolation level repeatable read")
                counted = await queries.count_by_status(conn, None)
                cur = await conn.execute(
                    "select status::text, count(*) from command_bus_command group by 1"
                )
                found: dict[str, int] = dict(await cur.fetchall())
                assert counted == {each: found.get(each.value, 0) for each in CommandStatus}

    await asyncio.gather(
        send_some(), work_some(), work_some(), fold_some(), fold_some(), fold_some(), compare()
    )

    await assert_books_balance(pool)
    before = await bus.get_batch(batch_id)
    while await fold(pool):
        pass
    assert await value(pool, "select count(*) from command_bus_delta") == 0
    await assert_books_balance(pool)
    assert await bus.get_batch(batch_id) == before


async def test_folding_changes_nothing_that_readers_see(bus, pool):
    batch_id = uuid4()
    await send_in_batch(pool, 40, batch_id)
    worker_id, dice = await register(pool), random.Random(1)

    async def seen() -> tuple[Any, ...]:
        return (
            await bus.count_by_status(),
            await bus.count_by_status("test"),
            await bus.get_batch(batch_id),
            await rows(pool, "select * from command_bus.throughput('test', 3600)"),
            await rows(
                pool,
                "select * from command_bus.history(null, now() - interval '1 hour', now(), 1)"
                " where sent + processed + retried > 0",
            ),
        )

    for _ in range(4):
        await work(pool, worker_id, dice)
        before = await seen()
        while await fold(pool):
            pass
        assert await seen() == before


async def test_counts_are_kept_for_each_domain(bus, pool):
    await bus.create_domain("other")
    await bus.send("other", "DoIt", uuid4(), {})
    await send_in_batch(pool, 3)

    for _ in range(2):
        assert (await bus.count_by_status("other"))[CommandStatus.PENDING] == 1
        assert (await bus.count_by_status("test"))[CommandStatus.PENDING] == 3
        assert (await bus.count_by_status())[CommandStatus.PENDING] == 4
        assert (await bus.count_by_status("nowhere"))[CommandStatus.PENDING] == 0
        await fold(pool)


async def test_one_session_folds_at_a_time_and_the_others_do_not_wait(bus, pool):
    await send_in_batch(pool, 1)
    async with bus.transaction() as conn, asyncio.timeout(5):
        assert await store.fold_deltas(conn) == 1
        assert await fold(pool) == 0
        assert (await bus.count_by_status())[CommandStatus.PENDING] == 1

    assert await fold(pool) == 0
    await assert_books_balance(pool)


async def test_deltas_are_folded_where_all_tables_are_published(pool, tsq):
    await rows(pool, "create publication everything for all tables")
    worker_id = await register(pool)
    [command_id, _] = await send_in_batch(pool, 2, uuid4())
    for each in await claim(pool, worker_id):
        permanent = each.command.command_id == command_id
        await settle(pool, worker_id, failed(each, "permanent") if permanent else completed(each))
    await tsq.operator_cancel("test", command_id)

    assert await fold(pool) > 0

    await prune(pool)
    await prune_history(pool, timedelta(0))
    assert await value(pool, "select count(*) from command_bus_command") == 0
    await assert_books_balance(pool)


async def test_folding_is_bounded(pool):
    for _ in range(5):
        await send_in_batch(pool, 1)

    assert await value(pool, "select command_bus.fold_deltas(2)") == 2
    assert await value(pool, "select count(*) from command_bus_delta") == 3
    await assert_books_balance(pool)


def exact(durations: list[int], fraction: float) -> float:
    """The smallest duration that at least this fraction does not exceed, in milliseconds."""
    position = max(-(-len(durations) * fraction // 1), 1)
    return sorted(durations)[int(position) - 1] / 1000


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        lambda dice: dice.randint(1, 5_000_000),
        lambda dice: int(dice.lognormvariate(9, 2)) + 1,
        lambda _: 12_345,
        lambda dice: dice.choice([50, 3_600_000_000]),
    ],
    ids=["even", "long tail", "all alike", "two extremes"],
)
async def test_percentiles_are_within_two_percent(bus, pool, shape, folded):
    dice = random.Random(3)
    durations = [shape(dice) for _ in range(400)]
    batch_id = uuid4()
    await send_in_batch(pool, 400, batch_id)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id, limit=400)
    for start in range(0, 400, 100):
        part = zip(claimed[start:], durations[start : start + 100], strict=False)
        await settle(pool, worker_id, *(completed(each, run_us=us) for each, us in part))
        if folded:
            await fold(pool)

    progress = await bus.get_batch(batch_id)
    [[run_ms]] = await rows(pool, "select run_ms from command_bus.throughput('test', 60)")

    assert progress is not None
    wanted = [exact(durations, fraction) for fraction in (0.5, 0.95, 0.99)]
    got = [progress.run_ms.p50, progress.run_ms.p95, progress.run_ms.p99]
    assert got == pytest.approx(wanted, rel=0.02)
    assert run_ms == pytest.approx(wanted, rel=0.02)


async def test_percentiles_of_nothing_are_none(bus, pool):
    batch_id = uuid4()
    await send_in_batch(pool, 1, batch_id)

    progress = await bus.get_batch(batch_id)

    assert progress is not None
    assert (progress.run_ms.p50, progress.wait_ms.p99, progress.total_ms.p95) == (None, None, None)


async def test_a_batch_counts_its_own_commands(bus, pool):
    mine, other = uuid4(), uuid4()
    await send_in_batch(pool, 8, mine)
    await send_in_batch(pool, 5, other)
    worker_id = await register(pool)
    claimed = [each for each in await claim(pool, worker_id) if each.command.batch_id == mine]
    await settle(
        pool,
        worker_id,
        completed(claimed[0]),
        completed(claimed[1]),
        failed(claimed[2], "business"),
        failed(claimed[3], "permanent"),
        failed(claimed[4], "transient"),
    )

    progress = await bus.get_batch(mine)

    assert progress is not None
    assert progress.counts == {
        CommandStatus.PENDING: 1,
        CommandStatus.IN_PROGRESS: 3,
        CommandStatus.COMPLETED: 2,
        CommandStatus.FAILED: 1,
        CommandStatus.IN_TSQ: 1,
        CommandStatus.CANCELLED: 0,
    }
    assert (progress.sent, progress.processed, progress.retried, progress.open) == (8, 4, 1, 4)
    assert progress.first_processed_at is not None
    others = await bus.get_batch(other)
    assert others is not None
    assert (others.sent, others.processed) == (5, 0)


async def test_a_send_that_was_rolled_back_is_not_counted(bus, pool):
    async with pool.connection() as conn:
        await bus.send("test", "DoIt", uuid4(), {}, conn=conn)
        await conn.rollback()

    assert (await bus.count_by_status())[CommandStatus.PENDING] == 0
    assert await recount(pool) == await bus.count_by_status()


async def test_the_last_completed_are_found_behind_any_number_of_other_events(pool, tsq):
    worker_id = await register(pool)
    sent = await send_in_batch(pool, 6)
    claimed = await claim(pool, worker_id)
    for each in claimed[:4]:
        await settle(pool, worker_id, completed(each))
    await settle(pool, worker_id, failed(claimed[4], "permanent"), failed(claimed[5], "permanent"))
    await tsq.operator_complete("test", claimed[5].command.command_id)
    await fold(pool)
    await rows(
        pool,
        "insert into command_bus_audit (command_id, created_at, event_type, domain)"
        " select gen_random_uuid(), clock_timestamp() + interval '1 minute', 'RECEIVED', 'test'"
        " from generate_series(1, 25000)",
    )

    last = await rows(pool, "select command_id from command_bus.last_completed(5)")
    assert [command_id for (command_id,) in last] == [
        claimed[5].command.command_id,
        *(each.command.command_id for each in reversed(claimed[:4])),
    ]
    assert len(sent) == 6


async def test_of_many_that_operators_completed_some_are_remembered(pool, tsq):
    worker_id = await register(pool)
    await send_in_batch(pool, 25)
    claimed = await claim(pool, worker_id)
    await settle(pool, worker_id, *(failed(each, "permanent") for each in claimed))
    for each in claimed:
        await tsq.operator_complete("test", each.command.command_id)

    assert await value(pool, "select count(*) from command_bus_completed_by_operator") == 20
    [last, *_] = await rows(pool, "select command_id from command_bus.last_completed(5)")
    assert last == (claimed[-1].command.command_id,)
