"""`python -m app.database` does what it says, and says in one line what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from app.database import DatabaseError
from app.database.embedded import EmbeddedServer
from app.database.urls import build_url, parameters, with_database
from commandbus.migrating import connect, setup

PROJECT_ROOT = Path(__file__).parents[2]
PASSWORD = "s3cret/§"


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A DATA_DIR; no server is left on it after the test."""
    yield tmp_path / "data"
    EmbeddedServer(tmp_path / "data").stop(force=True)


@pytest.fixture
def limited_role(server_url: str) -> Iterator[str]:
    """A role that may log in with PASSWORD, and nothing else."""
    name = f"test_limited_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(
            sql.SQL("create role {} login password {}").format(sql.Identifier(name), PASSWORD)
        )
        yield name
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def as_role(url: str, role: str, password: str = PASSWORD) -> str:
    return build_url({**parameters(url), "user": role, "password": password})


def start(*arguments: str, data_dir: Path | None = None, url: str = "") -> subprocess.Popen[str]:
    # Waiting is tested in test_starting_server.py.
    environment = {**os.environ, "DATABASE_URL": url, "DATABASE_WAIT": "0"}
    if data_dir is not None:
        environment["DATA_DIR"] = str(data_dir)
    return subprocess.Popen(
        [sys.executable, "-m", "app.database", *arguments],
        cwd=PROJECT_ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, data_dir: Path | None = None, url: str = "") -> str:
    """What the command prints; it must succeed."""
    process = start(*arguments, data_dir=data_dir, url=url)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), err
    return out


def refusal(*arguments: str, data_dir: Path | None = None, url: str = "") -> str:
    """The one line with which the command fails."""
    process = start(*arguments, data_dir=data_dir, url=url)
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert PASSWORD not in err
    return err


def test_help_names_every_command() -> None:
    out = run("--help")

    for command in ("migrate", "status", "validate", "url", "install-pgmq", "stop"):
        assert f"\n    {command}" in out


def test_migrate_prepares_the_embedded_database_and_says_so(data_dir: Path) -> None:
    first = run("migrate", data_dir=data_dir)
    second = run("migrate", data_dir=data_dir)

    assert "Created database commandbus_e2e\n" in first
    assert "Installed PGMQ " in first
    assert "Applied V001__commandbus_schema.sql in " in first
    assert second.startswith("Migrations are up to date\nReady: postgresql://")


def test_after_migrate_the_embedded_database_can_be_looked_at_until_stop(data_dir: Path) -> None:
    assert "keeps running; `python -m app.database stop` ends it" in run(
        "migrate", data_dir=data_dir
    )

    with psycopg.connect(run("url", data_dir=data_dir).strip()) as conn:
        assert conn.execute("select count(*) from test_command").fetchone() == (0,)
    assert "commandbus schema                        applied" in run("status", data_dir=data_dir)
    assert run("stop", data_dir=data_dir) == "The embedded server is stopped\n"
    assert EmbeddedServer(data_dir).running() is None


def test_a_server_left_running_ends_with_the_next_that_uses_it(data_dir: Path) -> None:
    run("migrate", data_dir=data_dir)

    run("validate", data_dir=data_dir)

    assert EmbeddedServer(data_dir).running() is None


def test_two_that_migrate_at_once_do_no_harm(data_dir: Path) -> None:
    both = [start("migrate", data_dir=data_dir) for _ in range(2)]
    outs = [process.communicate() for process in both]

    assert [process.returncode for process in both] == [0, 0], outs
    created = [out for out, _ in outs if "Created database" in out]
    assert len(created) == 1
    assert run("validate", data_dir=data_dir) == "The database is what migrations/ says\n"


def test_status_and_url_start_no_server(data_dir: Path) -> None:
    status = run("status", data_dir=data_dir)
    url = start("url", data_dir=data_dir)
    out, err = url.communicate()

    assert status == f"The embedded server is stopped; its data is in {data_dir / 'pg'}\n"
    assert (out, err) == (
        f"{EmbeddedServer(data_dir).url()}\n",
        "The embedded server is not running now; `python -m app.database migrate` starts it\n",
    )
    assert run("stop", data_dir=data_dir) == "The embedded server was not running\n"
    assert not data_dir.exists()


def test_stop_asks_before_it_stops_a_server_in_use(data_dir: Path) -> None:
    with EmbeddedServer(data_dir) as server:
        assert "in use by another process" in refusal("stop", data_dir=data_dir)
        url = run("url", data_dir=data_dir).strip()
        with psycopg.connect(with_database(url, "postgres")) as conn:
            assert conn.execute("select 1").fetchone() == (1,)

        assert run("stop", "--force", data_dir=data_dir) == "The embedded server is stopped\n"
        assert server.running() is None


def test_status_tells_how_each_migration_stands(database_url: str) -> None:
    out = run("status", url=database_url)

    assert "PGMQ: " in out
    assert "PGMQ: not installed" not in out
    [line] = [line for line in out.splitlines() if "commandbus schema" in line]
    assert "applied" in line
    assert "pending" not in out


def test_a_missing_database_is_created_on_a_given_server(server_url: str) -> None:
    url = with_database(server_url, f"test_{uuid4().hex[:12]}")
    try:
        out = run("migrate", url=url)
        assert "Created database test_" in out
        assert run("validate", url=url) == "The database is what migrations/ says\n"
    finally:
        with psycopg.connect(server_url, autocommit=True) as conn:
            name = sql.Identifier(str(parameters(url)["dbname"]))
            conn.execute(sql.SQL("drop database if exists {} with (force)").format(name))


def test_pgmq_can_be_installed_before_flyway_comes(empty_database_url: str) -> None:
    assert run("install-pgmq", url=empty_database_url).startswith("Installed PGMQ ")
    assert run("install-pgmq", url=empty_database_url) == "PGMQ was there already\n"
    assert "Not applied yet: V001" in refusal("validate", url=empty_database_url)
    assert "Installed PGMQ" not in run("migrate", url=empty_database_url)


def test_a_given_server_is_not_ours_to_stop(database_url: str) -> None:
    assert "not ours to stop" in refusal("stop", url=database_url)


def test_an_unreachable_server_is_named_without_its_password() -> None:
    err = refusal("migrate", url="postgresql://me:s3cret%2F%C2%A7@127.0.0.1:9/db")

    assert "Cannot connect to postgresql://me:***@127.0.0.1:9/db" in err
    assert "s3cret" not in err


def test_a_wrong_password_is_reported_and_not_printed(data_dir: Path) -> None:
    with EmbeddedServer(data_dir) as server:
        url = server.url("postgres")
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("create role guest login password 'right'")
            (server.data_dir / "pg_hba.conf").write_text(
                "local all postgres trust\nlocal all all scram-sha-256\n"
            )
            conn.execute("select pg_reload_conf()")
        # The reload is not instant; the first refusal ends the waiting.
        for _ in range(500):
            try:
                psycopg.connect(as_role(url, "guest")).close()
            except psycopg.OperationalError:
                break
        err = refusal("migrate", url=as_role(url, "guest"))

    assert "password authentication failed" in err


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://localhost", "DATABASE_URL names no database"),
        ("postgresql://me:s3cret/§@localhost/db", "DATABASE_URL is not a valid PostgreSQL URI"),
        ("postgresql://me:12/s3cret@localhost/db", "DATABASE_URL is not a valid PostgreSQL URI"),
        ("mysql://me@localhost/db", "DATABASE_URL must be a PostgreSQL URI"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, reason: str) -> None:
    err = refusal("migrate", url=url)

    assert reason in err
    assert "s3cret" not in err


def test_a_role_that_cannot_create_the_database_gets_one_line(
    server_url: str, limited_role: str
) -> None:
    url = as_role(with_database(server_url, f"test_{uuid4().hex[:12]}"), limited_role)

    assert f"role {limited_role} may not create it" in refusal("migrate", url=url)


def test_a_role_that_cannot_install_pgmq_gets_one_line(
    empty_database_url: str, limited_role: str
) -> None:
    err = refusal("migrate", url=as_role(empty_database_url, limited_role))

    assert f"Role {limited_role} may not " in err
    assert "install-pgmq" in err


def test_a_role_that_cannot_migrate_gets_one_line(
    empty_database_url: str, limited_role: str
) -> None:
    run("install-pgmq", url=empty_database_url)

    assert "permission denied for schema public" in refusal(
        "migrate", url=as_role(empty_database_url, limited_role)
    )


def test_a_role_that_may_only_read_finds_nothing_to_do(
    database_url: str, limited_role: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("grant select on public.flyway_schema_history to public")

    out = run("migrate", url=as_role(database_url, limited_role))

    assert out.startswith("Migrations are up to date\n")


def test_an_old_server_is_refused(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "OLDEST_SERVER", 990000)

    with pytest.raises(DatabaseError, match="99 or newer is needed"), connect(server_url):
        pass


def test_a_database_that_is_not_utf8_is_refused(server_url: str) -> None:
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(
            sql.SQL(
                "create database {} template template0 encoding 'SQL_ASCII'"
                " lc_collate 'C' lc_ctype 'C' locale_provider libc"
            ).format(sql.Identifier(name))
        )
        try:
            err = refusal("migrate", url=with_database(server_url, name))
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    assert "is encoded in SQL_ASCII; UTF8 is needed" in err


def test_a_schema_pgmq_without_pgmq_is_refused(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("create schema pgmq")

    assert "has a schema pgmq without PGMQ in it" in refusal("migrate", url=empty_database_url)


def test_preparing_a_database_loads_no_web_framework(database_url: str) -> None:
    program = """
import sys
from app.settings.configuration import Settings
from app.database import open_database

open_database(Settings.from_env()).close()
print([name for name in ("flask", "sqlalchemy", "jinja2", "pgmq") if name in sys.modules])
"""

    out = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT_ROOT,
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert out == "[]\n"
