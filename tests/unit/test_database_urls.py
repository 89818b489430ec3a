"""Connection URIs keep their meaning for psycopg and SQLAlchemy, and are shown without password."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import make_url

from app.database.urls import (
    build_url,
    parameters,
    socket_url,
    sqlalchemy_url,
    with_database,
    without_password,
)

URLS = [
    "postgresql://localhost/db",
    "postgresql://user:p%40ss%2Fw%3Ard%25@db.example.org:6432/my%20db?sslmode=require",
    "postgresql://user@[::1]:5433/db",
    "postgresql://user@/db?host=%2Fvar%2Frun%2Fgr%C3%BC%C3%9Fe%20x&port=5432",
    "postgresql://user@one:5432,two:5433/db?target_session_attrs=any",
]


@pytest.mark.parametrize("url", URLS)
def test_a_rebuilt_url_means_the_same(url: str) -> None:
    assert conninfo_to_dict(build_url(parameters(url))) == conninfo_to_dict(url)


@pytest.mark.parametrize("url", URLS[:4])
def test_sqlalchemy_connects_to_the_same(url: str) -> None:
    dialect = PGDialect_psycopg()
    arguments, options = dialect.create_connect_args(make_url(sqlalchemy_url(url)))

    given = {name: str(value) for name, value in options.items() if name != "context"}
    assert arguments == []
    assert given == parameters(url)


def test_another_database_of_the_same_server() -> None:
    assert with_database("postgresql://u:p@h:1/a", "b c") == "postgresql://u:p@h:1/b%20c"


def test_the_password_is_not_shown() -> None:
    assert without_password("postgresql://u:hunter2@h:1/a") == "postgresql://u:***@h:1/a"
    assert without_password("postgresql://h/a?user=u&password=hunter2") == "postgresql://u:***@h/a"


def test_a_socket_in_any_folder_has_a_url() -> None:
    folder = Path("/tmp/grüße, welt?&=#%41/pg")

    assert parameters(socket_url(folder, 5432))["host"] == str(folder)
