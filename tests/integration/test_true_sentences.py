"""What pages say is what the records say: of now, of then, and of other processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.models import list_workers
from app.web.workers import stop_all_question, stop_question
from tests.integration.api.conftest import app, client, conn, got, run_all, send
from tests.waiting import eventually_now

__all__ = ["app", "client", "conn", "run_all", "send"]

CLAIMED = """
    select claimed.command_id
    from command_bus.claim_commands('test', %s, 1, 600, 3) as claimed"""


@pytest.fixture
def worker(conn: psycopg.Connection[Any]) -> int:
    """A worker that has just registered, with a heartbeat every ten seconds."""
    row = conn.execute(
        """
        select command_bus.register_worker('{"domain": "test", "host": "here", "pid": 1,
            "version": "1", "concurrency": 1, "heartbeat_seconds": 10}')
        """
    ).fetchone()
    assert row is not None
    return int(row[0])


def silent_for(conn: psycopg.Connection[Any], seconds: int) -> None:
    conn.execute(
        "update command_bus_worker"
        " set heartbeat_at = clock_timestamp() - make_interval(secs => %s)",
        (seconds,),
    )


def text_of(client: FlaskClient, path: str) -> str:
    return " ".join(unescape(client.get(path).text).split())


def test_an_attempt_runs_only_while_its_worker_is_heard_of(
    client: FlaskClient, conn: psycopg.Connection[Any], send: Callable[..., str], worker: int
) -> None:
    command_id = send()
    conn.execute(CLAIMED, (worker,))
    pages = (f"/commands/{command_id}", f"/audit/{command_id}")

    for page in pages:
        assert "runs for" in text_of(client, page)
    silent_for(conn, 70)  # late: more than three heartbeats, fewer than ten

    for page in pages:
        text = text_of(client, page)
        assert "worker not responding" in text
        assert "runs for" not in text
    assert "Not heard from" in text_of(client, pages[0])
    assert "stopped responding 1 min" in text_of(client, pages[0])


def test_a_worker_that_is_late_is_not_said_to_be_missing(
    client: FlaskClient, conn: psycopg.Connection[Any], send: Callable[..., str], worker: int
) -> None:
    command_id = send()
    silent_for(conn, 70)

    assert "No worker's heartbeat is on time" in text_of(client, "/")
    explanation = got(client.get(f"/api/v1/commands/{command_id}"))["explanation"]
    assert explanation.startswith("Not started: 1 worker for domain test was running a moment ago")

    silent_for(conn, 7000)
    assert "No worker is running" in text_of(client, "/")
    explanation = got(client.get(f"/api/v1/commands/{command_id}"))["explanation"]
    assert explanation.endswith("no worker is running for domain test.")


@pytest.mark.parametrize(
    ("max_attempts", "next_claim"),
    [
        (1, "moves it to the troubleshooting queue"),
        (2, "delivers it again"),
        (None, "delivers it again"),
    ],
)
def test_the_last_attempt_is_not_said_to_be_delivered_again(
    client: FlaskClient,
    conn: psycopg.Connection[Any],
    send: Callable[..., str],
    worker: int,
    max_attempts: int | None,
    next_claim: str,
) -> None:
    command_id = send(max_attempts=max_attempts)
    conn.execute(CLAIMED, (worker,))
    silent_for(conn, 70)

    explanation = got(client.get(f"/api/v1/commands/{command_id}"))["explanation"]
    assert explanation.endswith(f"the next claim after that {next_claim}.")
    conn.execute("update command_bus_worker set running_count = 1")
    silent_for(conn, 110)  # gone: more than ten heartbeats
    assert "are delivered again when their leases end, while attempts remain" in text_of(
        client, "/workers"
    )


def test_a_command_that_is_only_held_is_not_said_to_run(
    client: FlaskClient, conn: psycopg.Connection[Any], send: Callable[..., str], worker: int
) -> None:
    ids = [send(), send()]
    for _ in ids:
        conn.execute(CLAIMED, (worker,))
    running = [{"command_id": ids[0], "command_type": "TestCommand", "attempt": 1, "seconds": 1}]
    conn.execute(
        "update command_bus_worker set running = %s, running_count = 1,"
        " heartbeat_at = clock_timestamp()",
        (json.dumps(running),),
    )

    runs, held = (got(client.get(f"/api/v1/commands/{each}"))["explanation"] for each in ids)

    assert f"Worker w-{worker} has been running attempt 1" in runs
    assert held.endswith("and had not started it at its last heartbeat.")


def test_questions_before_a_stop_are_grammatical(
    app: Flask, conn: psycopg.Connection[Any], worker: int
) -> None:
    conn.execute("update command_bus_worker set running_count = 1")
    with app.app_context():
        [one] = list_workers()

    assert stop_all_question([one]).startswith(
        "1 worker takes no new commands, finishes 1 running command and stops, at the latest"
    )
    assert stop_all_question([one, one]).startswith(
        "2 workers take no new commands, finish 2 running commands and stop, at the latest"
    )
    assert "(1 running command at its last heartbeat)" in stop_question(one)


def test_a_run_that_was_stopped_shows_what_was_sent(
    client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    run_id = uuid4()
    settings = {"count": 200_000, "types": {"success": 200_000}, "delay_ms": 0, "domain": "test"}
    conn.execute(
        "insert into load_test_run (run_id, origin, settings, versions, state, generated_count,"
        " generated_at) values (%s, 'page', %s, '{}', 'cancelled', 22000, clock_timestamp())",
        (run_id, json.dumps(settings)),
    )

    for page in ("/load-tests", f"/load-tests/{run_id}"):
        assert "22,000 of 200,000" in text_of(client, page)


def test_a_run_says_that_its_charts_count_the_whole_domain(
    client: FlaskClient, send: Callable[..., str]
) -> None:
    answer = client.post("/api/v1/commands/bulk", json={"count": 1})
    text = text_of(client, f"/load-tests/{got(answer)['run_id']}")

    assert "Commands processed per second in domain test while the run lasted" in text
    assert "of all commands that ended in domain test in each second of the run" in text


def test_a_retry_that_was_undone_is_no_round_of_attempts(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    command_id = send()
    run_all("permanent")
    at = f"/api/v1/tsq/{command_id}"
    assert client.post(f"{at}/retry", json={"delay_seconds": 60}).status_code == 200
    assert client.post(f"{at}/undo-retry", json={}).status_code == 200
    assert client.post(f"{at}/retry", json={}).status_code == 200
    run_all("permanent")

    attempts = got(client.get(f"/api/v1/commands/{command_id}"))["attempt_list"]
    assert [attempt["cycle"] for attempt in attempts] == [1, 2]
    text = text_of(client, f"/commands/{command_id}")
    assert "round 2" in text
    assert "round 3" not in text
    assert "Attempt 1, after an operator's retry" in text


def test_empty_lists_do_not_say_that_nothing_ever_was(
    client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    for page in ("/", "/commands", "/load-tests", "/audit", "/troubleshooting?view=actions"):
        text = text_of(client, page)
        for word in ("No commands yet", "No events yet", "has run yet", "Nobody acted"):
            assert word not in text, page
    assert "No commands stored" in text_of(client, "/commands")


def test_a_retry_that_is_undone_too_late_says_where_the_command_is(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    command_id = send("fail_permanent")
    run_all("permanent")
    page = client.get(f"/commands/{command_id}").text
    token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
    client.post(f"/api/v1/tsq/{command_id}/retry", json={})
    run_all()

    client.post(f"/commands/{command_id}/undo-retry", data={"csrf_token": token})

    text = text_of(client, f"/commands/{command_id}")
    assert "Too late: the retry no longer waits, and the command is COMPLETED." in text


def test_what_no_running_worker_knows_is_said_on_every_page_and_in_the_api(
    client: FlaskClient, conn: psycopg.Connection[Any], send: Callable[..., str], worker: int
) -> None:
    command_id = send()
    conn.execute("update command_bus_worker set app_version = '1.4', command_types = '{Other}'")
    conn.execute(
        "select command_bus.claim_commands_v3('test', %s, 1, 600, 3, '{TestCommand}')", (worker,)
    )

    said = "No running worker knows TestCommand; workers of version 1.4 run."
    assert "1 TestCommand waits: no running worker knows it" in text_of(client, "/")
    assert said in text_of(client, f"/commands/{command_id}")
    assert "version 1.4" in text_of(client, "/workers")
    found = got(client.get(f"/api/v1/commands/{command_id}"))
    assert found["explanation"].startswith(said)
    assert found["parked"] == "NO_HANDLER"
    [waiting] = got(client.get("/api/v1/stats"))["without_handler"]
    assert (waiting["command_type"], waiting["waiting"]) == ("TestCommand", 1)
    [listed] = got(client.get("/api/v1/workers"))["workers"]
    assert (listed["app_version"], listed["command_types"]) == ("1.4", ["Other"])

    conn.execute("update command_bus_worker set command_types = '{TestCommand}'")
    assert "no running worker knows it" not in text_of(client, "/")
    assert "It waits for a free worker that knows TestCommand" in text_of(
        client, f"/commands/{command_id}"
    )
    assert got(client.get("/api/v1/stats"))["without_handler"] == []

    conn.execute("update command_bus_worker set command_types = '{}'")
    conn.execute("select command_bus.expire_parked('test', 0)")
    assert "No worker that knows TestCommand ran in time: NO_HANDLER" in text_of(
        client, f"/commands/{command_id}"
    )


def test_a_command_that_was_cancelled_unstarted_is_not_said_to_start(
    client: FlaskClient, send: Callable[..., str]
) -> None:
    command_id = send()
    assert "Not started yet" in text_of(client, f"/commands/{command_id}")

    cancelled = client.post(f"/api/v1/commands/{command_id}/cancel", json={"reason": "obsolete"})
    assert cancelled.status_code == 200
    text = text_of(client, f"/commands/{command_id}")
    assert "It ended before a worker took it." in text
    assert "Not started yet" not in text


def test_a_lease_is_not_said_to_be_renewed_by_every_handler(client: FlaskClient) -> None:
    assert "its lease; some handlers renew it while they run." in text_of(client, "/settings")


def test_an_undo_is_offered_only_where_it_can_be_done(
    client: FlaskClient, run_all: Callable[..., None]
) -> None:
    answer = client.post("/api/v1/commands/bulk", json={"count": 501})
    assert answer.status_code == 201
    run_all("permanent")
    body = {"filter": {"error_code": "BROKEN"}, "delay_seconds": 3600}
    answer = client.post("/api/v1/tsq/bulk-retry", json=body)
    assert answer.status_code == 202
    job = f"/troubleshooting/actions/{got(answer)['job_id']}"
    eventually_now(lambda: "501 retried." in text_of(client, job))

    text = text_of(client, job)
    assert "Retried means put back in the queue, at " in text
    assert f"{job}/undo" not in text


def test_commands_that_wait_for_their_time_do_not_wait_for_a_worker(
    client: FlaskClient,
    conn: psycopg.Connection[Any],
    send: Callable[..., str],
    run_all: Callable[..., None],
) -> None:
    command_id = send()
    run_all("permanent")
    silent_for(conn, 600)
    retried = client.post(f"/api/v1/tsq/{command_id}/retry", json={"delay_seconds": 3600})
    assert retried.status_code == 200
    assert "Commands wait until one does." in text_of(client, "/")

    send()
    assert "1 command waits until one does." in text_of(client, "/")


def test_a_pause_is_told_on_the_dashboard_and_of_every_command_that_waits(
    client: FlaskClient, conn: psycopg.Connection[Any], send: Callable[..., str], worker: int
) -> None:
    command_id = send()
    made = client.post(
        "/api/v1/pauses",
        json={
            "command_type": "TestCommand", "reason": "stock is down.", "operator": "ann",
            "seconds": 3600,
        },
    )  # fmt: skip
    assert made.status_code == 201

    assert "TestCommand is paused" in text_of(client, "/")
    assert "stock is down." in text_of(client, "/pauses")
    explanation = got(client.get(f"/api/v1/commands/{command_id}"))["explanation"]
    assert explanation.startswith("ann paused TestCommand until ")
    assert explanation.endswith(": stock is down. It waits for attempt 1 of 3.")

    conn.execute("select * from command_bus.claim_commands_v3('test', %s, 1, 600, 3)", (worker,))
    assert got(client.get(f"/api/v1/commands/{command_id}"))["parked"] == "PAUSED"
    [listed] = got(client.get("/api/v1/pauses"))["pauses"]
    assert (listed["waiting"], listed["waiting_is_exact"]) == (1, True)

    path = f"/api/v1/pauses/{listed['pause_id']}?operator=bob"
    assert client.delete(path, json={}).status_code == 200
    assert client.delete(path, json={}).status_code == 404
    assert got(client.get("/api/v1/pauses"))["pauses"] == []
    assert "is paused" not in text_of(client, "/")
    assert "bob" in text_of(client, "/pauses")


def test_a_request_to_cancel_is_told_until_the_worker_has_carried_it_out(
    client: FlaskClient, conn: psycopg.Connection[Any], send: Callable[..., str], worker: int
) -> None:
    command_id = send()
    conn.execute(CLAIMED, (worker,))
    path = f"/api/v1/commands/{command_id}"
    assert "Ask to cancel…" in text_of(client, f"/commands/{command_id}")

    asked = client.post(f"{path}/request-cancel", json={"operator": "ann", "reason": "wrong"})

    assert (asked.status_code, got(asked)["status"]) == (202, "IN_PROGRESS")
    assert got(client.get(path))["explanation"].endswith(" ann asks to cancel it.")
    assert "Ask to cancel…" not in text_of(client, f"/commands/{command_id}")
    assert client.post(f"{path}/cancel", json={"operator": "ann", "reason": "r"}).status_code == 409

    conn.execute(
        "select command_bus.settle_cancelled('test', %s, jsonb_build_array(jsonb_build_object("
        " 'command_id', command_id, 'msg_id', msg_id, 'claim_no', claim_no)))"
        " from command_bus_command where command_id = %s",
        (worker, command_id),
    )
    found = got(client.get(path))
    assert (found["status"], found["explanation"]) == ("CANCELLED", "ann cancelled it: wrong.")
    assert [each["outcome"] for each in found["attempt_list"]] == ["cancelled"]
    again = client.post(f"{path}/request-cancel", json={"operator": "ann", "reason": "r"})
    assert again.status_code == 409
