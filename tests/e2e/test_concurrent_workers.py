"""F006, S025: several workers share the work."""

from __future__ import annotations

from uuid import uuid4

from tests.e2e.support import create_test_command
from tests.facts import rows


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
