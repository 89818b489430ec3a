"""Requests that come when the server has ended the sessions of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from app.server.portal import APPLICATION_NAME, POOL_SIZE
from tests.integration.api.conftest import got
from tests.waiting import eventually_now

COMMANDS = "/api/v1/commands"
SESSIONS = (
    "from pg_stat_activity where datname = current_database()"
    f" and application_name = '{APPLICATION_NAME}'"
)


async def hold_all(pool: Any) -> None:
    """The pool has opened all the connections that it may, or nearly all."""
    await asyncio.gather(*(_hold(pool) for _ in range(POOL_SIZE)))


async def _hold(pool: Any) -> None:
    async with pool.connection() as conn:
        await conn.execute("select pg_sleep(0.05)")


def test_the_first_requests_after_all_sessions_were_ended_are_answered(
    app: Flask, client: FlaskClient, conn: psycopg.Connection[TupleRow]
) -> None:
    portal = app.extensions["portal"]
    portal.pool.timeout = 0.9  # less than the pause of a pool that waits after a dead connection
    client.get(COMMANDS)
    for request in (
        lambda: client.post(COMMANDS, json={"behavior": {"type": "success"}}),
        lambda: client.get("/"),
    ):
        portal.call(hold_all, portal.pool)
        ended = conn.execute(f"select pg_terminate_backend(pid) {SESSIONS}".encode()).fetchall()
        eventually_now(
            lambda: conn.execute(f"select count(*) {SESSIONS}".encode()).fetchone() == (0,)
        )

        answers = [request().status_code for _ in range(POOL_SIZE + 1)]

        assert len(ended) > POOL_SIZE / 2
        assert set(answers) <= {200, 201}, answers


def test_a_write_whose_connection_broke_is_not_said_to_have_changed_nothing(
    client: FlaskClient, send: Callable[..., str], conn: psycopg.Connection[TupleRow]
) -> None:
    command_id = send()
    conn.execute(
        "create or replace function command_bus.cancel_pending("
        " p_domain text, p_command_id uuid, p_operator text, p_reason text)"
        " returns table (command_id uuid, verdict text, status command_bus.command_status)"
        " language plpgsql as"
        " $$ begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(5); end $$"
    )

    answer = client.post(
        f"{COMMANDS}/{command_id}/cancel", json={"operator": "olga", "reason": "no"}
    )

    assert answer.status_code == 503
    assert "Whether anything was changed is not known" in got(answer)["detail"]
