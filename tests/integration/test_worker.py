"""The worker: claim, run, settle, continuously, and what it follows while it runs."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from commandbus import (
    CommandStatus,
    Worker,
)
from tests.facts import (
    assert_books_balance,
    ended,
    events,
    queued,
    rows,
    send,
    status,
    value,
)
from tests.waiting import eventually, until


async def test_a_worker_runs_what_is_sent_and_records_what_it_returns(
    bus, pool, recorded, start_worker
):
    await start_worker()
    [command_id] = await send(pool, data={"n": 1})

    await ended(pool, command_id)

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.result == {"did": {"n": 1}}
    assert recorded == [({"n": 1}, 1)]
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]


async def test_an_idle_worker_is_woken_at_once(pool, recorded, start_worker):
    worker: Worker = await start_worker(poll_interval=60.0)
    # One may be found by the look that follows the end of another, but hardly each of them.
    for _ in range(5):
        [command_id] = await send(pool)
        await ended(pool, command_id)
    assert not worker.is_stopping


async def test_a_worker_finds_work_without_hearing_of_it(pool, recorded, start_worker):
    await start_worker(poll_interval=0.1)
    await eventually(
        lambda: value(
            pool,
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and query like 'listen%%'",
        )
    )
    ids = await send(pool, 3)

    await ended(pool, *ids, seconds=10)


async def test_an_idle_worker_wakes_when_a_waiting_command_is_due(pool, recorded, start_worker):
    await start_worker(poll_interval=60.0)
    [command_id] = await send(pool, delay=0.4)

    await ended(pool, command_id, seconds=5)


async def test_many_commands_are_each_run_once(pool, recorded, start_worker):
    ids = await send(pool, 500)
    for _ in range(2):
        await start_worker(concurrency=8, batch_size=50)

    await ended(pool, *ids)

    assert len(recorded) == 500
    assert await value(pool, "select sum(completed) from command_bus_worker") == 500
    assert await queued(pool) == 0
    await assert_books_balance(pool)


async def test_what_a_handler_sets_in_context_variables_no_other_sees(pool, registry, start_worker):
    tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
    seen: list[str | None] = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        seen.append(tenant.get())
        tenant.set(str(command.command_id))

    ids = await send(pool, 20)
    await start_worker(concurrency=1)
    await ended(pool, *ids)

    assert seen == [None] * 20


async def test_no_more_handlers_run_than_the_concurrency_allows(pool, gate, start_worker):
    ids = await send(pool, 20)
    await start_worker(concurrency=3, batch_size=10)

    await until(lambda: gate.running == 3)
    gate.open.set()
    await ended(pool, *ids)

    assert gate.most == 3


async def test_a_free_slot_is_filled_while_slow_handlers_go_on(pool, registry, start_worker):
    slow = asyncio.Event()

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        if command.data == "slow":
            await slow.wait()

    [lagging] = await send(pool, data="slow")
    quick = await send(pool, 30)
    await start_worker(concurrency=2, batch_size=5)

    await ended(pool, *quick)
    assert await status(pool, lagging) == CommandStatus.IN_PROGRESS
    slow.set()
    await ended(pool, lagging)


async def test_slow_handlers_claim_nothing_in_advance(pool, gate, start_worker):
    await send(pool, 10)
    await start_worker(concurrency=2, batch_size=10)
    await until(lambda: gate.running == 2)

    assert (
        await value(pool, "select count(*) from command_bus_command where status = 'IN_PROGRESS'")
        == 2
    )


async def test_no_connection_is_held_while_handlers_run(pool, gate, start_worker):
    await send(pool, 4)
    await start_worker(concurrency=4)
    await until(lambda: gate.running == 4)

    async def idle() -> int:
        stats = pool.get_stats()
        return int(stats["pool_size"]) - int(stats["pool_available"])

    await eventually(idle, lambda used: used == 0)


# Settings and side tasks


async def test_settings_take_effect_while_the_worker_runs(pool, gate, start_worker):
    await send(pool, 10)
    worker: Worker = await start_worker(concurrency=1)
    await until(lambda: gate.running == 1)

    worker.configure(concurrency=4, batch_size=20, poll_interval=0.5)

    await until(lambda: gate.running == 4)
    assert (worker.concurrency, worker.batch_size, worker.poll_interval) == (4, 20, 0.5)
    gate.open.set()


@pytest.mark.parametrize(
    "bad",
    [
        {"concurrency": 0},
        {"visibility_timeout": 0},
        {"batch_size": 0},
        {"poll_interval": 0},
        {"handler_timeout": -1},
    ],
    ids=str,
)
async def test_settings_that_make_no_sense_are_refused_and_change_nothing(make_worker, bad):
    [name] = bad
    with pytest.raises(ValueError, match=name):
        make_worker(**bad)
    worker: Worker = make_worker(concurrency=2)
    with pytest.raises(ValueError, match=name):
        worker.configure(**{"concurrency": 9, **bad})
    assert worker.concurrency == 2


async def test_a_worker_is_stopped_by_a_request_in_the_database(pool, recorded, start_worker):
    worker: Worker = await start_worker()

    await rows(pool, "select command_bus.request_stop(null, 'olga')")

    await until(lambda: worker.is_stopping)
    await eventually(
        lambda: value(pool, "select stopped_at is not null from command_bus_worker"), seconds=5
    )


async def test_a_worker_says_what_it_runs(pool, gate, start_worker):
    await send(pool, 2)
    await start_worker(concurrency=2)

    [running] = await eventually(
        lambda: rows(pool, "select running from command_bus_worker where running_count = 2"),
    )
    assert [(each["command_type"], each["attempt"]) for each in running[0]] == [("DoIt", 1)] * 2


async def test_a_worker_whose_row_was_pruned_registers_again(pool, recorded, start_worker):
    worker: Worker = await start_worker()
    first = worker.worker_id
    await rows(pool, "delete from command_bus_worker")

    await until(lambda: worker.worker_id != first)
    [command_id] = await send(pool)
    await ended(pool, command_id)


async def test_a_side_task_that_dies_stops_the_worker_with_its_error(
    pool, gate, make_worker, monkeypatch
):
    async def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more notifications")

    monkeypatch.setattr("commandbus.worker.listen_for_commands", die)
    worker: Worker = make_worker()

    with pytest.raises(RuntimeError, match="no more notifications"):
        async with asyncio.timeout(10):
            await worker.run()
