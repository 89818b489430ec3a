"""Tables of the same names in another schema are never taken for the project's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from flask import Flask
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app import create_app
from app.settings.configuration import ConfigStore
from app.worker import create_worker
from tests.applications import close
from tests.facts import Pool, ended, value
from tests.integration.pruning import send_test
from tests.programs import program
from tests.waiting import eventually

PAGES = (
    *("/", "/commands", "/troubleshooting", "/workers", "/audit", "/load-tests", "/settings"),
    *("/invariants", "/api/v1/commands", "/api/v1/tsq", "/api/v1/stats/throughput"),
    *("/api/v1/stats/history", "/api/v1/stats/load-test", "/api/v1/config", "/api/v1/workers"),
    *("/api/v1/invariants", "/health/ready"),
)


@pytest.fixture
def shadowed_url(database_url: str) -> str:
    """The database, in which a schema has a table of another shape for each name in public.

    It is the first that every session of the database looks into.
    """
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("create schema shadow")
        names = conn.execute("select tablename from pg_tables where schemaname = 'public'")
        for (name,) in names.fetchall():
            conn.execute(sql.SQL("create table shadow.{} ()").format(sql.Identifier(name)))
        conn.execute(
            sql.SQL("alter database {} set search_path = shadow, public").format(
                sql.Identifier(conn.info.dbname)
            )
        )
    return database_url


@pytest.fixture
def app(shadowed_url: str) -> Iterator[Flask]:
    made = create_app({"database_url": shadowed_url, "secret_key": "for tests only"})
    yield made
    close(made)


def test_every_page_reads_the_projects_own_tables(app: Flask, shadowed_url: str) -> None:
    client = app.test_client()
    sent = client.post("/api/v1/commands", json={"behavior": {"type": "success"}})
    bulk = {"count": 10, "behavior": {"type": "success"}}
    more = client.post("/api/v1/commands/bulk", json=bulk)
    answers = {path: client.get(path).status_code for path in PAGES}

    assert (sent.status_code, more.status_code) == (201, 201), more.text
    assert set(answers.values()) == {200}, answers


async def test_the_programs_work_with_any_path(shadowed_url, pool):
    command_id = await send_test(pool, "success")
    url = f"{shadowed_url}{'&' if '?' in shadowed_url else '?'}options=-c%20search_path%3Dnowhere"
    async with program("-m", "app.worker", DATABASE_URL=url) as worker:
        await ended(pool, command_id)
        worker.process.terminate()
        assert await worker.ends() == 0, worker.output
    async with program("-m", "app.prune", "--keep", "0", DATABASE_URL=url) as pruner:
        assert await pruner.ends() == 0, pruner.output

    assert await value(pool, "select count(*) from public.test_command") == 0


async def test_the_application_works_on_a_pool_with_any_path(shadowed_url, pool: Pool):
    async with AsyncConnectionPool(
        shadowed_url, connection_class=AsyncConnection[TupleRow], max_size=8, open=False
    ) as own:
        assert await value(own, "show search_path") == "shadow, public"
        assert (await ConfigStore(own).load()).version == 1
        command_id = await send_test(own, "fail_transient_then_succeed")
        worker = await create_worker(own)
        running = asyncio.create_task(worker.run())
        await ended(own, command_id)
        worker.stop()
        await running
        query = "select attempts from public.test_command where processed_at is not null"
        await eventually(lambda: value(own, query), lambda attempts: attempts > 1)
