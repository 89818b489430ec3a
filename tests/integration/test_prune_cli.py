"""`python -m app.prune` and pruning on schedule, as real processes."""

from __future__ import annotations

import signal

import pytest

from commandbus import CommandBus, CommandStatus, retention_store
from commandbus import store as bus_store
from tests.facts import Pool, assert_books_balance, register, rows, value
from tests.integration.pruning import age, left, make, send_test
from tests.programs import program
from tests.waiting import eventually

# About a second: a day is the unit that an operator thinks in.
AT_ONCE = {"RETENTION_COMPLETED_DAYS": "0.00001", "RETENTION_INTERVAL_SECONDS": "0.1"}
HERE = "database = (select oid from pg_database where datname = current_database())"


def prune(database_url: str, *arguments: str, **environment: str):
    return program("-m", "app.prune", *arguments, DATABASE_URL=database_url, **environment)


async def run(database_url: str, *arguments: str) -> str:
    """What it says; it must succeed."""
    async with prune(database_url, *arguments) as running:
        assert await running.ends() == 0, running.output
    said: str = running.output
    return said


async def test_pruning_deletes_what_its_dry_run_announced(database_url, pool):
    worker_id = await register(pool)
    old = await make(pool, worker_id, 3) + await make(pool, worker_id, 2, "FAILED")
    fresh = await make(pool, worker_id, 2)
    await age(pool, old, 31)

    dry = await run(database_url, "--older-than", "30d", "--dry-run")
    assert dry == "Would delete 3 completed, 2 failed commands."
    assert await left(pool) == {*old, *fresh}

    said = await run(
        database_url, "--older-than", "30d", "--status", "completed", "--batch-size", "1"
    )
    assert said.startswith("Deleted 3 completed commands with 9 events in ")
    said = await run(database_url, "--keep", "1", "--history", "52w", "--domain", "test")
    assert said.startswith("Deleted 1 completed, 1 failed commands with 6 events in ")
    assert await left(pool) == {old[-1], fresh[-1]}
    await assert_books_balance(pool)


async def test_it_says_in_one_line_that_there_was_nothing_to_do(database_url):
    for limits in (["--keep", "0"], ["--older-than", "999999999d", "--history", "999999999d"]):
        said = await run(database_url, *limits)
        assert said.startswith("Deleted no commands with 0 events")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to prune: give --older-than, --keep, --history or --scheduled"),
        (["--older-than", "30"], "must be like 30d, 12h or 90s, not '30'"),
        (["--older-than", "999999999w"], "is too long"),
        (["--keep=-1"], "must be a whole number from 0"),
        (["--keep", "many"], "must be a whole number from 0"),
        (["--keep", "1", "--status", "COMPLETED,PENDING"], "must be some of COMPLETED, FAILED"),
        (["--keep", "1", "--batch-size", "0"], "must be a whole number from 1 to 10000"),
        (["--scheduled"], "no RETENTION_ setting says what to prune"),
        (["--scheduled", "--keep", "1"], "takes its limits from the RETENTION_ settings"),
    ],
)
async def test_wrong_options_are_explained(arguments, complaint):
    async with prune("postgresql://nobody@127.0.0.1:9/none", *arguments) as running:
        assert await running.ends() == 2
    assert complaint in running.output


async def test_wrong_settings_are_explained_by_pruner_and_worker(database_url):
    wrong = {"RETENTION_FAILED_DAYS": "soon"}
    for arguments in (("app.prune", "--keep", "1"), ("app.worker",)):
        async with program("-m", *arguments, DATABASE_URL=database_url, **wrong) as running:
            assert await running.ends() == 2
        assert running.output == (
            "error: failed_days (RETENTION_FAILED_DAYS in the environment) must be a number from 0"
            " to 36500 days, not 'soon'"
        )


async def test_an_unknown_domain_and_an_unreachable_server_are_told_in_one_line(database_url):
    async with prune(database_url, "--keep", "1", "--domain", "none") as running:
        assert await running.ends() == 1
    assert running.output == 'error: domain "none" does not exist'
    away = "postgresql://nobody@127.0.0.1:9/none"
    async with prune(away, "--keep", "1", DATABASE_WAIT="0") as running:
        assert await running.ends() == 1
    assert running.output.startswith("error: Cannot connect to ")
    assert len(running.lines) == 1


async def test_a_signal_ends_it_after_the_batch_under_way(database_url, pool):
    await make(pool, await register(pool), 5)
    async with pool.connection() as conn:
        await conn.execute(
            "select pg_advisory_xact_lock_shared(command_bus.prune_lock('commands'))"
        )
        async with prune(database_url, "--keep", "0", "--batch-size", "1") as running:
            await eventually(
                lambda: value(
                    pool,
                    f"select count(*) from pg_locks where locktype = 'advisory' and {HERE}"
                    " and not granted",
                ),
                seconds=30,
            )
            running.process.send_signal(signal.SIGINT)
            await conn.commit()  # only now the first batch can go on
            code = await running.ends()

    assert code == 130, running.output
    assert "Stopped by a signal; more may be left." in running.output
    assert "Traceback" not in running.output
    assert 0 < len(await left(pool)) < 5
    await assert_books_balance(pool)


async def test_workers_prune_on_schedule_and_one_does_it_for_all(database_url, pool):
    worker_id = await register(pool)
    ids = await make(pool, worker_id, 3) + await make(pool, worker_id, 1, "FAILED")
    start = {"DATABASE_URL": database_url, "LOG_LEVEL": "INFO", **AT_ONCE}
    async with (
        program("-m", "app.worker", **start) as one,
        program("-m", "app.worker", **start) as other,
    ):
        await one.says("worker_started")
        await other.says("worker_started")
        await eventually(lambda: left(pool), lambda seen: seen == {ids[-1]}, seconds=30)
        [pruner] = await eventually(lambda: pruners(pool), lambda seen: len(seen) == 1)

        # When the one that prunes loses its connection, pruning goes on all the same.
        await rows(pool, "select pg_terminate_backend(%s)", pruner)
        await send_test(pool, "success")
        await eventually(lambda: left(pool), lambda seen: seen == {ids[-1]}, seconds=30)
        await eventually(lambda: pruners(pool), lambda seen: seen and seen != [pruner])
        for each in (one, other):
            each.process.send_signal(signal.SIGTERM)
            assert await each.ends() == 0, each.output

    both = one.output + other.output
    assert "retention_started" in both
    assert "retention_pruned" in both
    assert "Traceback" not in both
    await assert_books_balance(pool)


async def pruners(pool: Pool) -> list[int]:
    """The sessions of this database that hold the right to prune on schedule."""
    found = await rows(
        pool,
        "select pid from pg_locks where locktype = 'advisory' and granted"
        f" and {HERE} and ((classid::bigint << 32) | objid::bigint)"
        " = hashtextextended('command_bus.retention', 0)",
    )
    return [pid for (pid,) in found]


async def test_a_process_of_its_own_can_prune_on_schedule(database_url, pool):
    worker_id = await register(pool)
    await make(pool, worker_id, 2)
    async with prune(database_url, "--scheduled", **AT_ONCE) as running:
        await eventually(lambda: left(pool), lambda seen: seen == set(), seconds=30)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ends() == 0, running.output

    assert (await CommandBus(pool).count_by_status())[CommandStatus.COMPLETED] == 0
    assert "Traceback" not in running.output


async def test_nothing_is_pruned_unless_somebody_wants_it(database_url, pool):
    await make(pool, await register(pool), 1)
    async with program("-m", "app.worker", DATABASE_URL=database_url) as running:
        await running.says("worker_started")
        async with bus_store.autocommit(pool) as conn:
            # Nobody holds the lock, so nobody will ever prune.
            assert await retention_store.become_pruner(conn)
            await conn.execute("select pg_advisory_unlock_all()")
        running.process.send_signal(signal.SIGTERM)
        assert await running.ends() == 0
    assert "retention" not in running.output
    assert len(await left(pool)) == 1
