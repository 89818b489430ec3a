"""Statistics, trail, configuration, workers, health, and the document that describes the API."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from app import create_app
from app.server import access
from app.server.errors import PROBLEM_TYPE
from tests.integration.api.conftest import got

API = "/api/v1"


def test_the_dashboard_counts_what_is_there(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    done = send()
    run_all()
    waiting = send()

    stats = got(client.get(f"{API}/stats"))

    assert stats["counts"] == {
        "PENDING": 1, "IN_PROGRESS": 0, "COMPLETED": 1, "FAILED": 0, "IN_TSQ": 0, "CANCELLED": 0,
    }  # fmt: skip
    assert [c["command_id"] for c in stats["recent_created"]] == [waiting, done]
    assert [c["command_id"] for c in stats["recent_completed"]] == [done]
    metrics = stats["metrics"]
    assert metrics["queue_depth"] == 1
    assert metrics["oldest_pending_seconds"] >= 0
    assert metrics["active_workers"] == 1
    assert metrics["processing_rate_per_minute"] == 1
    assert metrics["avg_processing_time_ms"] == 2


def test_the_queue_depth_counts_what_waits_beside_the_queue(
    client: FlaskClient,
    send: Callable[..., str],
    run_all: Callable[..., None],
    conn: psycopg.Connection[TupleRow],
) -> None:
    for _ in range(3):
        send(lane="tenant-7/order-42")
    stats = got(client.get(f"{API}/stats"))
    assert stats["counts"]["PENDING"] == stats["metrics"]["queue_depth"] == 3

    run_all("permanent")  # the first holds the lane
    pause = {"domain": "test", "command_type": "TestCommand", "reason": "away"}
    assert client.post(f"{API}/pauses", json=pause).status_code == 201
    send()
    run_all()  # parks it
    parked = conn.execute("select count(*) from command_bus_parked").fetchone()

    stats = got(client.get(f"{API}/stats"))
    assert parked == (1,)
    assert stats["counts"]["PENDING"] == stats["metrics"]["queue_depth"] == 3
    depth = got(client.get(f"{API}/stats/throughput?domain=test"))["queue_depth"]
    assert depth == 3
    assert b"None is due now" not in client.get("/").data


def test_throughput_and_history_agree(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    for _ in range(5):
        send()
    run_all()

    throughput = got(client.get(f"{API}/stats/throughput?window_seconds=60"))
    history = got(client.get(f"{API}/stats/history?window_seconds=60&step_seconds=10"))

    assert throughput["commands_processed"] == 5
    assert throughput["p50_ms"] == pytest.approx(2, rel=0.02)
    assert throughput["wait"]["p50_ms"] > 0
    averages = {part: throughput[part]["avg_ms"] for part in ("wait", "run", "total")}
    assert averages["total"] == pytest.approx(averages["wait"] + averages["run"], abs=0.002)
    assert averages["run"] == throughput["avg_processing_time_ms"] == 2
    assert sum(point["processed"] for point in history["points"]) == 5
    assert sum(point["sent"] for point in history["points"]) == 5
    assert 6 <= len(history["points"]) <= 8
    for part in ("run", "total"):  # averages of steps are not known, so none are promised
        assert set(history["points"][0][part]) == {"p50_ms", "p95_ms", "p99_ms"}


def test_a_run_is_followed_to_its_end(client: FlaskClient, run_all: Callable[..., None]) -> None:
    nothing = got(client.get(f"{API}/stats/load-test"))
    client.post(f"{API}/commands/bulk", json={"count": 20})
    run_all()

    finished = got(client.get(f"{API}/stats/load-test"))

    assert (nothing["total_commands"], nothing["progress_percent"]) == (0, 0)
    assert finished["total_commands"] == finished["completed"] == 20
    assert (finished["pending"], finished["progress_percent"]) == (0, 100)
    assert finished["estimated_remaining_seconds"] == 0
    assert finished["throughput_per_second"] > 0


def test_the_progress_of_an_unknown_run_is_not_found(client: FlaskClient) -> None:
    client.post(f"{API}/commands/bulk", json={"count": 1})

    answer = client.get(f"{API}/stats/load-test?run_id={UUID(int=0)}")

    assert (answer.status_code, answer.mimetype) == (404, PROBLEM_TYPE)
    assert got(answer)["code"] == "unknown_run"


def test_a_run_that_failed_before_it_sent_anything_has_a_progress_of_zeros(
    client: FlaskClient, conn: psycopg.Connection[TupleRow]
) -> None:
    conn.execute("delete from command_bus_domain where domain = 'test'")
    assert client.post(f"{API}/commands/bulk", json={"count": 1}).status_code == 422
    [run] = got(client.get(f"{API}/load-tests"))["runs"]

    progress = got(client.get(f"{API}/stats/load-test?run_id={run['run_id']}"))

    assert (progress["run_id"], progress["total_commands"]) == (run["run_id"], 0)
    assert progress["pending"] == 0


def test_the_trail_is_in_order_and_searchable(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    command_id = send()
    run_all()

    trail = got(client.get(f"{API}/audit/{command_id}"))
    newest = got(client.get(f"{API}/audit?limit=2"))
    older = got(client.get(f"{API}/audit?limit=2&cursor={newest['next_cursor']}"))
    received = got(client.get(f"{API}/audit?event_type=RECEIVED&domain=test"))
    past = got(client.get(f"{API}/audit?until=2020-01-01T00:00:00Z"))

    assert [event["event_type"] for event in trail["events"]] == ["SENT", "RECEIVED", "COMPLETED"]
    assert trail["current_status"] == "COMPLETED"
    assert trail["total_duration_ms"] > 0
    assert [e["event_type"] for e in newest["events"]] == ["COMPLETED", "RECEIVED"]
    assert [e["event_type"] for e in older["events"]] == ["SENT"]
    assert older["next_cursor"] is None
    assert [e["command_id"] for e in received["events"]] == [command_id]
    assert past["events"] == []


def test_the_configuration_is_changed_in_part_and_guarded_by_its_version(
    client: FlaskClient,
) -> None:
    before = got(client.get(f"{API}/config"))

    changed = client.put(f"{API}/config", json={"retry": {"max_attempts": 7}, "version": 1})
    late = client.put(f"{API}/config", json={"worker": {"concurrency": 9}, "version": 1})

    assert before["retry"]["max_attempts"] == 3
    assert changed.status_code == 200
    assert got(changed)["retry"] == {**before["retry"], "max_attempts": 7}
    assert got(changed)["version"] == 2
    assert late.status_code == 412
    assert got(late)["current_version"] == 2
    assert got(client.get(f"{API}/config")) == got(changed)


def test_workers_are_told_by_their_heartbeat_and_asked_to_stop(
    client: FlaskClient, run_all: Callable[..., None], conn: psycopg.Connection[Any]
) -> None:
    run_all()
    [worker] = got(client.get(f"{API}/workers"))["workers"]
    url = f"{API}/workers/{worker['worker_id']}/stop"

    assert worker["state"] == "alive"
    assert client.post(url, json={}).status_code == 202
    conn.execute("update command_bus_worker set heartbeat_at = heartbeat_at - interval '20 s'")
    assert got(client.get(f"{API}/workers"))["workers"][0]["state"] == "late"
    conn.execute("update command_bus_worker set heartbeat_at = heartbeat_at - interval '1 min'")
    assert got(client.get(f"{API}/workers"))["workers"][0]["state"] == "gone"
    conn.execute("update command_bus_worker set stopped_at = now()")
    assert client.post(url, json={}).status_code == 409
    assert got(client.post(f"{API}/workers/stop", json={})) == {"requested": 0}


def test_only_workers_that_live_count_as_asked_to_stop(
    client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    worker = {"domain": "test", "host": "h", "pid": 1, "version": "1", "concurrency": 4}
    ids = [
        conn.execute(
            "select command_bus.register_worker(%s)",
            (json.dumps({**worker, "heartbeat_seconds": 1}),),
        ).fetchone()
        for _ in range(4)
    ]
    alive, late, gone, replaced = (row[0] for row in ids if row)
    age = "update command_bus_worker set heartbeat_at = now() - make_interval(secs => %s)"
    conn.execute(f"{age} where worker_id = %s", (5, late))
    conn.execute(f"{age} where worker_id = %s", (60, gone))
    conn.execute("select command_bus.record_replacement(%s, %s, 'SIGKILL')", (alive, replaced))

    rows = {row["worker_id"]: row for row in got(client.get(f"{API}/workers"))["workers"]}
    assert [rows[each]["state"] for each in (alive, late, gone, replaced)] == [
        "alive", "late", "gone", "gone",
    ]  # fmt: skip
    assert (rows[replaced]["replaced_by"], rows[replaced]["end_reason"]) == (alive, "SIGKILL")
    assert got(client.get(f"{API}/stats"))["metrics"]["active_workers"] == 1
    assert got(client.post(f"{API}/workers/{gone}/stop", json={})) == {"requested": 0}
    assert got(client.post(f"{API}/workers/stop", json={})) == {"requested": 2}
    assert got(client.get(f"{API}/workers"))["workers"][0]["stop_requested_by"]


def test_a_server_starts_at_most_the_allowed_workers(app: Flask, client: FlaskClient) -> None:
    app.config["SETTINGS"] = dataclasses.replace(app.config["SETTINGS"], start_workers_max=0)

    refused = client.post(f"{API}/workers", json={})

    assert refused.status_code == 409
    assert got(refused)["code"] == "too_many_workers"
    assert "START_WORKERS_MAX" in got(refused)["detail"]


def test_health_tells_what_is_missing(client: FlaskClient, conn: psycopg.Connection[Any]) -> None:
    ready = client.get("/health/ready")
    conn.execute("delete from flyway_schema_history where script like 'R__%%'", ())
    behind = client.get("/health/ready")

    assert ready.status_code == 200
    checks = got(ready).pop("checks")
    assert {check["name"] for check in checks} >= {"oldest_snapshot", "connections", "durability"}
    assert set(checks[0]) == {"name", "level", "value", "unit", "limit"}  # and no names of sessions
    assert got(ready).items() >= {"status": "ready", "database": True, "pgmq": True}.items()
    assert behind.status_code == 503
    assert got(behind)["migrated"] is False
    assert client.get("/health/live").status_code == 200


def test_a_database_that_is_away_is_answered_503(unreachable: FlaskClient) -> None:
    reads = unreachable.get(f"{API}/commands")
    writes = unreachable.post(f"{API}/commands/quick", json={})
    ready = unreachable.get("/health/ready")

    for answer in (reads, writes, ready):
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
    assert got(reads)["code"] == got(writes)["code"] == "unavailable"
    assert unreachable.get("/health/live").status_code == 200


def test_a_database_that_is_slow_is_answered_504(
    database_url: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    unlimited = "options=-c%20statement_timeout%3D0%20-c%20lock_timeout%3D0"
    url = f"{database_url}{'&' if '?' in database_url else '?'}{unlimited}"
    patient = create_app(
        {"database_url": url, "data_dir": tmp_path, "secret_key": "for tests", "answer_timeout": 1}
    )
    try:
        client = patient.test_client()
        client.get(f"{API}/config")
        with conn.transaction():
            conn.execute("lock table app_config")
            answer = client.get(f"{API}/config")

        assert answer.status_code == 504
        assert int(answer.headers["Retry-After"]) > 0
        assert client.get(f"{API}/config").status_code == 200
    finally:
        patient.extensions["portal"].close()


def test_every_route_says_who_may_call_it(app: Flask) -> None:
    roles = {
        rule.endpoint: access.required_role(app, rule.endpoint)
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith((API, "/health"))
    }

    assert None not in roles.values()
    changing = [rule for rule in app.url_map.iter_rules() if rule.methods and rule.methods & {"POST", "PUT"}]  # fmt: skip  # noqa: E501
    for rule in changing:
        if rule.rule.startswith(API):
            assert roles[rule.endpoint] is access.Role.OPERATOR, rule


def test_the_document_is_valid_openapi_and_describes_every_route(
    app: Flask, client: FlaskClient
) -> None:
    document = got(client.get(f"{API}/openapi.json"))

    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    assert document["openapi"].startswith("3.1")
    described = {(method, path) for path, item in document["paths"].items() for method in item}
    routes = {
        (
            method.lower(),
            rule.rule.replace("<command_id:", "{").replace("<worker_id:", "{").replace(">", "}"),
        )
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith((API, "/health")) and not rule.rule.endswith("openapi.json")
    }
    assert described == routes


def test_no_parameter_of_a_query_is_said_to_take_null(client: FlaskClient) -> None:
    document = got(client.get(f"{API}/openapi.json"))

    parameters = {
        f"{method} {path} {parameter['name']}": parameter["schema"]
        for path, item in document["paths"].items()
        for method, operation in item.items()
        for parameter in operation.get("parameters", ())
    }
    assert parameters["get /api/v1/commands command_type"]["type"] == "string"
    assert [name for name, schema in parameters.items() if '"null"' in json.dumps(schema)] == []


@pytest.fixture
def unreachable() -> Any:
    """A client of an application whose database does not answer."""
    app = create_app(
        {
            "database_url": "postgresql://nobody@127.0.0.1:9/nothing",
            "secret_key": "for tests only",
        }
    )
    yield app.test_client()
    app.extensions["portal"].close()
