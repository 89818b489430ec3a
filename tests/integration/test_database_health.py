"""What in the database decides speed and safety, with the faults themselves."""

from __future__ import annotations

import logging
import signal
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from app.database import health as database_health
from app.database.health import Check, HealthWatch, Level, Limits, findings, look
from tests.e2e.served import served
from tests.facts import Pool, rows
from tests.programs import Program, program
from tests.waiting import eventually


async def check(pool, name: str) -> Check:
    return next(check for check in await look(pool) if check.name == name)


async def test_a_forgotten_transaction_is_named(pool, database_url, monkeypatch):
    monkeypatch.setattr(database_health, "OLDEST_SNAPSHOT_SECONDS", Limits(1, 3600))
    async with await AsyncConnection.connect(
        database_url, application_name="forgotten"
    ) as forgotten:
        await forgotten.execute("create table mine (n int)")
        found = await eventually(
            lambda: check(pool, "oldest_snapshot"), lambda found: found.level is Level.WARNING
        )
        assert f"pid {forgotten.info.backend_pid} (forgotten, idle in transaction)" in found.detail
        assert "pg_terminate_backend" in found.advice
        assert "oldest_snapshot" in [check.name for check in findings(await look(pool))]


async def test_an_unlogged_queue_is_critical(pool):
    assert (await check(pool, "unlogged_tables")).level is Level.OK
    await rows(pool, "alter table pgmq.q_test__commands set unlogged")

    found = await check(pool, "unlogged_tables")

    assert found.level is Level.CRITICAL
    assert "pgmq.q_test__commands" in found.detail


async def test_commits_that_do_not_wait_for_the_disk_are_critical(pool, database_url):
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    await rows(pool, f'alter database "{name}" set synchronous_commit = off')
    async with await AsyncConnection.connect(database_url, autocommit=True) as fresh:
        found = next(c for c in await database_health.examine(fresh) if c.name == "durability")

    assert found.level is Level.CRITICAL
    assert "synchronous_commit" in found.detail


@pytest.fixture
async def unsafe_database_url(pool: Pool, database_url: str) -> str:
    """A database whose server, at its next crash, loses what it has acknowledged."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    await rows(pool, f'alter database "{name}" set synchronous_commit = off')
    await rows(pool, "alter table pgmq.q_test__commands set unlogged")
    return database_url


def told(running: Program, check: str) -> str:
    """The line of the log that tells of a finding."""
    return next(line for line in running.lines if f"database_health check={check}" in line)


async def test_without_workers_the_web_process_logs_what_endangers_commands(unsafe_database_url):
    async with served(unsafe_database_url) as web:
        await web.running.says("database_health check=unlogged_tables")
        page = await web.get("/")
        web.running.process.send_signal(signal.SIGTERM)
        assert await web.running.ends() == 0

    assert "ERROR" in told(web.running, "durability")
    assert "synchronous_commit" in told(web.running, "durability")
    assert "pgmq.q_test__commands" in told(web.running, "unlogged_tables")
    assert "synchronous_commit" in page
    assert "pgmq.q_test__commands" in page
    assert "A crash of the server empties them" in page


async def test_a_worker_logs_what_endangers_commands(unsafe_database_url):
    async with program("-m", "app.worker", DATABASE_URL=unsafe_database_url) as worker:
        await worker.says("database_health check=unlogged_tables")

    assert "ERROR" in told(worker, "durability")
    assert "synchronous_commit" in told(worker, "durability")
    assert "pgmq.q_test__commands" in told(worker, "unlogged_tables")


async def test_figures_of_the_database_are_read_with_their_limits(pool):
    checks = {check.name: check for check in await look(pool)}

    assert checks["dead_queue_rows"].limit == 500_000
    assert checks["notification_queue"].value == 0.0
    assert 0 < (checks["connections"].value or 0) < (checks["connections"].limit or 0)
    assert checks["transaction_age"].level is Level.OK


async def test_figures_that_a_role_cannot_see_are_unknown(pool, database_url):
    role = f"watcher_{uuid4().hex[:12]}"
    await rows(pool, f"create role {role}")
    try:
        async with await AsyncConnection.connect(database_url) as conn:
            await conn.execute(f"set role {role}")
            found = {check.name: check for check in await database_health.examine(conn)}
    finally:
        await rows(pool, f"drop role {role}")
    assert found["oldest_snapshot"].level is Level.UNKNOWN
    assert found["oldest_snapshot"].value is None
    assert "pg_read_all_stats" in found["oldest_snapshot"].advice


@pytest.mark.parametrize(
    ("value", "level"), [(0, Level.OK), (29, Level.OK), (30, Level.WARNING), (300, Level.CRITICAL)]
)
def test_a_limit_counts_from_its_value_on(value, level):
    assert Limits(30, 300).level(value) is level


def test_the_log_hears_of_changes_only(caplog, pool):
    watch = HealthWatch(pool)

    def seen(level: Level) -> Check:
        return Check("connections", "Connections", level, 90, "of 100", 80, "90 of 100.", "Fewer.")

    caplog.set_level(logging.INFO)
    for level in (Level.OK, Level.WARNING, Level.WARNING, Level.CRITICAL, Level.OK, Level.OK):
        watch.tell([seen(level)])

    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "database_health"),
        ("ERROR", "database_health"),
        ("INFO", "database_health_restored"),
    ]
