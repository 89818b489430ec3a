"""F006, S025: several workers share the work."""

from __future__ import annotations

from uuid import uuid4

from commandbus import NewCommand, uuid7
from tests.e2e.support import create_test_command
from tests.facts import rows
from tests.programs import program
from tests.waiting import eventually


async def test_two_workers_in_one_loop_run_different_commands(
    pool, command_bus, make_worker_task, wait_for_completion
):
    workers = [await make_worker_task(concurrency=2) for _ in range(2)]
    ids = [uuid4() for _ in range(20)]
    for command_id in ids:
        await create_test_command(command_id, {"type": "success", "execution_time_ms": 50})

    for command_id in ids:
        await command_bus.send("test", "TestCommand", command_id, {})
    for command_id in ids:
        await wait_for_completion(command_id)
    for worker, task in workers:
        worker.stop()
        await task

    assert await rows(pool, "select max(attempts) from command_bus_command") == [(1,)]
    shares = await rows(pool, "select count(*) from command_bus_command group by worker_id")
    assert len(shares) == 2


async def test_four_processes_process_in_parallel_and_each_does_its_part(
    database_url, pool, command_bus
):
    batch_id = uuid7()
    async with program(
        "-m", "app.worker", "--processes", "4", DATABASE_URL=database_url
    ) as workers:

        async def alive() -> int:
            [[count]] = await rows(
                pool, "select count(*) from command_bus_worker where stopped_at is null"
            )
            return int(count)

        await eventually(alive, lambda count: count == 4)
        behavior = {"type": "success", "execution_time_ms": 5}
        await command_bus.send_many(
            "test",
            [
                NewCommand(
                    command_type="TestCommand", command_id=uuid7(), data={"behavior": behavior}
                )
                for _ in range(1000)
            ],
            batch_id=batch_id,
        )
        done = await eventually(
            lambda: command_bus.get_batch(batch_id), lambda batch: batch.open == 0, seconds=60
        )
        workers.process.terminate()
        assert await workers.ends() == 0

    assert done.counts["COMPLETED"] == 1000
    shares = [
        share
        for [share] in await rows(
            pool,
            "select count(*) from command_bus_audit where event_type = 'COMPLETED'"
            " group by worker_id",
        )
    ]
    assert sum(shares) == 1000
    assert len(shares) == 4
    # Nobody does less than half or more than twice a fair share.
    assert all(125 <= share <= 500 for share in shares), shares
