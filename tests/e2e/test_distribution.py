"""Any number of worker processes share one database, and the work fairly."""

from __future__ import annotations

from tests.e2e.distribution import (
    assert_fair,
    completed,
    send_test_commands,
    shares,
    workers_alive,
)
from tests.facts import rows, value
from tests.programs import program


async def test_four_processes_share_ten_thousand_commands_fairly(database_url, pool):
    async with program(
        "-m", "app.worker", "--processes", "4", DATABASE_URL=database_url
    ) as processes:
        workers = await workers_alive(pool, 4)
        await send_test_commands(pool, 10_000, execution_time_ms=1)
        await completed(pool, 10_000)
        processes.process.terminate()
        assert await processes.ends() == 0

    counted = await shares(pool)
    assert sum(counted.values()) == 10_000
    assert_fair(counted, workers)
    assert await rows(
        pool, "select status::text, max(attempts), count(*) from command_bus_command group by 1"
    ) == [("COMPLETED", 1, 10_000)]


async def test_a_worker_that_starts_in_the_middle_takes_its_share_at_once(database_url, pool):
    async with program("-m", "app.worker", "--processes", "2", DATABASE_URL=database_url):
        await workers_alive(pool, 2)
        await send_test_commands(pool, 3_000, execution_time_ms=10)
        await completed(pool, 300)

        async with program("-m", "app.worker", DATABASE_URL=database_url):
            workers = await workers_alive(pool, 3)
            joined_after = await value(pool, "select max(audit_id) from command_bus_audit")
            # However long its start took, there is enough left to be shared.
            await send_test_commands(pool, 1_000, execution_time_ms=10)
            await completed(pool, 4_000)

    assert_fair(await shares(pool, after_event=joined_after), workers)
