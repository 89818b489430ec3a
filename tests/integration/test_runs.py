"""Load-test runs, from their first command to their recorded outcome."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from app.loadtest.generating import BulkOrder, generate
from app.loadtest.runs import (
    Origin,
    RunGivenUpError,
    create_run,
    generate_run,
    request_cancel,
    settle_runs,
)
from app.testcommand import store
from commandbus import CommandBus
from commandbus.ops import TroubleshootingQueue
from tests.facts import Pool, claim, completed, failed, register, rows, settle, value
from tests.waiting import eventually


async def record(pool: Pool, order: BulkOrder, **fields: Any) -> None:
    await create_run(pool, order, origin=Origin.CLI, **fields)


async def column(pool: Pool, order: BulkOrder, name: str) -> Any:
    return await value(pool, f"select {name} from load_test_run where run_id = %s", order.batch_id)


async def run_of_one_in_trouble(pool: Pool) -> tuple[BulkOrder, UUID]:
    """A run whose only command is in the troubleshooting queue, with the id of that command."""
    order = BulkOrder(count=1)
    await record(pool, order)
    await generate_run(pool, order)
    worker = await register(pool)
    [only] = await claim(pool, worker)
    await settle(pool, worker, failed(only, "permanent"))
    return order, only.command.command_id


async def test_a_run_is_recorded_from_its_order_to_its_outcome(pool):
    order = BulkOrder(count=6)
    await record(pool, order, name="first", started_by="ann", workers={"processes": 1})
    assert await column(pool, order, "state") == "generating"

    made = await generate_run(pool, order)

    assert made.created == 6
    assert await column(pool, order, "state") == "running"
    await settle_runs(pool)
    assert await column(pool, order, "outcome") is None  # nothing has been processed

    worker = await register(pool)
    one, two, three, *others = await claim(pool, worker)
    await settle(pool, worker, *map(completed, others))
    await settle(pool, worker, failed(one, "permanent"), failed(two, "business"), completed(three))
    await settle_runs(pool)

    assert await column(pool, order, "state") == "finished"
    outcome = await column(pool, order, "outcome")
    assert outcome["counts"] == {
        "PENDING": 0, "IN_PROGRESS": 0, "COMPLETED": 4, "FAILED": 1, "IN_TSQ": 1, "CANCELLED": 0,
    }  # fmt: skip
    assert outcome["processed"] == 6
    progress = await CommandBus(pool).get_batch(order.batch_id)
    assert progress is not None
    assert outcome["total_ms"] == pytest.approx(
        [progress.total_ms.p50, progress.total_ms.p95, progress.total_ms.p99]
    )
    assert outcome["throughput_per_second"] == pytest.approx(
        6 / outcome["elapsed_seconds"], rel=0.01
    )
    last_end = await value(pool, "select max(updated_at) from command_bus_command")
    assert await column(pool, order, "finished_at") == last_end
    settings = await column(pool, order, "settings")
    assert (settings["count"], settings["types"]) == (6, {"success": 6})
    assert settings["workers"] == {"processes": 1}
    assert settings["configuration"]["max_attempts"] == 3
    series = await column(pool, order, "series")
    assert series["step_seconds"] == 1
    assert sum(series["processed_per_second"]) == 6
    assert len(set(map(len, [v for v in series.values() if isinstance(v, list)]))) == 1


async def test_the_outcome_stays_when_an_operator_acts_later(pool):
    order, command_id = await run_of_one_in_trouble(pool)
    await settle_runs(pool)
    before = await column(pool, order, "outcome")

    await TroubleshootingQueue(pool).operator_cancel("test", command_id)
    await settle_runs(pool)

    assert await column(pool, order, "outcome") == before


async def test_what_operators_do_before_the_outcome_is_recorded_makes_no_run_longer(pool):
    order, command_id = await run_of_one_in_trouble(pool)
    await TroubleshootingQueue(pool).operator_cancel("test", command_id)
    await rows(pool, "update command_bus_command set updated_at = updated_at + interval '9 s'")

    await settle_runs(pool)

    assert (await column(pool, order, "outcome"))["elapsed_seconds"] < 5


async def test_a_generation_is_cancelled_from_another_process(pool):
    order = BulkOrder(count=200_000)
    await record(pool, order)
    generation = asyncio.create_task(generate_run(pool, order))
    await eventually(lambda: column(pool, order, "generated_count"))

    assert await request_cancel(pool, order.batch_id, "bob")

    made = await generation
    assert made.cancelled
    assert made.created < 200_000
    assert await column(pool, order, "state") == "cancelled"
    assert await column(pool, order, "cancel_requested_by") == "bob"
    assert await column(pool, order, "generated_count") == made.created
    assert not await request_cancel(pool, order.batch_id, "carl")


async def test_a_generation_that_died_with_its_process_ends_as_failed(pool):
    order = BulkOrder(count=1_000)
    await record(pool, order)
    await generate(pool, order)  # and nobody tells the run
    await settle_runs(pool)
    assert await column(pool, order, "state") == "generating"

    await rows(pool, "update load_test_run set heartbeat_at = now() - interval '1 minute'")
    await settle_runs(pool)

    assert await column(pool, order, "state") == "failed"
    worker = await register(pool)
    while claimed := await claim(pool, worker):
        await settle(pool, worker, *map(completed, claimed))
    await settle_runs(pool)
    outcome = await column(pool, order, "outcome")
    assert outcome["counts"]["COMPLETED"] == 1_000
    assert await column(pool, order, "state") == "failed"


async def test_a_generation_that_comes_back_after_it_was_recorded_as_failed_sends_nothing_more(
    pool, monkeypatch
):
    order = BulkOrder(count=5_000)
    await record(pool, order)
    froze = asyncio.Event()
    goes_on = asyncio.Event()
    send_chunk = store.create_and_send_test_commands

    async def freeze(*arguments: Any) -> int:
        if await column(pool, order, "generated_count") == 2_000:
            froze.set()
            await goes_on.wait()
        return await send_chunk(*arguments)

    monkeypatch.setattr(store, "create_and_send_test_commands", freeze)
    generation = asyncio.create_task(generate_run(pool, order))
    await froze.wait()
    await rows(pool, "update load_test_run set heartbeat_at = now() - interval '1 minute'")
    await settle_runs(pool)
    goes_on.set()

    with pytest.raises(RunGivenUpError, match="nothing more is sent"):
        await generation

    assert await column(pool, order, "state") == "failed"
    assert await column(pool, order, "generated_count") == 2_000
    assert await value(pool, "select count(*) from command_bus_command") == 2_000


async def test_a_generation_that_fails_is_recorded_as_failed(pool):
    order = BulkOrder(count=1, domain="nowhere")
    await record(pool, order)

    with pytest.raises(Exception, match="nowhere"):
        await generate_run(pool, order)

    assert await column(pool, order, "state") == "failed"
    await settle_runs(pool)
    assert (await column(pool, order, "outcome"))["counts"]["COMPLETED"] == 0
