"""Connection URIs keep their meaning for psycopg and SQLAlchemy, and are shown without password."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import make_url

from app.database import DatabaseError
from app.database.urls import (
    DEFAULT_DATABASE,
    build_url,
    database_name,
    parameters,
    socket_url,
    sqlalchemy_url,
    with_database,
    without_password,
)
from app.settings.configuration import PROJECT_ROOT, ConfigurationError, Settings

URLS = [
    "postgresql://localhost/db",
    "postgresql://user:p%40ss%2Fw%3Ard%25@db.example.org:6432/my%20db?sslmode=require",
    "postgresql://user@[::1]:5433/db",
    "postgresql://user@/db?host=%2Fvar%2Frun%2Fgr%C3%BC%C3%9Fe%20x&port=5432",
    "postgresql://user@one:5432,two:5433/db?target_session_attrs=any",
    "postgresql://u:p@db1,db2/bus?target_session_attrs=read-write",
    "postgresql://u:p@db1,db2:6432/bus",
    "postgresql://h/db?user=me@corp",
    "host='/x y,/z' dbname='a b' user=u password='it\\'s'",
    "service=bus",
]


@pytest.mark.parametrize("url", URLS)
def test_a_rebuilt_url_means_the_same(url: str) -> None:
    assert conninfo_to_dict(build_url(parameters(url))) == conninfo_to_dict(url)


@pytest.mark.parametrize("url", URLS)
def test_sqlalchemy_connects_to_the_same_database(url: str) -> None:
    dialect = PGDialect_psycopg()
    arguments, options = dialect.create_connect_args(make_url(sqlalchemy_url(url)))

    given = {name: str(value) for name, value in options.items() if name != "context"}
    expected = parameters(url)
    if "," in expected.get("host", ""):  # it wants a port for each host
        ports = expected.get("port", ",").split(",")
        expected["port"] = ",".join(port or "5432" for port in ports)
    assert arguments == []
    assert given == expected


def test_another_database_of_the_same_server() -> None:
    assert with_database("postgresql://u:p@h:1/a", "b c") == "postgresql://u:p@h:1/b%20c"


def test_a_shown_database_url_hides_the_password() -> None:
    assert without_password("postgresql://u:hunter2@h:1/a") == "postgresql://u:***@h:1/a"
    assert without_password("postgresql://h/a?user=u&password=hunter2") == "postgresql://u:***@h/a"
    for url in (
        "host=h user=u password=hunter2 sslpassword=hunter2",
        "service=bus password=hunter2",
        "postgresql://u:hunter2@one,two/a?sslpassword=hunter2",
    ):
        assert "hunter2" not in without_password(url)
        assert "***" in without_password(url)


def test_a_socket_in_any_folder_has_a_url() -> None:
    folder = Path("/tmp/grüße, welt?&=#%41/pg")

    assert parameters(socket_url(folder, 5432))["host"] == str(folder)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("postgresql+asyncpg://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgres+psycopg://h/db", "postgres://h/db"),
        ("postgresql://one,two/db", "postgresql://one,two/db"),
        ("host=/run/x dbname=db", "host=/run/x dbname=db"),
        ("service=bus", "service=bus"),
    ],
)
def test_what_libpq_takes_is_taken_from_the_environment(given: str, taken: str) -> None:
    assert Settings.from_env({"DATABASE_URL": given}, env_file=None).database_url == taken
    assert Settings(database_url=given).database_url == taken


@pytest.mark.parametrize(
    "given", ["mysql://h/db", "nothing", "colour=red", "host=h dbname", "x=y://h"]
)
def test_what_libpq_does_not_take_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_env({"DATABASE_URL": given}, env_file=None)

    assert given not in str(refused.value).replace("host=localhost dbname=commandbus_e2e", "")


def test_a_service_file_or_the_environment_may_name_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert database_name("service=bus") == ""
    monkeypatch.setenv("PGDATABASE", "bus")
    assert database_name("host=h") == "bus"
    monkeypatch.delenv("PGDATABASE")
    with pytest.raises(DatabaseError, match="names no database"):
        database_name("host=h")


def test_flyway_is_told_the_default_database() -> None:
    lines = (PROJECT_ROOT / "flyway.conf").read_text().splitlines()

    assert f"flyway.url=jdbc:postgresql://localhost:5432/{DEFAULT_DATABASE}" in lines
