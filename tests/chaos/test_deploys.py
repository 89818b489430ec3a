"""Workers of different versions work on one domain, and on one schema, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from app.database.opening import prepare
from tests.chaos.conftest import scaled
from tests.chaos.scenes import all_ended
from tests.facts import Pool, assert_books_balance, rows, send, value
from tests.programs import ROOT

PROGRAM = ROOT / "tests" / "chaos" / "release_worker.py"
SET_UP = "import sys; from commandbus.migrating import setup_database; setup_database(sys.argv[1])"
SENT = "select status::text, attempts, count(*) from command_bus_command group by 1, 2"


class ReleaseWorker:
    """A worker process that runs the code in *root*."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, root: Path, url: str, types: list[str], **options: Any) -> ReleaseWorker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAM),
            url,
            json.dumps(types),
            json.dumps(options),
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"registered\n"
        return cls(process)

    async def stop(self) -> int:
        """Let it drain; its exit code."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self._process.wait(), 60)

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


StartRelease = Callable[..., Any]


@asynccontextmanager
async def fleet() -> AsyncIterator[StartRelease]:
    """Starts workers; those that still run at the end are killed."""
    started: list[ReleaseWorker] = []

    async def start(root: Path, url: str, types: list[str], **options: Any) -> ReleaseWorker:
        started.append(await ReleaseWorker.start(root, url, types, **options))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.kill()
            await worker.stop()


async def test_a_new_type_arrives_while_old_and_new_workers_run(
    database_url: str, pool: Pool
) -> None:
    seconds = scaled(5, 60)
    async with fleet() as start:
        for version, types in (("1.4", ["Old"]), ("1.4", ["Old"]), ("1.5", ["Old", "New"])):
            await start(
                ROOT, database_url, types, app_version=version, batch_size=50, concurrency=8
            )
        for _ in range(50):
            await send(pool, 20, command_type="New", max_attempts=1, data={"ms": 5})
            await send(pool, 40, command_type="Old", max_attempts=1, data={"ms": 5})
            await asyncio.sleep(seconds / 50)
        await all_ended(database_url, seconds=60)

    assert await rows(pool, SENT) == [("COMPLETED", 1, 3000)]
    p95 = await value(
        pool,
        "select percentile_cont(0.95) within group ("
        " order by extract(epoch from started_at - created_at))"
        " from command_bus_command where command_type = 'New'",
    )
    assert p95 <= 2
    await assert_books_balance(pool)


def release_before(migration: str) -> str:
    """The commit before the one that added *migration*; skips where the history is not here."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    found = subprocess.run(
        [git, "log", "-1", "--diff-filter=A", "--format=%P", "--", f"migrations/{migration}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode or not found.stdout.strip():
        pytest.skip("the history of the repository is not here")
    return found.stdout.split()[0]


@pytest.fixture(params=["V017__headers_and_causes.sql", "the newest"])
def old_root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The code of a release before, unpacked."""
    newest = max(path.name for path in (ROOT / "migrations").glob("V*.sql"))
    commit = release_before(newest if request.param == "the newest" else request.param)
    root = tmp_path / "release"
    root.mkdir()
    archive = tmp_path / "release.tar"
    subprocess.run(["git", "archive", "-o", archive, commit], cwd=ROOT, check=True)
    shutil.unpack_archive(archive, root, filter="data")
    return root


def set_up_with(root: Path, url: str) -> None:
    """Migrate a database with the code in *root*."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"from commandbus.migrating import setup_database; setup_database({url!r})",
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )


async def test_the_schema_is_upgraded_under_old_workers_that_are_full_of_work(
    empty_database_url: str, old_root: Path
) -> None:
    url = empty_database_url
    await asyncio.to_thread(set_up_with, old_root, url)
    upgraded = asyncio.Event()
    total = 0

    async def keep_sending() -> None:
        """As a program of either release sends, until a moment after the upgrade."""
        nonlocal total
        rounds_left = scaled(20, 200)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            while rounds_left:
                rounds_left -= upgraded.is_set()
                commands = [
                    {"command_id": str(uuid4()), "command_type": "Old", "data": {"ms": 5}}
                    for _ in range(50)
                ]
                await conn.execute(
                    "select command_bus.send_commands('test', %s::jsonb)", (json.dumps(commands),)
                )
                total += len(commands)
                await asyncio.sleep(0.05)

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute("select command_bus.create_domain('test')")
    async with fleet() as start:
        old = [await start(old_root, url, ["Old"], batch_size=50, concurrency=8) for _ in range(2)]
        sending = asyncio.create_task(keep_sending())
        await asyncio.sleep(1)
        await asyncio.to_thread(prepare, url, on_step=lambda _: None)
        upgraded.set()
        new = await start(ROOT, url, ["Old", "New"], batch_size=50, concurrency=8)
        await sending
        assert [await worker.stop() for worker in old] == [0, 0]
        await all_ended(url, seconds=60)
        assert await new.stop() == 0

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        assert await (await conn.execute(SENT)).fetchall() == [("COMPLETED", 1, total)]
        found = await conn.execute("select * from command_bus.find_violations()")
        assert await found.fetchall() == []
