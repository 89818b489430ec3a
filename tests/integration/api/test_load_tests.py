"""Load-test runs over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from tests.integration.api.conftest import got
from tests.waiting import eventually_now

URL = "/api/v1/load-tests"


@pytest.fixture
def generate(client: FlaskClient) -> Callable[..., str]:
    """Generates test commands through the API; returns the run's id."""

    def generate_some(count: int = 4, **body: Any) -> str:
        answer = client.post("/api/v1/commands/bulk", json={"count": count, **body})
        assert answer.status_code in (201, 202), answer.text
        return str(got(answer)["run_id"])

    return generate_some


def test_a_run_is_recorded_with_its_outcome(
    client: FlaskClient, generate: Callable[..., str], run_all: Callable[..., None]
) -> None:
    run_id = generate(4, name="smoke", operator="ann", behavior_distribution={"success": 100})
    running = got(client.get(f"{URL}/{run_id}"))
    run_all("success")

    run = got(client.get(f"{URL}/{run_id}"))

    assert (running["state"], running["outcome"]) == ("running", None)
    assert running["counts"]["PENDING"] == 4
    assert (run["state"], run["origin"], run["started_by"]) == ("finished", "api", "ann")
    assert (run["name"], run["count"], run["generated_count"]) == ("smoke", 4, 4)
    assert run["counts"]["COMPLETED"] == run["outcome"]["counts"]["COMPLETED"] == 4
    assert run["outcome"]["run_ms"][0] == pytest.approx(2.0, rel=0.02)
    assert sum(run["series"]["processed_per_second"]) == 4
    assert run["versions"]["command_bus"]


@pytest.fixture
def elapsed(client: FlaskClient) -> Callable[[str], float]:
    """How long a run has lasted, as the API and the pages tell it; never less than before."""
    told = [0.0]

    def look(run_id: str) -> float:
        report = got(client.get(f"/api/v1/stats/load-test?run_id={run_id}"))
        page = client.get(f"/load-tests/{run_id}").text
        seconds = float(report["elapsed_seconds"])
        assert seconds >= told[-1], told
        told.append(seconds)
        match = re.search(r"Processed [^,]+, ([\d.]+) (ms|s) (so far|in total)", page)
        if match is not None and seconds >= 0.1:
            shown = float(match[1]) / (1000 if match[2] == "ms" else 1)
            assert shown == pytest.approx(seconds, abs=1)
        return seconds

    return look


def test_what_a_run_has_taken_never_becomes_less(
    client: FlaskClient,
    generate: Callable[..., str],
    run_all: Callable[..., None],
    conn: psycopg.Connection[Any],
    elapsed: Callable[[str], float],
) -> None:
    run_id = generate(3, behavior_distribution={"success": 100})
    elapsed(run_id)
    run_all("transient")
    running = elapsed(run_id)
    run_all("permanent", "BROKEN")  # it ends within the second in which it began
    ended = elapsed(run_id)
    outcome = got(client.get(f"{URL}/{run_id}"))["outcome"]
    assert ended == outcome["elapsed_seconds"] >= running

    # What operators do afterwards is no part of it.
    conn.execute(
        "select command_bus.operator_retry('test', array_agg(command_id), 'ann')"
        " from command_bus_tsq"
    )
    again = got(client.get(f"/api/v1/stats/load-test?run_id={run_id}"))
    assert (again["pending"], again["elapsed_seconds"]) == (3, ended)
    assert again["throughput_per_second"] == outcome["throughput_per_second"]
    assert elapsed(run_id) == ended


def test_a_run_that_died_while_it_was_generated_lasted_to_its_last_sign_of_life(
    generate: Callable[..., str],
    run_all: Callable[..., None],
    conn: psycopg.Connection[Any],
    elapsed: Callable[[str], float],
) -> None:
    run_id = generate(2, behavior_distribution={"success": 100})
    run_all("success")
    conn.execute(
        """
        update load_test_run set state = 'generating', generated_at = null, finished_at = null,
            outcome = null, settings = settings || '{"count": 5}',
            created_at = now() - interval '17 s', heartbeat_at = now() - interval '10 s'
        """
    )
    assert elapsed(run_id) == 7.0
    conn.execute(
        "update load_test_run set heartbeat_at = heartbeat_at - interval '60 s',"
        " created_at = created_at - interval '60 s'"
    )
    assert elapsed(run_id) >= 7.0


def test_a_batch_that_is_no_load_test_never_took_less(
    generate: Callable[..., str],
    run_all: Callable[..., None],
    conn: psycopg.Connection[Any],
    elapsed: Callable[[str], float],
) -> None:
    batch_id = generate(2, behavior_distribution={"success": 100})
    conn.execute("delete from load_test_run")
    elapsed(batch_id)
    run_all("success")
    elapsed(batch_id)


def test_runs_are_listed_by_key_the_latest_first(
    client: FlaskClient, generate: Callable[..., str]
) -> None:
    ids = [generate(1) for _ in range(3)]

    first = got(client.get(f"{URL}?limit=2"))
    second = got(client.get(f"{URL}?limit=2&cursor={first['next_cursor']}"))

    assert first["total"] == 3
    assert [run["run_id"] for run in first["runs"] + second["runs"]] == ids[::-1]


def test_above_ten_thousand_a_run_is_followed_and_cancelled(
    client: FlaskClient, generate: Callable[..., str]
) -> None:
    answer = client.post("/api/v1/commands/bulk", json={"count": 1_000_000})

    assert answer.status_code == 202
    url = answer.headers["Location"]
    eventually_now(lambda: got(client.get(url))["generated_count"])
    cancelled = client.post(f"{url}/cancel", json={"operator": "bob"})
    assert cancelled.status_code == 202
    eventually_now(lambda: got(client.get(url))["state"] == "cancelled")
    run = got(client.get(url))
    assert run["cancel_requested_by"] == "bob"
    assert 0 < run["generated_count"] < 1_000_000
    assert run["counts"]["PENDING"] == run["generated_count"]
    again = client.post(f"{url}/cancel", json={})
    assert (again.status_code, got(again)["current_state"]) == (409, "cancelled")


def test_commands_are_listed_by_their_run(
    client: FlaskClient,
    generate: Callable[..., str],
    run_all: Callable[..., None],
    send: Callable[..., str],
    conn: psycopg.Connection[TupleRow],
) -> None:
    def generate_and_run(count: int, kind: str) -> str:
        run_id = generate(count)
        run_all(kind)
        return run_id

    ended = generate_and_run(2, "success")
    failing = generate_and_run(3, "permanent")
    refused = generate_and_run(4, "business")
    waiting = generate(5)
    alone = send()

    def listed(run_id: str, **filters: Any) -> tuple[int, set[str]]:
        page = got(client.get("/api/v1/commands", query_string={"run_id": run_id, **filters}))
        ids = [command["command_id"] for command in page["commands"]]
        assert len(ids) == page["total"]
        query = "select distinct batch_id::text from command_bus_command where command_id = any(%s)"
        return len(ids), {row[0] for row in conn.execute(query, (ids,))}

    assert listed(ended) == listed(ended, status="COMPLETED") == (2, {ended})
    assert listed(failing) == listed(failing, status="IN_TSQ") == (3, {failing})
    assert listed(refused) == listed(refused, status="FAILED", q="BROKEN") == (4, {refused})
    assert listed(waiting) == listed(waiting, status="PENDING") == (5, {waiting})
    assert listed(waiting, q=alone) == listed(waiting, status="FAILED") == (0, set())
    assert listed(str(uuid4())) == (0, set())
    assert client.get("/api/v1/commands?run_id=nothing").status_code == 422
    page = client.get(f"/commands?run={failing}&status=IN_TSQ").text
    assert "3 commands, page 1 of 1" in page
    assert f"/load-tests/{failing}" in page


def test_two_runs_are_compared(
    client: FlaskClient,
    generate: Callable[..., str],
    run_all: Callable[..., None],
    conn: psycopg.Connection[TupleRow],
) -> None:
    slow, fast = generate(3, delay_ms=5), generate(3)
    run_all("success")
    client.get(URL)  # whoever looks has their outcomes recorded
    for run_id, rate, p95 in ((slow, 100, 40), (fast, 150, 40.2)):
        conn.execute(
            """
            update load_test_run
            set outcome = outcome || jsonb_build_object(
                'throughput_per_second', %s::float, 'total_ms', jsonb_build_array(1, %s::float, 50))
            where run_id = %s
            """,
            (rate, p95, run_id),
        )

    compared = got(client.get(f"{URL}/{fast}/compare?against={slow}"))

    figures = {figure["name"]: figure for figure in compared["figures"]}
    assert compared["first"]["run_id"] == slow
    assert (figures["throughput"]["ratio"], figures["throughput"]["verdict"]) == (1.5, "better")
    assert figures["total p95"]["verdict"] == "same"
    assert {"name": "delay ms", "first": "5", "second": "0"} in compared["differences"]
    back = got(client.get(f"{URL}/{slow}/compare?against={fast}"))
    assert back["figures"][0]["verdict"] == "worse"


def test_what_cannot_be_compared_or_found_is_told(
    client: FlaskClient, generate: Callable[..., str]
) -> None:
    run_id, unknown = generate(1), uuid4()

    assert client.get(f"{URL}/{run_id}/compare?against={run_id}").status_code == 409
    assert client.get(f"{URL}/{run_id}/compare?against={unknown}").status_code == 404
    assert client.get(f"{URL}/{run_id}/compare").status_code == 422
    assert client.get(f"{URL}/{unknown}").status_code == 404
    assert client.post(f"{URL}/{unknown}/cancel", json={}).status_code == 404


def test_a_generation_ends_with_its_web_process_and_says_so(
    app: Flask, client: FlaskClient, conn: psycopg.Connection[TupleRow]
) -> None:
    run = got(client.post("/api/v1/commands/bulk", json={"count": 1_000_000}))
    url = f"{URL}/{run['run_id']}"
    eventually_now(lambda: got(client.get(url))["generated_count"])

    app.extensions["portal"].close()

    row = conn.execute("select state, generated_count from load_test_run").fetchone()
    sent = conn.execute("select count(*) from command_bus_command").fetchone()
    assert row is not None
    assert sent == row[1:]
    assert row[0] == "cancelled"
    assert 0 < row[1] < 1_000_000
