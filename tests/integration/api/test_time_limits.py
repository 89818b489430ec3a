"""No request waits without bound: the server itself ends what takes too long."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from app import create_app
from app.models import db
from app.server.breaker import ASKING
from app.server.errors import PROBLEM_TYPE
from app.server.portal import current_portal
from commandbus.store import autocommit
from tests.applications import close
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
        close(app)


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


def test_what_asks_no_database_is_answered_while_a_lock_holds_up_all_others(
    app: Flask, conn: psycopg.Connection[Any]
) -> None:
    app.test_client().get(COMMANDS)
    with ThreadPoolExecutor(24) as threads, conn.transaction():
        conn.execute("lock table command_bus_command")
        held_up = [threads.submit(app.test_client().get, COMMANDS) for _ in range(24)]
        # Those without a turn are answered first; the others wait for the lock meanwhile.
        answered = list(islice(as_completed(held_up), 24 - ASKING))
        live = app.test_client().get("/health/live")
        waiting = [each for each in held_up if not each.done()]
    assert live.status_code == 200
    assert {(each.result().status_code, got(each.result())["code"]) for each in answered} == {
        (503, "busy")
    }
    assert len(waiting) == ASKING
    assert {each.result().status_code for each in waiting} == {200}
    assert app.test_client().get(COMMANDS).status_code == 200


def test_a_read_only_database_is_read_and_says_so(
    database_url: str, conn: psycopg.Connection[Any], make_client: Any
) -> None:
    with_command = make_client("-c jit=off")
    sent = with_command.post(COMMANDS, json={"behavior": {"type": "success"}})
    read_only = make_client("-c default_transaction_read_only=on")
    for path in (
        *("/", "/commands", "/troubleshooting", "/troubleshooting?view=actions", "/load-tests"),
        *("/audit", "/workers", "/settings", "/invariants", COMMANDS, "/api/v1/stats"),
        *("/api/v1/stats/load-test", "/api/v1/load-tests", f"/commands/{got(sent)['command_id']}"),
    ):
        assert read_only.get(path).status_code == 200, path

    for path, body in (
        (COMMANDS, {"behavior": {"type": "success"}}),
        ("/api/v1/commands/bulk", {"count": 3}),
    ):
        refused = read_only.post(path, json=body)
        assert (refused.status_code, got(refused)["code"]) == (503, "read_only")
        assert int(refused.headers["Retry-After"]) > 0
        assert got(refused)["detail"].endswith("Nothing was changed.")
    ready = read_only.get("/health/ready")
    assert (ready.status_code, got(ready)["status"], got(ready)["read_only"]) == (
        200,
        "read_only",
        True,
    )
    assert "read_only" in {c["name"] for c in got(ready)["checks"] if c["level"] == "critical"}
    assert "default_transaction_read_only is on" in read_only.get("/").text


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        ("alter table command_bus_audit rename to elsewhere", "command_bus_audit"),
        ("alter table command_bus_command rename status to state", "command_bus_command.status"),
        ("alter function command_bus.send_command rename to other", "command_bus.send_command()"),
        ("alter table operator_job set schema command_bus", "operator_job"),
    ],
)
def test_what_is_missing_is_named_by_health_and_never_a_fault_of_ours(
    app: Flask, client: FlaskClient, conn: psycopg.Connection[Any], spoil: str, problem: str
) -> None:
    conn.execute(spoil.encode())

    ready = client.get("/health/ready")
    assert ready.status_code == 503
    assert any(problem in text for text in got(ready)["problems"]), got(ready)
    for path in ("/", "/commands", "/audit", "/troubleshooting?view=actions", COMMANDS):
        assert client.get(path).status_code in (200, 503), path
    sent = client.post(COMMANDS, json={"behavior": {"type": "success"}})
    assert sent.status_code in (201, 503)


def test_what_the_role_may_not_use_is_named_by_health(
    database_url: str, conn: psycopg.Connection[Any], make_client: Any
) -> None:
    role = f"test_{uuid4().hex[:12]}"
    conn.execute(f"create role {role}".encode())
    try:
        client = make_client(f"-c role={role}")
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert client.get("/commands").status_code == 503
        assert got(client.get(COMMANDS))["code"] in ("no_rights", "incomplete_database")
    finally:
        conn.execute(f"drop role {role}".encode())
