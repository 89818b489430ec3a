"""No request waits without bound: the server itself ends what takes too long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from app import create_app
from app.errors import PROBLEM_TYPE
from app.models import db
from app.portal import current_portal
from commandbus.store import autocommit
from tests.integration.api.conftest import got

LIMITS = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "1min",
}
COMMANDS, CONFIG = "/api/v1/commands", "/api/v1/config"


@pytest.fixture
def make_client(database_url: str, tmp_path: Path) -> Iterator[Any]:
    """Clients of applications whose connections have limits of their own, as the URI allows."""
    made: list[Flask] = []

    def make(options: str) -> FlaskClient:
        join = "&" if "?" in database_url else "?"
        url = f"{database_url}{join}options={options.replace(' ', '%20').replace('=', '%3D')}"
        app = create_app({"database_url": url, "data_dir": tmp_path, "secret_key": "for tests"})
        made.append(app)
        return app.test_client()

    yield make
    for app in made:
        with app.app_context():
            db.session.remove()
            db.engine.dispose()
        app.extensions["portal"].close()


def test_what_pages_and_api_read_with_is_limited(app: Flask) -> None:
    with app.app_context():
        found = {
            name: db.session.execute(sa.text("select current_setting(:name)"), {"name": name})
            for name in LIMITS
        }

        assert {name: result.scalar_one() for name, result in found.items()} == LIMITS


def test_what_pages_and_api_act_with_is_limited(app: Flask) -> None:
    async def settings() -> dict[str, str]:
        async with autocommit(pool) as conn:
            return {name: await setting(conn, name) for name in LIMITS}

    async def setting(conn: psycopg.AsyncConnection[TupleRow], name: str) -> str:
        row = await (await conn.execute("select current_setting(%s)", (name,))).fetchone()
        assert row is not None
        return str(row[0])

    with app.app_context():
        pool = current_portal().pool
        assert current_portal().call(settings) == LIMITS


@pytest.mark.parametrize(
    ("path", "table"), [(COMMANDS, "command_bus_command"), (CONFIG, "app_config")]
)
@pytest.mark.parametrize(
    ("options", "status"), [("-c statement_timeout=300ms", 504), ("-c lock_timeout=300ms", 503)]
)
def test_the_server_ends_what_waits_too_long_and_the_caller_is_told(
    make_client: Any,
    conn: psycopg.Connection[TupleRow],
    path: str,
    table: str,
    options: str,
    status: int,
) -> None:
    client = make_client(options)
    assert client.get(path).status_code == 200
    with conn.transaction():
        conn.execute(f"lock table {table}".encode())
        answer = client.get(path)

    assert (answer.status_code, answer.mimetype) == (status, PROBLEM_TYPE)
    assert int(answer.headers["Retry-After"]) > 0
    assert got(answer)["code"] == {504: "timeout", 503: "locked"}[status]
    assert client.get(path).status_code == 200
