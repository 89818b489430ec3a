"""The web application on a database of its own, with clients that call it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow
from werkzeug.test import TestResponse

from app import create_app
from tests.applications import close


def got(answer: TestResponse) -> Any:
    """The JSON that was answered."""
    assert answer.json is not None, answer.text
    return answer.json


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    """The application, closed after the test."""
    made = create_app({"database_url": database_url, "secret_key": "for tests only"})
    yield made
    close(made)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client that comes from nowhere in particular, as curl does."""
    return app.test_client()


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection to the application's database, in autocommit mode."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def send(client: FlaskClient) -> Callable[..., str]:
    """Sends one test command through the API; returns its id."""

    def send_one(behavior: str = "success", **body: Any) -> str:
        answer = client.post("/api/v1/commands", json={"behavior": {"type": behavior}, **body})
        assert answer.status_code == 201, answer.text
        return str(got(answer)["command_id"])

    return send_one


@pytest.fixture
def run_all(conn: psycopg.Connection[TupleRow]) -> Callable[..., None]:
    """Plays a worker by hand: claims everything that is due and ends each attempt the same way."""

    def run(
        kind: str = "success",
        code: str = "BROKEN",
        message: str = "It broke",
        *,
        budget: int = 3,
        details: Any = None,
    ) -> None:
        worker = conn.execute(
            "select command_bus.register_worker(%s)",
            (
                '{"domain": "test", "host": "here", "pid": 1, "version": "1",'
                ' "concurrency": 1, "heartbeat_seconds": 5}',
            ),
        ).fetchone()
        assert worker is not None
        conn.execute(
            """
            with claimed as materialized (
                select * from command_bus.claim_commands(
                    'test', %(worker)s, 1000, 30, %(budget)s)
            ),
            outcome as (
                select coalesce(jsonb_agg(jsonb_build_object(
                    'command_id', command_id, 'msg_id', msg_id, 'claim_no', claim_no,
                    'run_us', 2000, 'result', '{"status": "success"}'::jsonb,
                    'kind', %(kind)s::text,
                    'error_type', upper(%(kind)s::text), 'error_code', %(code)s::text,
                    'error_message', %(message)s::text, 'error_details', %(details)s::jsonb,
                    'max_attempts', max_attempts,
                    'retry_delay_ms', 0)), '[]') as ends
                from claimed
            )
            select command_bus.settle_commands(
                'test', %(worker)s,
                case when %(kind)s::text = 'success' then ends else '[]' end,
                case when %(kind)s::text = 'success' then '[]' else ends end)
            from outcome
            """,
            {
                "worker": worker[0],
                "kind": kind,
                "code": code,
                "message": message,
                "budget": budget,
                "details": None if details is None else json.dumps(details),
            },
        )

    return run
