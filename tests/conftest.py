"""What every test may use: a server, a database of its own, a pool on its loop.

The server is the one of TEST_DATABASE_URL, else of DATABASE_URL (environment or .env); its role
must be allowed to create databases, and PGMQ in them. Without either it is an embedded server in a
temporary folder that all parallel test processes share.
One database is migrated for the whole run; each test that asks for a database gets a copy.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.database.embedded import EmbeddedServer
from app.database.opening import prepare
from app.database.urls import with_database
from app.settings.configuration import Settings

SERVER_VARIABLE = "TEST_DATABASE_URL"
# Names what belongs to this run; the processes that xdist starts inherit it.
RUN_VARIABLE = "COMMANDBUS_TEST_RUN"
# What the run's server may need: a few databases at a time, and the log of their changes.
MEMORY_BYTES = 4 * 1024**3
_ADVISORY_LOCK = int.from_bytes(b"tests")


# The tests of requirements.txt alone are those that need none of these (requirements-dev.txt).
DEVELOPMENT_PACKAGES = (
    "axe_playwright_python", "hypothesis", "playwright", "requests", "schemathesis",
)  # fmt: skip
_MISSING = [name for name in DEVELOPMENT_PACKAGES if importlib.util.find_spec(name) is None]
_NEEDS_MISSING = re.compile(rf"^(?:import|from) (?:{'|'.join(_MISSING)})\b", re.MULTILINE)
_not_collected: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """What pytest-timeout adds is known without it, too, so that the settings hold for both."""
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "what pytest-timeout would take as its default")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        # A run that a test starts has a server of its own, and takes only that away at its end.
        os.environ[RUN_VARIABLE] = uuid4().hex[:12]
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): for pytest-timeout, if it is there")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More processes than cores: tests wait for leases, browsers and programs most of the time."""
    return 2 * (os.cpu_count() or 1) + 1


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot be imported here; the end of the run tells of it."""
    if not _MISSING:
        return None
    # What a folder's conftest.py needs, all of its tests do.
    file = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    if file.suffix != ".py" or not file.is_file() or not _NEEDS_MISSING.search(file.read_text()):
        return None
    _not_collected.append(str(collection_path.relative_to(Path(__file__).parent.parent)))
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, and why."""
    if _not_collected:
        terminalreporter.write_line(
            f"Not collected, as {', '.join(_MISSING)} of requirements-dev.txt are missing:"
            f" {', '.join(sorted(_not_collected))}"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A server that outlives the run keeps nothing of it, and neither does the disk."""
    if hasattr(session.config, "workerinput"):
        return
    server_url = given_server()
    if server_url is not None:
        with _administer(server_url) as conn:
            _drop(conn, template_name())
    shutil.rmtree(server_home(), ignore_errors=True)


def given_server() -> str | None:
    """The server that the environment names, or None."""
    return os.environ.get(SERVER_VARIABLE) or Settings.from_env().database_url


def server_home() -> Path:
    """Where the run's embedded server lives: not below pytest's folder for temporary files, which
    each new run closes to the user that the server runs as when root tests.

    In memory where there is room: ext4 keeps clear of what was deleted in the last seconds, and to
    find other room for the 450 files of the next database takes it 0.2 s.
    """
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_BYTES
    folder = memory if has_room else Path(tempfile.gettempdir())
    return folder / f"commandbus-tests-{os.environ[RUN_VARIABLE]}"


def template_name() -> str:
    """The migrated database of this run, of which each test's is a copy."""
    return f"test_{os.environ[RUN_VARIABLE]}_template"


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URI of the server's maintenance database."""
    given = given_server()
    if given is not None:
        yield with_database(given, "postgres")
        return
    with EmbeddedServer(server_home()) as server:
        url = server.url("postgres")
        with _administer(url) as conn:
            # What a crash of the machine would cost is only the test run.
            conn.execute("alter system set fsync = off")
            conn.execute("alter system set full_page_writes = off")
            conn.execute("alter system set max_wal_size = '1GB'")
            conn.execute("select pg_reload_conf()")
        yield url


@pytest.fixture(scope="session")
def template_database(server_url: str) -> str:
    """The name of a database with PGMQ and all migrations, made once for all test processes."""
    name = template_name()
    unfinished = f"{name}_unfinished"
    with _administer(server_url) as conn:
        conn.execute("select pg_advisory_lock(%s)", (_ADVISORY_LOCK,))
        found = conn.execute("select 1 from pg_database where datname = %s", (name,)).fetchone()
        if found is None:
            _drop(conn, unfinished)
            prepare(with_database(server_url, unfinished), on_step=_say_nothing)
            conn.execute(
                sql.SQL("alter database {} rename to {}").format(
                    sql.Identifier(unfinished), sql.Identifier(name)
                )
            )
    return name


@pytest.fixture
def make_database(server_url: str) -> Iterator[Callable[[str], str]]:
    """Makes databases, each a copy of the database that it is given; all go after the test."""
    with databases(server_url) as make:
        yield make


@pytest.fixture(scope="session")
def shared_database_url(server_url: str, template_database: str) -> Iterator[str]:
    """The URI of a migrated database for tests that only look at it."""
    with databases(server_url) as make:
        yield make(template_database)


@contextmanager
def databases(server_url: str) -> Iterator[Callable[[str], str]]:
    """Makes copies of databases, and drops them at the end."""
    made: list[str] = []

    def make(template: str) -> str:
        name = f"test_{os.environ[RUN_VARIABLE]}_{uuid4().hex[:12]}"
        made.append(name)
        with _administer(server_url) as conn:
            # Copying files costs a fifth of copying through the log, but flushes everybody's pages.
            is_safe = conn.execute("show fsync").fetchone() != ("off",)
            conn.execute(
                sql.SQL("create database {} template {} strategy {}").format(
                    sql.Identifier(name),
                    sql.Identifier(template),
                    sql.SQL("wal_log" if is_safe else "file_copy"),
                )
            )
        return with_database(server_url, name)

    yield make
    with _administer(server_url) as conn:
        for name in made:
            _drop(conn, name)


@pytest.fixture
def database_url(make_database: Callable[[str], str], template_database: str) -> str:
    """The URI of a migrated database that only this test uses."""
    return make_database(template_database)


@pytest.fixture
def empty_database_url(make_database: Callable[[str], str]) -> str:
    """The URI of a database with nothing in it, that only this test uses."""
    return make_database("template0")


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[AsyncConnectionPool[AsyncConnection[TupleRow]]]:
    """An open pool on the test's own loop and database."""
    async with AsyncConnectionPool(
        database_url,
        connection_class=AsyncConnection[TupleRow],
        min_size=1,
        max_size=10,
        open=False,
    ) as opened:
        yield opened


def _administer(server_url: str) -> psycopg.Connection[TupleRow]:
    return psycopg.connect(server_url, autocommit=True)


def _drop(conn: psycopg.Connection[TupleRow], name: str) -> None:
    conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def _say_nothing(_: str) -> None:
    """Nobody listens to the steps of the preparation."""
