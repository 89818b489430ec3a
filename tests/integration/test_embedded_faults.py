"""The embedded database survives killed programs, several users at once, and a full disk."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.database import guard
from app.database.account import Account
from app.database.embedded import EmbeddedServer
from app.database.postmaster import server_processes
from app.loadtest.generating import BulkOrder, generate
from tests.chaos.conftest import LONG, scaled
from tests.e2e.served import Served
from tests.programs import Program, free_port, program
from tests.waiting import eventually, until

RESTART_SECONDS = 60.0
COMMAND = {"behavior": {"type": "success"}}
# Each of these lines is a moment at which everything so far may end.
MOMENTS = (
    "database_initializing",
    "database_starting",
    "Created database",
    "Installed PGMQ",
    "Applied V001",
    "Applied V003",
    "is ready",
    "worker_started",
    "command_completed",
)
# The short form leaves these out.
LIKE_OTHERS = ("database_starting", "Installed PGMQ", "Applied V003")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A DATA_DIR with spaces, letters beyond ASCII and a long path."""
    folder = tmp_path / "my data, grüße" / ("日" * 30 + "x" * 40)
    yield folder
    EmbeddedServer(folder).stop(force=True)


@asynccontextmanager
async def application(home: Path) -> AsyncIterator[Served]:
    """`python run.py --worker` on the embedded database; gone after, whatever became of it."""
    port = free_port()
    async with program(
        *("run.py", "--worker", "--port", str(port)),
        DATABASE_URL="",
        DATA_DIR=str(home),
        WORKER_VISIBILITY_TIMEOUT="2",
        LOG_LEVEL="DEBUG",  # a line for each command that was completed
    ) as running:
        yield Served(running, port)


async def send(served: Served) -> str:
    """Send a command; its id, once that is acknowledged."""
    answer = await served.post("/api/v1/commands", COMMAND)
    return str(answer["command_id"])


async def came(running: Program, moment: str) -> None:
    """Wait for *moment*, or for the end of a start in which it does not come again."""
    lines = (moment, "worker_started" if moment != "command_completed" else moment)

    async def seen() -> bool:
        return any(text in running.output for text in lines)

    async def is_over() -> bool:
        return running.process.returncode is not None or await seen()

    await eventually(is_over, seconds=RESTART_SECONDS)
    assert await seen(), f"it ended before {moment!r}:\n{running.output}"


def unfinished_in(home: Path) -> list[Path]:
    """What is left of data that was never whole."""
    return list(home.glob("pg.unfinished*"))


def kill(running: Program, *, with_workers: bool) -> None:
    """SIGKILL the web server, and all that it has started."""
    victims = [psutil.Process(running.pid)]
    if with_workers:
        victims += victims[0].children(recursive=True)
    _kill_all(victims)


def kill_server(home: Path) -> None:
    """SIGKILL every process of the database."""
    _kill_all(server_processes(Path(os.path.realpath(home)) / "pg"))


def _kill_all(victims: Iterable[psutil.Process]) -> None:
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()


@pytest.mark.timeout(scaled(180, 3_600))
async def test_an_application_killed_at_any_moment_restarts_with_its_data(home: Path):
    chance = random.Random(16)
    acknowledged: list[str] = []

    moments = [each for each in MOMENTS if each not in LIKE_OTHERS]
    for number, moment in enumerate(MOMENTS * 20 if LONG else moments):
        async with application(home) as served:
            if moment == "command_completed":
                await served.running.says("is ready")
                acknowledged += [await send(served) for _ in range(20)]
            await came(served.running, moment)
            # The fault strikes a little later, wherever that is.
            await asyncio.sleep(chance.random() / 20)
            kill(served.running, with_workers=number % 3 > 0)
            if number % 3 == 2:
                kill_server(home)

    began = time.monotonic()
    async with application(home) as served:
        await served.running.says("is ready")
        assert time.monotonic() - began < RESTART_SECONDS
        acknowledged.append(await send(served))

        async def open_commands() -> list[str]:
            found = [await served.get(f"/api/v1/commands/{each}") for each in acknowledged]
            return [each["status"] for each in found if each["status"] != "COMPLETED"]

        await eventually(open_commands, lambda left: left == [], seconds=60)
        assert (await served.get("/api/v1/commands"))["total"] == len(acknowledged)
        assert (await served.get("/api/v1/invariants"))["violations_count"] == 0
        served.running.process.send_signal(signal.SIGINT)
        assert await served.running.ends() == 0
    assert EmbeddedServer(home).running() is None
    assert unfinished_in(home) == []


async def test_two_applications_at_once_share_one_database(home: Path):
    async with application(home) as first, application(home) as second:
        await first.running.says("is ready")
        await second.running.says("is ready")
        sent = await send(first)
        assert (await second.get(f"/api/v1/commands/{sent}"))["command_id"] == sent

        kill(first.running, with_workers=True)
        await first.running.ends()
        assert (await second.get(f"/api/v1/commands/{sent}"))["command_id"] == sent
        await send(second)
        second.running.process.send_signal(signal.SIGINT)
        assert await second.running.ends() == 0
    assert EmbeddedServer(home).running() is None


async def test_a_server_whose_user_was_killed_while_starting_it_is_joined(home: Path):
    async with application(home) as served:
        await served.running.says("database_starting")
        kill(served.running, with_workers=True)
        await served.running.ends()

    with EmbeddedServer(home) as server:
        postmaster = server.running()
        assert postmaster is not None
        with psycopg.connect(server.url("postgres")) as conn:
            assert conn.execute("select 1").fetchone() == (1,)


async def test_a_server_that_dies_under_the_application_is_started_again(home: Path):
    async with application(home) as served:
        await served.running.says("worker_started")
        acknowledged = [await send(served) for _ in range(5)]
        postmaster = EmbeddedServer(home).running()
        assert postmaster is not None

        os.kill(postmaster.pid, signal.SIGKILL)

        await served.running.says("database_restarted")

        async def sent() -> bool:
            status, answer = await served.request("POST", "/api/v1/commands", COMMAND)
            if status == 201:
                acknowledged.append(answer["command_id"])
            return status == 201

        await eventually(sent)

        async def open_commands() -> list[str]:
            found = [await served.get(f"/api/v1/commands/{each}") for each in acknowledged]
            return [each["status"] for each in found if each["status"] != "COMPLETED"]

        await eventually(open_commands, lambda left: left == [], seconds=30)
        assert (await served.get("/api/v1/invariants"))["violations_count"] == 0
        assert sum("database_died" in line for line in served.running.lines) == 1


async def test_a_server_that_dies_under_a_worker_alone_is_started_again(home: Path):
    given = {"DATABASE_URL": "", "DATA_DIR": str(home), "LOG_LEVEL": "DEBUG"}
    async with program("-m", "app.worker", **given) as worker:
        await worker.says("worker_started")
        kill_server(home)
        await worker.says("database_restarted")

        async with AsyncConnectionPool(
            EmbeddedServer(home).url(), connection_class=AsyncConnection[TupleRow], open=False
        ) as pool:
            await generate(pool, BulkOrder(count=1))

        await worker.says("command_completed")


async def test_a_server_that_cannot_start_again_is_tried_until_it_can(home, caplog, monkeypatch):
    monkeypatch.setattr(guard, "AGAIN_SECONDS", 0.1)
    with EmbeddedServer(home) as server, guard.ServerGuard(server):
        needed = server.data_dir / "global" / "pg_control"
        aside = needed.with_name("pg_control.aside")
        needed.rename(aside)
        kill_server(home)
        await until(lambda: "database_not_restarted" in caplog.messages, seconds=30)
        assert server.running() is None

        aside.rename(needed)

        await until(lambda: "database_restarted" in caplog.messages, seconds=30)
        with psycopg.connect(server.url("postgres")) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert caplog.messages.count("database_died") == 1
    told = [record for record in caplog.records if record.message == "database_not_restarted"]
    assert "pg_control" in told[0].error


async def test_whatever_keeps_a_server_from_starting_it_is_tried_again(home, caplog, monkeypatch):
    monkeypatch.setattr(guard, "AGAIN_SECONDS", 0.1)

    def cannot_fork(_: Account, command: list[str], **__: object) -> object:
        return subprocess.CompletedProcess(command, 2, "", "sh: 0: Cannot fork\n")

    async def told(reason: str) -> None:
        def was_told() -> bool:
            records = [each for each in caplog.records if each.message == "database_not_restarted"]
            return any(reason in record.error for record in records)

        await until(was_told, seconds=30)

    with EmbeddedServer(home) as server, guard.ServerGuard(server):
        version = server.data_dir / "PG_VERSION"
        aside = version.with_name("PG_VERSION.aside")
        version.rename(aside)
        version.mkdir()  # no file that can be read
        with monkeypatch.context() as scarce:
            scarce.setattr(Account, "run", cannot_fork)
            kill_server(home)
            await told("PG_VERSION")
            version.rmdir()
            aside.rename(version)
            await told("Cannot fork")

        await until(lambda: "database_restarted" in caplog.messages, seconds=30)
        with psycopg.connect(server.url("postgres")) as conn:
            assert conn.execute("select 1").fetchone() == (1,)


def test_a_server_that_was_stopped_under_its_users_stays_stopped(home: Path):
    died: list[bool] = []
    with EmbeddedServer(home) as server:
        EmbeddedServer(home).stop(force=True)

        assert not server.revive(on_death=lambda: died.append(True))
        assert server.running() is None
    assert died == []


class Disk:
    """A small disk of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Not one byte more can be written."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """What was filled is free again."""
        self._ballast.unlink()


@pytest.fixture
def make_disk() -> Iterator[object]:
    """Makes disks of so many megabytes; skips where this process may mount none."""
    mounted: list[Path] = []

    def make(megabytes: int) -> Disk:
        if os.geteuid() != 0:
            pytest.skip("mounting a small disk needs root")
        folder = Path(tempfile.mkdtemp(prefix="commandbus-disk-"))
        options = f"size={megabytes}m,mode=0755"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode != 0:
            folder.rmdir()
            pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
        mounted.append(folder)
        return Disk(folder)

    yield make
    for folder in mounted:
        EmbeddedServer(folder / "data").stop(force=True)
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


async def test_a_disk_too_small_for_the_database_is_named(make_disk):
    disk = make_disk(20)

    async with application(disk.folder / "data") as served:
        assert await served.running.ends() == 1

    assert f"the disk of {disk.folder}/data is full" in served.running.lines[-1]
    assert {path.name for path in (disk.folder / "data").iterdir()} == {"start.lock", "users.lock"}


async def test_a_disk_that_fills_up_is_named_and_costs_nothing(make_disk):
    disk = make_disk(160)
    home = disk.folder / "data"
    async with application(home) as served:
        await served.running.says("worker_started")
        acknowledged = [await send(served) for _ in range(10)]
        disk.fill()

        async def refused() -> dict[str, object] | None:
            body = {**COMMAND, "payload": {"text": "x" * 200_000}}
            status, answer = await served.request("POST", "/api/v1/commands", body)
            if status == 201:
                acknowledged.append(answer["command_id"])
                return None
            assert status == 503, answer
            return dict(answer)

        answer = await eventually(refused, seconds=60)
        assert answer is not None
        assert answer["code"] == "disk_full"
        assert "disk is full" in str(answer["detail"])
        kill(served.running, with_workers=True)
        kill_server(home)

    disk.free()
    async with application(home) as served:
        await served.running.says("is ready")
        acknowledged.append(await send(served))
        for each in acknowledged:
            assert (await served.get(f"/api/v1/commands/{each}"))["command_id"] == each
        assert (await served.get("/api/v1/invariants"))["violations_count"] == 0


async def test_a_start_on_a_full_disk_says_so(make_disk):
    disk = make_disk(120)
    home = disk.folder / "data"
    with EmbeddedServer(home) as server, psycopg.connect(server.url("postgres")) as conn:
        conn.execute("create table kept as select 1 as x")
    disk.fill()

    async with application(home) as served:
        await until(lambda: served.running.process.returncode is not None, seconds=60)
        assert await served.running.ends() == 1
    assert "full" in served.running.lines[-1] or "No space left" in served.running.lines[-1]

    disk.free()
    with EmbeddedServer(home) as server, psycopg.connect(server.url("postgres")) as conn:
        assert conn.execute("select x from kept").fetchone() == (1,)
