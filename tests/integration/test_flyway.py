"""Flyway itself, by its Maven plugin and this project's flyway.conf, agrees with our runner.

Needs Maven, Java and the packages of Maven Central; elsewhere each test says why it is skipped.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.rows import TupleRow

from app.settings.configuration import PROJECT_ROOT
from commandbus.migrating import (
    connect,
    install_pgmq,
    migrate,
    migration_lock,
    migrations_folder,
    validate,
)
from commandbus.migrating.files import read_migrations
from tests.chaos.proxy import Proxy

POM = Path(__file__).parent / "flyway" / "pom.xml"
CONFIGURATION = PROJECT_ROOT / "flyway.conf"
MIGRATIONS_FOLDER = migrations_folder()
SECONDS = 170
# What Maven says where it can neither fetch a package nor has it from an earlier run.
NOT_REACHED = ("PluginResolutionException", "Could not transfer artifact")


def maven(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["mvn", "--batch-mode", "--no-transfer-progress", f"--file={POM}", *arguments]
    return subprocess.run(
        command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def last_error(run: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in run.stdout.splitlines() if line.startswith("[ERROR]")]
    return errors[0] if errors else run.stdout[-500:] + run.stderr[-500:]


@pytest.fixture(scope="module")
def over_tcp() -> Iterator[Callable[[str], str]]:
    """Gives a database's URI a TCP address: Java knows no Unix socket, which is all that the
    embedded server listens on.
    """
    if shutil.which("mvn") is None:
        pytest.skip("Flyway is not tried: Maven (mvn) is not installed")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxies: list[Proxy] = []

    def through_proxy(url: str) -> str:
        proxy = Proxy(url)
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)
        proxies.append(proxy)
        return proxy.url

    yield through_proxy
    for proxy in proxies:
        asyncio.run_coroutine_threadsafe(proxy.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def conn(empty_database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection to a database that has PGMQ and no migration."""
    with connect(empty_database_url) as opened:
        with migration_lock(opened):
            install_pgmq(opened)
        yield opened


@pytest.fixture
def flyway(
    conn: psycopg.Connection[TupleRow], empty_database_url: str, over_tcp: Callable[[str], str]
) -> Callable[..., str]:
    """Runs goals of Flyway on the test's database and gives what it printed."""
    address = urlsplit(over_tcp(empty_database_url))

    def run(*goals: str, folder: Path = MIGRATIONS_FOLDER) -> str:
        done = maven(
            *(f"flyway:{goal}" for goal in goals),
            f"-Dflyway.configFiles={CONFIGURATION}",
            f"-Dflyway.url=jdbc:postgresql://{address.hostname}:{address.port}{address.path}"
            "?sslmode=disable&gssEncMode=disable",
            f"-Dflyway.user={address.username or conn.info.user}",
            f"-Dflyway.password={conn.info.password or 'none'}",
            f"-Dflyway.locations=filesystem:{folder}",
        )
        if any(sign in done.stdout for sign in NOT_REACHED):
            pytest.skip(f"Flyway is not tried: Maven Central is out of reach: {last_error(done)}")
        assert done.returncode == 0, last_error(done)
        return done.stdout

    return run


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A folder with the first half of the project's versions and nothing repeatable."""
    versions = sorted(MIGRATIONS_FOLDER.glob("V*.sql"))
    for file in versions[: len(versions) // 2]:
        shutil.copy(file, tmp_path)
    return tmp_path


def history(conn: psycopg.Connection[TupleRow]) -> set[tuple[object, ...]]:
    rows = conn.execute(
        "select version, description, type, script, checksum, success"
        " from public.flyway_schema_history"
    ).fetchall()
    return set(rows)


def test_flyway_migrates_an_empty_database_to_what_our_runner_calls_complete(
    flyway: Callable[..., str], conn: psycopg.Connection[TupleRow]
) -> None:
    flyway("migrate", "validate")

    validate(conn)
    assert history(conn) == {
        (file.version, file.description, "SQL", file.script, file.checksum, True)
        for file in read_migrations(MIGRATIONS_FOLDER)
    }
    conn.execute("select command_bus.create_domain('flyway')")


def test_flyway_continues_where_our_runner_stopped(
    flyway: Callable[..., str], conn: psycopg.Connection[TupleRow], half: Path
) -> None:
    with migration_lock(conn):
        migrate(conn, half)

    flyway("migrate", "validate")

    validate(conn)


def test_our_runner_continues_where_flyway_stopped_and_flyway_accepts_the_whole(
    flyway: Callable[..., str], conn: psycopg.Connection[TupleRow], half: Path
) -> None:
    flyway("migrate", folder=half)
    with migration_lock(conn):
        migrate(conn)
    before = history(conn)

    printed = flyway("validate", "migrate")

    assert "No migration necessary" in printed
    assert history(conn) == before
