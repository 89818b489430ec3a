"""What operators do over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.actions import jobs
from app.actions import troubled as troubled_commands
from app.actions.orders import Action, Order
from tests.integration.api.conftest import got
from tests.waiting import eventually_now

URL = "/api/v1/tsq"

Troubled = Callable[..., list[str]]


@pytest.fixture
def troubled(send: Callable[..., str], run_all: Callable[..., None]) -> Troubled:
    """Brings commands into the troubleshooting queue; returns their ids."""

    def make(count: int = 1, code: str = "NO_FUNDS", message: str = "Account 7 is empty") -> Any:
        ids = [send("fail_permanent", payload={"n": n}) for n in range(count)]
        run_all("permanent", code, message)
        return ids

    return make


def test_the_list_shows_error_and_payload(client: FlaskClient, troubled: Troubled) -> None:
    [command_id] = troubled()

    page = got(client.get(URL))

    assert page["total"] == 1
    [command] = page["commands"]
    assert command["command_id"] == command_id
    assert command["payload"] == {"n": 0}
    assert command["status"] == "IN_TSQ"
    [listed] = got(client.get("/api/v1/commands"))["commands"]
    assert {name: command[name] for name in listed} == listed
    assert command["last_error_code"] == "NO_FUNDS"
    assert command["last_error_message"] == "Account 7 is empty"
    for query, total in {
        "error_code=NO_FUNDS": 1, "error_code=NO%25": 0, "q=account": 1, "q=%25": 0, "q=_": 1,
        "command_type=TestCommand": 1, "command_type=Other": 0, f"q={command_id}": 1,
        f"group_id={command['group_id']}": 1, "domain=other": 0,
    }.items():  # fmt: skip
        assert len(got(client.get(f"{URL}?{query}"))["commands"]) == total, query


@pytest.mark.parametrize(
    ("action", "body", "status"),
    [
        ("retry", {}, "PENDING"),
        ("cancel", {"reason": "because"}, "CANCELLED"),
        ("complete", {"result_data": {"ok": True}, "notes": "by hand"}, "COMPLETED"),
    ],
)
def test_an_action_succeeds_once_and_is_refused_then(
    client: FlaskClient, troubled: Troubled, action: str, body: dict[str, Any], status: str
) -> None:
    [command_id] = troubled()

    first = client.post(f"{URL}/{command_id}/{action}", json={**body, "operator": "ann"})
    second = client.post(f"{URL}/{command_id}/{action}", json=body)

    assert first.status_code == 200
    assert got(first) == {"command_id": command_id, "status": status}
    assert second.status_code == 409
    assert got(second)["current_status"] == status
    events = got(client.get(f"/api/v1/audit/{command_id}"))["events"]
    assert events[-1]["event_type"] == f"OPERATOR_{action.upper()}"
    assert events[-1]["details"]["operator"] == "ann"


def test_a_delayed_retry_can_be_undone_until_its_time(
    client: FlaskClient, troubled: Troubled
) -> None:
    [command_id] = troubled()
    client.post(f"{URL}/{command_id}/retry", json={"delay_seconds": 60, "operator": "ann"})
    waiting = got(client.get(f"/api/v1/commands/{command_id}"))

    undone = client.post(f"{URL}/{command_id}/undo-retry", json={"operator": "ann"})
    again = client.post(f"{URL}/{command_id}/undo-retry", json={"operator": "ann"})

    assert "can be undone" in waiting["explanation"]
    assert got(undone)["status"] == "IN_TSQ"
    assert again.status_code == 409
    assert got(client.get(URL))["total"] == 1


def test_an_action_on_a_set_answers_for_each_command(
    client: FlaskClient, troubled: Troubled
) -> None:
    first, second = troubled(2)
    client.post(f"{URL}/{second}/cancel", json={"reason": "because"})
    unknown = str(uuid4())

    answer = client.post(f"{URL}/bulk-retry", json={"command_ids": [first, second, unknown]})

    assert answer.status_code == 200
    body = got(answer)
    assert (body["retried"], body["skipped_count"]) == (1, 2)
    assert {skipped["command_id"]: skipped["reason"] for skipped in body["skipped"]} == {
        second: "invalid_state",
        unknown: "not_found",
    }


def test_a_filter_acts_on_everything_that_matches_and_nothing_else(
    client: FlaskClient, troubled: Troubled
) -> None:
    troubled(5, code="NO_FUNDS")
    troubled(2, code="TIMEOUT")

    answer = client.post(
        f"{URL}/bulk-complete",
        json={"filter": {"error_code": "NO_FUNDS"}, "result_data": {"ok": 1}, "notes": "all"},
    )

    assert got(answer) == {"completed": 5, "skipped": [], "skipped_count": 0}
    assert {c["last_error_code"] for c in got(client.get(URL))["commands"]} == {"TIMEOUT"}
    cancelled = client.post(f"{URL}/bulk-cancel", json={"filter": {}, "reason": "rest"})
    assert got(cancelled)["cancelled"] == 2
    assert got(client.get(URL))["total"] == 0


def test_like_failures_form_a_group(client: FlaskClient, troubled: Troubled) -> None:
    troubled(3, message="Account 7 is empty")
    troubled(2, message="Account 8 is empty")
    troubled(1, message="Something else")

    answer = got(client.get(f"{URL}/groups"))
    groups = answer["groups"]

    assert answer["total"] == 2
    assert [(group["message"], group["in_tsq"]) for group in groups] == [
        ("Account <n> is empty", 5),
        ("Something else", 1),
    ]
    assert sum(groups[0]["trend"]) == 5
    largest = got(client.get(f"{URL}/groups?limit=1"))
    assert (largest["groups"], largest["total"]) == (groups[:1], 2)


def test_messages_that_no_command_explains_are_listed(
    client: FlaskClient, run_all: Callable[..., None], conn: psycopg.Connection[Any]
) -> None:
    for name in ("world", "moon"):
        conn.execute("select pgmq.send('test__commands', %s::jsonb)", (f'{{"hello": "{name}"}}',))
    run_all()

    second, first = got(client.get(f"{URL}/rejected"))["messages"]

    assert {first["reason"], second["reason"]} == {"The message names no command_id"}
    assert got(client.get(f"{URL}/rejected?limit=1"))["messages"] == [second]
    before = f"{URL}/rejected?before={second['rejected_id']}"
    assert got(client.get(before))["messages"] == [first]


def test_more_than_500_matches_are_dealt_with_by_a_job_that_can_be_followed(
    client: FlaskClient, troubled: Troubled
) -> None:
    troubled(3, code="OTHER")
    troubled(501, code="MANY")
    body = {"filter": {"error_code": "MANY"}, "reason": "closed", "operator": "ann"}

    answer = client.post(f"{URL}/bulk-cancel", json=body)

    assert answer.status_code == 202
    url = f"{URL}/jobs/{got(answer)['job_id']}"
    assert answer.headers["Location"] == url
    assert (got(answer)["action"], got(answer)["operator"]) == ("cancel", "ann")
    eventually_now(lambda: got(client.get(url))["state"] == "finished")
    job = got(client.get(url))
    assert (job["expected"], job["done"], job["changed"]) == (501, 501, {})
    assert {c["last_error_code"] for c in got(client.get(URL))["commands"]} == {"OTHER"}
    assert got(client.get("/api/v1/stats"))["counts"]["CANCELLED"] == 501
    assert (job["gone"], job.pop("skipped")) == (0, [])
    assert job in got(client.get(f"{URL}/jobs"))["jobs"]
    assert got(client.get(f"{URL}/jobs?before={job['job_id']}"))["jobs"] == []
    stopped = client.post(f"{url}/stop", json={})
    assert (stopped.status_code, got(stopped)["current_state"]) == (409, "finished")


def test_a_job_says_how_many_were_gone_before_their_turn(
    app: Flask, client: FlaskClient, troubled: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.app_context():
        runner = jobs.current_runner()
    ids = troubled(502)
    with monkeypatch.context() as held:
        held.setattr(runner, "start", lambda _: None)
        answer = client.post(f"{URL}/bulk-cancel", json={"filter": {}, "reason": "closed"})
    job = got(answer)
    page, url = f"/troubleshooting/actions/{job['job_id']}", f"{URL}/jobs/{job['job_id']}"
    words = "2 of the 502 were no longer in the queue when their turn came."
    assert (job["state"], job["gone"], job["skipped"]) == ("running", None, [])
    assert words not in client.get(page).text
    client.post(f"{URL}/bulk-complete", json={"command_ids": ids[:2], "result_data": {}})

    runner.start(UUID(job["job_id"]))

    eventually_now(lambda: got(client.get(url))["state"] == "finished")
    job = got(client.get(url))
    assert (job["expected"], job["done"], job["changed"], job["gone"]) == (502, 500, {}, 2)
    assert f"500 cancelled. {words}" in client.get(page).text


def test_a_stopped_job_does_not_guess_how_many_are_gone(
    app: Flask, client: FlaskClient, troubled: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.app_context():
        monkeypatch.setattr(jobs.current_runner(), "start", lambda _: None)
    troubled(501)
    begun = client.post(f"{URL}/bulk-cancel", json={"filter": {}, "reason": "closed"})

    stopped = got(client.post(f"{begun.headers['Location']}/stop", json={}))

    assert (stopped["state"], stopped["done"], stopped["gone"]) == ("stopped", 0, None)


def test_a_job_names_what_it_skipped(app: Flask, client: FlaskClient, troubled: Troubled) -> None:
    cancelled, done = troubled(2)
    client.post(f"{URL}/{cancelled}/cancel", json={"reason": "because"})
    unknown = str(uuid4())
    order = Order(
        action=Action.CANCEL,
        operator="ann",
        chosen=[("test", UUID(command_id)) for command_id in (cancelled, unknown, done)],
        reason="closed",
    )
    with app.app_context():
        job_id = troubled_commands.carry_out(order).job_id

    job = got(client.get(f"{URL}/jobs/{job_id}"))

    assert (job["done"], job["gone"]) == (1, 0)
    assert sorted(job["skipped"], key=lambda each: str(each["reason"])) == [
        {"command_id": cancelled, "reason": "invalid_state", "current_status": "CANCELLED"},
        {"command_id": unknown, "reason": "not_found", "current_status": None},
    ]


def actions(client: FlaskClient) -> list[tuple[str, str, int, dict[str, int]]]:
    """What the list of actions holds, oldest first: action, operator, done, skipped."""
    listed = got(client.get(f"{URL}/jobs"))["jobs"]
    return [
        (job["action"], job["operator"], job["done"], job["changed"]) for job in reversed(listed)
    ]


def test_every_action_over_the_api_is_listed_with_its_operator(
    client: FlaskClient, troubled: Troubled, send: Callable[..., str]
) -> None:
    first, second, third, fourth = troubled(4)
    pending, unknown = send(), str(uuid4())

    client.post(f"{URL}/{first}/retry", json={"operator": "ann", "delay_seconds": 60})
    client.post(f"{URL}/{first}/undo-retry", json={"operator": "bob"})
    client.post(f"{URL}/{second}/cancel", json={"operator": "cid", "reason": "because"})
    client.post(f"{URL}/{third}/complete", json={"operator": "dan", "result_data": 1})
    client.post(f"/api/v1/commands/{pending}/cancel", json={"operator": "eve", "reason": "no"})
    ids = [second, unknown, fourth]
    client.post(f"{URL}/bulk-retry", json={"operator": "fay", "command_ids": ids})
    client.post(f"{URL}/bulk-cancel", json={"operator": "gil", "filter": {}, "reason": "rest"})

    assert actions(client) == [
        ("retry", "ann", 1, {}),
        ("undo_retry", "bob", 1, {}),
        ("cancel", "cid", 1, {}),
        ("complete", "dan", 1, {}),
        ("cancel_pending", "eve", 1, {}),
        ("retry", "fay", 1, {"CANCELLED": 1, "NOT_FOUND": 1}),
        ("cancel", "gil", 1, {}),
    ]
    page = client.get("/troubleshooting?view=actions").text
    assert "1 retried, 2 skipped: 1 CANCELLED, 1 not found" in page
    assert "1 back in the queue" in page
    job = got(client.get(f"{URL}/jobs"))["jobs"][1]
    assert f"/commands/{unknown}" in client.get(f"/troubleshooting/actions/{job['job_id']}").text


def test_a_refused_action_is_listed_as_skipped_and_one_without_a_command_is_not(
    client: FlaskClient, troubled: Troubled
) -> None:
    [command_id] = troubled()
    client.post(f"{URL}/{command_id}/cancel", json={"operator": "ann", "reason": "because"})

    late = client.post(f"{URL}/{command_id}/retry", json={"operator": "bob"})
    unknown = client.post(f"{URL}/{uuid4()}/retry", json={"operator": "cid"})
    nothing = client.post(f"{URL}/bulk-retry", json={"operator": "dan", "filter": {}})

    assert (late.status_code, unknown.status_code, nothing.status_code) == (409, 404, 200)
    assert actions(client) == [
        ("cancel", "ann", 1, {}),
        ("retry", "bob", 0, {"CANCELLED": 1}),
    ]
    assert (
        "None retried, 1 skipped: 1 CANCELLED" in client.get("/troubleshooting?view=actions").text
    )


def test_a_delayed_retry_of_many_waits(client: FlaskClient, troubled: Troubled) -> None:
    ids = troubled(501)

    answer = client.post(f"{URL}/bulk-retry", json={"filter": {}, "delay_seconds": 600})

    url = answer.headers["Location"]
    eventually_now(lambda: got(client.get(url))["state"] == "finished")
    waiting = got(client.get(f"/api/v1/commands/{ids[-1]}"))
    assert waiting["status"] == "PENDING"
    assert "can be undone" in waiting["explanation"]


def test_an_unknown_job_is_not_found(client: FlaskClient) -> None:
    assert client.get(f"{URL}/jobs/{uuid4()}").status_code == 404
    assert client.post(f"{URL}/jobs/{uuid4()}/stop", json={}).status_code == 404
    assert client.get(f"{URL}/jobs/7").status_code == 404
