"""Sending, listing, looking at and cancelling commands over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.models import TestCommand, search
from app.models.paging import SCAN_LIMIT
from app.web.formats import short_id
from commandbus.errors import DuplicateCommandError
from tests.integration.api.conftest import got
from tests.waiting import eventually_now

URL = "/api/v1/commands"


def test_a_sent_command_is_answered_as_the_contract_says(client: FlaskClient) -> None:
    answer = client.post(
        URL,
        json={
            "behavior": {"type": "fail_permanent", "error_code": "NO_FUNDS"},
            "payload": {"n": 1},
            "correlation_id": "0190f5b2-7c1e-7a3b-8c2d-1e2f3a4b5c6d",
            "max_attempts": 5,
        },
    )

    assert answer.status_code == 201
    body = got(answer)
    assert body.keys() == {
        "command_id", "status", "msg_id", "behavior", "payload", "correlation_id",
    }  # fmt: skip
    assert body["status"] == "PENDING"
    assert body["behavior"] == {"type": "fail_permanent", "error_code": "NO_FUNDS"}
    stored = got(client.get(f"{URL}/{body['command_id']}"))
    assert stored["payload"] == {"n": 1}
    assert stored["behavior"] == body["behavior"]
    assert stored["max_attempts"] == 5
    assert stored["explanation"].startswith("Attempt 1 of 5 has not started: no worker is running")


def test_the_same_content_is_answered_200_and_other_content_409(client: FlaskClient) -> None:
    body: dict[str, Any] = {
        "command_id": str(uuid4()),
        "behavior": {"type": "success"},
        "payload": {"n": 1},
    }
    first = client.post(URL, json=body)

    same = client.post(URL, json={**body, "behavior": {"type": "success", "execution_time_ms": 0}})
    others = [
        client.post(URL, json={**body, "behavior": {"type": "fail_permanent"}}),
        client.post(URL, json={**body, "payload": {"n": 2}}),
        client.post(URL, json={**body, "max_attempts": 2}),
        client.post(URL, json={**body, "reply_to": "test__replies"}),
    ]

    assert (first.status_code, same.status_code) == (201, 200)
    assert got(same)["msg_id"] == got(first)["msg_id"]
    assert [other.status_code for other in others] == [409] * 4
    assert {got(other)["code"] for other in others} == {"duplicate_command"}
    assert got(client.get(URL))["total"] == 1


def test_of_many_threads_that_send_one_id_exactly_one_creates_it(app: Flask) -> None:
    body = {"command_id": str(uuid4()), "behavior": {"type": "success"}}

    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda _: app.test_client().post(URL, json=body).status_code, range(24))
        )

    assert sorted(answers) == [200] * 23 + [201]


def test_a_command_without_behavior_is_not_given_one(
    client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    command_id = str(uuid4())
    conn.execute(
        "select command_bus.send_commands('test', jsonb_build_array(jsonb_build_object("
        "'command_id', %s::text, 'command_type', 'TestCommand')))",
        (command_id,),
    )

    answer = client.post(URL, json={"command_id": command_id, "behavior": {"type": "success"}})

    assert answer.status_code == 409
    assert conn.execute("select count(*) from test_command").fetchone() == (0,)


def test_a_test_command_and_its_command_live_together(app: Flask) -> None:
    with app.app_context():
        sent = TestCommand.create({"type": "success"}, {"n": 1})
        stored = TestCommand.get(sent.command_id)
        assert stored is not None
        stored.update(behavior={"type": "fail_permanent"})
        assert stored.behavior == {"type": "fail_permanent"}
        with pytest.raises(DuplicateCommandError):
            TestCommand.create({"type": "success"}, {"n": 1}, command_id=sent.command_id)
        stored.delete()
        assert TestCommand.get(sent.command_id) is None


def test_bulk_creates_the_distribution_exactly_and_names_the_run(client: FlaskClient) -> None:
    distribution = {"success": 90, "fail_transient_then_succeed": 5, "fail_permanent": 5}

    answer = client.post(
        f"{URL}/bulk", json={"count": 1000, "behavior_distribution": distribution, "delay_ms": 10}
    )

    assert answer.status_code == 201
    body = got(answer)
    assert body["created"] == 1000
    assert len(body["command_ids"]) == 100
    assert body["behavior_distribution"] == distribution
    assert body["generation_time_ms"] >= 0
    assert body["queue_time_ms"] >= 0
    progress = got(client.get(f"/api/v1/stats/load-test?run_id={body['run_id']}"))
    assert (progress["total_commands"], progress["pending"]) == (1000, 1000)
    assert progress["progress_percent"] == 0
    one = got(client.get(f"{URL}/{body['command_ids'][0]}"))
    assert one["behavior"]["execution_time_ms"] == 10


def test_above_ten_thousand_the_run_goes_on_by_itself(client: FlaskClient) -> None:
    answer = client.post(f"{URL}/bulk", json={"count": 10_001, "name": "a large one"})

    assert answer.status_code == 202
    assert got(answer)["count"] == 10_001
    run = answer.headers["Location"]
    run_id = got(answer)["run_id"]
    assert run == f"/api/v1/load-tests/{run_id}"
    for url in (f"/api/v1/stats/load-test?run_id={run_id}", "/api/v1/stats/load-test"):
        begun = got(client.get(url))
        # Whoever waits until nothing is pending must not stop before the first one is sent.
        assert (begun["run_id"], begun["total_commands"]) == (run_id, 10_001)
        assert (begun["pending"], begun["progress_percent"]) == (10_001, 0)
    eventually_now(lambda: got(client.get(run))["state"] == "running")
    progress = got(client.get(f"/api/v1/stats/load-test?run_id={run_id}"))
    assert progress["total_commands"] == 10_001
    page = got(client.get(f"{URL}?limit=1&command_type=TestCommand"))
    assert (page["total"], page["total_is_exact"]) == (10_000, False)


def test_pages_by_cursor_show_every_command_once_in_both_directions(
    client: FlaskClient, send: Callable[..., str]
) -> None:
    sent = [send() for _ in range(7)]

    def walk(url: str, link: str) -> list[list[str]]:
        pages, cursor = [], url
        while True:
            page = got(client.get(cursor))
            pages.append([command["command_id"] for command in page["commands"]])
            if page[link] is None:
                return pages
            last.append(page)
            cursor = f"{URL}?limit=3&cursor={page[link]}"

    last: list[Any] = []
    forward = walk(f"{URL}?limit=3", "next_cursor")
    assert sum(forward, []) == sent[::-1]  # noqa: RUF017 - three short lists
    end = got(client.get(f"{URL}?limit=3&cursor={last[-1]['next_cursor']}"))
    backward = walk(f"{URL}?limit=3&cursor={end['previous_cursor']}", "previous_cursor")
    assert backward == [forward[1], forward[0]]


def test_filters_combine_and_totals_are_exact(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    done = send()
    run_all()
    troubled = send("fail_permanent", correlation_id="0190f5b2-7c1e-7a3b-8c2d-1e2f3a4b5c6d")
    run_all("permanent", code="100%_SURE")
    failed = send("fail_business")
    run_all("business", code="NOT_ALLOWED")
    waiting = send()

    def found(query: str) -> list[str]:
        page = got(client.get(f"{URL}?{query}"))
        assert page["total_is_exact"]
        assert page["total"] == len(page["commands"])
        return [command["command_id"] for command in page["commands"]]

    assert found("status=COMPLETED") == [done]
    assert found("status=IN_TSQ") == [troubled]
    assert found("status=FAILED") == [failed]
    assert found("status=PENDING") == [waiting]
    assert found("status=IN_PROGRESS") == []
    assert found("status=CANCELLED") == []
    assert found("command_type=TestCommand&status=IN_TSQ&domain=test") == [troubled]
    assert found("command_type=Other") == []
    assert found("domain=other") == []
    assert found(f"q={done}") == [done]
    assert found(f"q={done[:-6].upper()}") == [done]
    assert found("q=0190f5b2-7c1e-7a3b-8c2d-1e2f3a4b5c6d") == [troubled]
    assert found("q=NOT_ALLOWED") == [failed]
    assert found("q=100%25_SURE") == [troubled]
    assert found("q=NOT%25") == []
    assert found("q=NOT_ALLOWE_") == []
    assert found("q=NOT_ALLOWED&status=COMPLETED") == []
    assert found("created_after=2999-01-01T00:00:00Z") == []
    assert len(found("created_before=2999-01-01T00:00:00%2B02:00")) == 4


def test_an_error_code_finds_what_waits_for_a_retry(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    delayed = send("fail_permanent")
    run_all("permanent", code="FLAKY")
    client.post(f"/api/v1/tsq/{delayed}/retry", json={"delay_seconds": 600})
    retried = send("fail_transient_then_succeed")
    run_all("transient", code="FLAKY")
    other = send("fail_transient_then_succeed")

    def found(query: str) -> list[str]:
        page = got(client.get(f"{URL}?{query}"))
        assert (page["total"], page["total_is_exact"]) == (len(page["commands"]), True)
        return [command["command_id"] for command in page["commands"]]

    assert found("q=FLAKY") == [retried, delayed]
    assert found("q=FLAKY&status=PENDING") == [retried, delayed]
    assert found("q=FLAKY&status=FAILED") == []
    assert found("q=FLAKY&domain=other") == []
    assert found("q=OTHER") == []
    assert found(f"q={other}") == [other]
    client.post(f"{URL}/{retried}/cancel", json={"reason": "no longer needed"})
    assert found("q=FLAKY") == [retried, delayed]


def test_a_total_is_not_exact_where_more_wait_for_a_retry_than_are_looked_at(
    client: FlaskClient,
    send: Callable[..., str],
    run_all: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "CANDIDATE_LIMIT", 2)
    ids = [send("fail_transient_then_succeed") for _ in range(3)]
    run_all("transient", code="FLAKY")

    page = got(client.get(f"{URL}?q=FLAKY"))

    assert (page["total"], page["total_is_exact"]) == (2, False)
    assert {command["command_id"] for command in page["commands"]} < set(ids)
    assert got(client.get(f"{URL}?q=FLAKY&status=FAILED"))["total_is_exact"]


def test_only_a_pending_command_can_be_cancelled(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    waiting, reason = send(), {"reason": "no longer needed", "operator": "ann"}

    first = client.post(f"{URL}/{waiting}/cancel", json=reason)
    second = client.post(f"{URL}/{waiting}/cancel", json=reason)

    assert first.status_code == 200
    assert got(first) == {"command_id": waiting, "status": "CANCELLED"}
    assert second.status_code == 409
    assert got(second)["current_status"] == "CANCELLED"
    detail = got(client.get(f"{URL}/{waiting}"))
    assert detail["explanation"] == "ann cancelled it: no longer needed."
    done = send()
    run_all()
    assert client.post(f"{URL}/{done}/cancel", json=reason).status_code == 409


def test_the_detail_tells_attempts_and_timing(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    command_id = send()
    run_all("transient", code="BUSY")
    run_all()

    detail = got(client.get(f"{URL}/{command_id}"))

    assert detail["status"] == "COMPLETED"
    assert [(a["number"], a["outcome"], a["error_code"]) for a in detail["attempt_list"]] == [
        (1, "failed", "BUSY"),
        (2, "completed", None),
    ]
    timing = detail["timing"]
    assert timing["total_ms"] >= timing["running_ms"] > 0
    assert detail["result"] == {"status": "success"}


def test_an_id_in_two_domains_has_to_be_told_apart(
    client: FlaskClient, send: Callable[..., str], conn: psycopg.Connection[Any]
) -> None:
    command_id = send()
    conn.execute("select command_bus.create_domain('other')")
    conn.execute(
        "select command_bus.send_commands('other', jsonb_build_array(jsonb_build_object("
        "'command_id', %s::text, 'command_type', 'TestCommand')))",
        (command_id,),
    )

    ambiguous = client.get(f"{URL}/{command_id}")

    assert ambiguous.status_code == 409
    assert got(ambiguous)["code"] == "ambiguous_command"
    assert got(ambiguous)["domains"] == ["other", "test"]
    assert got(client.get(f"{URL}/{command_id}?domain=other"))["domain"] == "other"
    assert client.get(f"{URL}/{command_id}?domain=third").status_code == 404
    assert client.get(f"/api/v1/audit/{command_id}").status_code == 409


def test_stored_json_that_python_cannot_hold_does_not_break_its_page(
    client: FlaskClient, send: Callable[..., str], conn: psycopg.Connection[Any]
) -> None:
    command_id = send()
    conn.execute("update command_bus_command set data = %s::jsonb", ("[" * 3000 + "]" * 3000,))

    answer = client.get(f"{URL}/{command_id}")

    assert answer.status_code == 200
    assert "_unreadable" in got(answer)["payload"]


def test_the_past_is_told_by_the_budget_that_a_command_had_then(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    found: dict[str, str] = {}
    for name, kind in [("done", "success"), ("refused", "business"), ("wrong", "permanent")]:
        found[name] = send()
        run_all(kind, budget=3)
    found["only"] = send()
    run_all("transient", budget=1)
    found["spent"] = send()
    for _ in range(5):
        run_all("transient", budget=5)
    found["lowered"] = send()
    run_all("transient", budget=5)
    run_all("transient", budget=5)
    run_all("transient", budget=1)
    found["waiting"] = send()
    run_all("transient", budget=5)
    details = {}
    for budget in (8, 1):
        retry = {"retry": {"max_attempts": budget}}
        assert client.put("/api/v1/config", json=retry).status_code == 200
        details = {name: got(client.get(f"{URL}/{each}")) for name, each in found.items()}

        said = {name: detail["explanation"].partition(":")[0] for name, detail in details.items()}
        assert said["wrong"] == "Attempt 1 failed with a permanent error"
        assert said["only"] == "Its only attempt failed"
        assert said["spent"] == "All 5 attempts failed"
        assert said["lowered"] == "2 attempts failed, and its budget was 1 by then"
        assert [details[name]["budget"] for name in ("done", "refused", "wrong")] == [3, 3, 3]
        assert [details[name]["budget"] for name in ("only", "spent", "waiting")] == [1, 5, budget]
        for name, text in [("spent", "of 5"), ("done", "of 3"), ("only", "of 1")]:
            assert f"<small>{text}</small>" in client.get(f"/commands/{found[name]}").text, name
        listed = client.get("/troubleshooting").text
        assert '5<span class="text-muted"> of 5</span>' in listed
        assert '2<span class="text-muted"> of 5</span>' in listed
    assert details["waiting"]["explanation"].startswith(
        "It has had 1 attempt, and its budget is now 1: the next worker that takes it moves it"
    )


def test_where_an_error_came_from_is_told_and_folded_on_the_page(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    told = {
        "traceback": ['File "/srv/orders.py", line 4, in h: return c.data["<b>nope</b>"]'],
        "notes": ["while reading"],
        "cause": {"type": "OSError", "message": "gone", "direct": True, "traceback": []},
    }
    bug = send()
    run_all("permanent", details=told)
    own = send()
    run_all("permanent", details={"traceback": 5, "limit": 7})

    [attempt] = got(client.get(f"{URL}/{bug}"))["attempt_list"]
    assert attempt["error_details"] == told
    page = client.get(f"/commands/{bug}").text
    start = page.index('id="error-details"')
    folded = page[start : page.index("</details>", start)]
    assert "<summary>" in folded
    assert "return c.data[&#34;&lt;b&gt;nope&lt;/b&gt;&#34;]\nnote: while reading" in folded
    assert "caused by:\nOSError: gone" in folded
    assert "&#34;limit&#34;: 7" in client.get(f"/commands/{own}").text


def test_timeouts_of_a_distribution_outlast_the_lease_unless_a_time_is_given(
    client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    mix = {"success": 50, "timeout": 50}
    given: list[tuple[dict[str, Any], int]] = [({}, 35_000), ({"delay_ms": 5}, 5)]
    for more, runs in given:
        body = {"count": 2, "behavior_distribution": mix, **more}
        answer = client.post(f"{URL}/bulk", json=body)
        assert answer.status_code == 201, answer.text

        [stored] = conn.execute(
            "select t.behavior from test_command as t join command_bus_command using (command_id)"
            " where batch_id = %s and t.behavior ->> 'type' = 'timeout'",
            (got(answer)["run_id"],),
        ).fetchall()
        assert stored[0]["execution_time_ms"] == runs


def test_the_send_page_tells_the_settings_of_the_workers_that_run(
    client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    assert "settings of their own" not in client.get("/send").text
    own = {"max_attempts": {"value": 1}, "visibility_timeout": {"value": 2}}
    worker = {"domain": "test", "host": "h", "pid": 1, "version": "1", "concurrency": 1}
    conn.execute(
        "select command_bus.register_worker(%s)",
        (json.dumps({**worker, "heartbeat_seconds": 60, "settings": own}),),
    )

    page = client.get("/send").text

    assert "settings of their own" in page
    assert "up to <strong>1 time</strong>" in page
    assert 'data-budget="1" data-lease-ms="2000" data-timeout-ms="7000"' in page


def test_the_send_page_shows_a_stored_setting_as_soon_as_it_is_changed(
    client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    """A worker that follows the stored settings says so with its next heartbeat only."""
    followed = {"visibility_timeout": {"value": 30, "source": "stored"}}
    worker = {"domain": "test", "host": "h", "pid": 1, "version": "1", "concurrency": 1}
    conn.execute(
        "select command_bus.register_worker(%s)",
        (json.dumps({**worker, "heartbeat_seconds": 60, "settings": followed}),),
    )
    version = got(client.get("/api/v1/config"))["version"]
    changed = {"worker": {"visibility_timeout": 77}, "version": version}
    answer = client.put("/api/v1/config", json=changed)
    assert answer.status_code == 200, answer.text

    page = client.get("/send").text

    assert "<strong>77 s</strong>" in page
    assert "settings of their own" not in page


FORMS: dict[str, Callable[[str], str]] = {
    "as lists show it": short_id,
    "with three dots": lambda command_id: short_id(command_id).replace("…", "..."),
    "in braces": lambda command_id: f"{{{command_id}}}",
    "in quotes": lambda command_id: f'"{command_id}"',
    "in upper case": lambda command_id: command_id.upper(),
    "as a URN": lambda command_id: f"urn:uuid:{command_id}",
    "without hyphens": lambda command_id: command_id.replace("-", ""),
    "with blanks": lambda command_id: f" {command_id}\n",
    "with what nobody sees": lambda command_id: f"\u200b{command_id}\ufeff",
}


@pytest.mark.parametrize("page", ["/commands/{}", "/audit/{}", "/commands/{}/cancel"])
def test_an_id_in_an_address_has_one_spelling(
    client: FlaskClient, send: Callable[..., str], page: str
) -> None:
    command_id = send()
    for form in ("in braces", "in upper case", "as a URN", "without hyphens"):
        asked = client.get(page.format(quote(FORMS[form](command_id))) + "?domain=test&tz=A%2FB")
        assert asked.status_code == 302, form
        assert asked.location == page.format(command_id) + "?domain=test&tz=A%2FB", form
    assert client.get(page.format(command_id)).status_code in (200, 302)
    strict = client.get(f"/api/v1/commands/{command_id.upper()}")
    assert strict.status_code == 404
    assert strict.is_json


def test_a_pasted_id_is_found_everywhere(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    failed = send("fail_permanent")
    run_all("permanent")
    sent = [send(), failed, send()]
    for form, write in FORMS.items():
        for command_id in sent:
            asked = {"q": write(command_id)}
            found = got(client.get("/api/v1/commands", query_string=asked))["commands"]
            assert [each["command_id"] for each in found] == [command_id], form
            page = client.get("/commands", query_string=asked)
            assert page.status_code == 302, form
            assert page.location.startswith(f"/commands/{command_id}"), form
            trail = client.get("/audit", query_string={"id": write(command_id)})
            assert trail.location == f"/audit/{command_id}", form
        asked = {"q": write(failed)}
        found = got(client.get("/api/v1/tsq", query_string=asked))["commands"]
        assert [each["command_id"] for each in found] == [failed], form
        assert f"tsq-test-{failed}" in client.get("/troubleshooting", query_string=asked).text, form


def test_a_search_without_hits_says_what_was_searched(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    send("fail_permanent")
    run_all("permanent", "DECLINED", "The purple card was refused")
    done = send()

    instead = client.get("/commands?q=purple").text
    nothing = client.get("/commands?q=green").text
    other = client.get("/troubleshooting", query_string={"q": short_id(done)}).text

    assert "1 in the troubleshooting queue matches" in instead
    assert 'href="/troubleshooting?q=purple"' in instead
    assert "No command has this id, correlation id or error code" in nothing
    assert "Nothing was sent" not in instead + nothing
    assert "exists, but it is not in the troubleshooting queue" in other


OLD = """
    insert into command_bus_command
        (command_id, domain, command_type, created_at, updated_at, status, data)
    select (lpad(to_hex(n), 8, '0') || '-0000-7000-8000-' || lpad(to_hex(n * 7919), 12, '0'))::uuid,
        'test', case n when 1 then 'Rare' else 'Common' end, now() - make_interval(secs => %s - n),
        now(), 'COMPLETED', '{}'
    from generate_series(1, %s) as n"""


def test_a_rare_filter_is_looked_for_beyond_one_scan(
    app: Flask, client: FlaskClient, conn: psycopg.Connection[Any]
) -> None:
    count = SCAN_LIMIT + 10
    conn.execute(OLD, (count, count))

    found = got(client.get("/api/v1/commands?command_type=Rare"))
    page = client.get("/commands?command_type=Rare").text

    assert [each["command_type"] for each in found["commands"]] == ["Rare"]
    assert (found["total"], found["total_is_exact"], found["next_cursor"]) == (1, True, None)
    assert "1 command, page 1 of 1" in page

    app.config["SEARCH_SECONDS"] = 0.0  # no time for a second scan
    found = got(client.get("/api/v1/commands?command_type=Rare"))
    page = client.get("/commands?command_type=Rare").text

    assert (found["total"], found["total_is_exact"]) == (0, False)
    assert found["next_cursor"] is not None
    assert "20,000 commands were searched, back to" in page
    assert "Search further" in page
    assert "page 1 of" not in page
    further = got(client.get(f"/api/v1/commands?command_type=Rare&cursor={found['next_cursor']}"))
    assert (len(further["commands"]), further["next_cursor"]) == (1, None)


MOMENTS = ("2024-03-31T02:30:00+02:00", "2024-03-31 02:30:00+00", "2024-03-31t02:30z")


def test_times_in_an_address_may_have_lost_their_plus(
    client: FlaskClient, send: Callable[..., str]
) -> None:
    command_id = send()
    for moment in MOMENTS:
        for path in ("/api/v1/commands", "/api/v1/audit", "/commands", "/audit"):
            names = {
                "/api/v1/commands": ("created_after", "created_before"),
                "/commands": ("created_from", "created_before"),
            }.get(path, ("since", "until"))
            for name, is_found in zip(names, (True, False), strict=True):
                answer = client.get(f"{path}?{name}={moment.replace(' ', '%20')}")
                assert answer.status_code == 200, (path, name, moment, answer.text)
                is_there = command_id in answer.text or short_id(command_id) in answer.text
                assert is_there is is_found, (path, name, moment)
                assert "not a valid time" not in answer.text


def test_a_page_says_how_a_time_was_taken(client: FlaskClient) -> None:
    skipped = client.get("/commands?created_from=2024-03-31T02:30&tz=Europe/Berlin").text
    repeated = client.get("/audit?until=2024-10-27T02:30&tz=Europe/Berlin").text
    wrong = client.get("/commands?created_from=soon").text
    unknown = client.get("/audit?since=2024-03-31T02:30&tz=Middle/Earth").text
    plain = client.get("/commands?created_from=2024-03-31T03:30:00%2B02:00&tz=Europe/Berlin").text

    assert "never show 2024-03-31 02:30:00, so 2024-03-31 03:30:00 is used" in skipped
    assert 'value="2024-03-31T03:30:00"' in skipped
    assert "show 2024-10-27 02:30:00 twice; the second is used" in repeated
    assert "soon is not a valid time" in wrong
    assert "Unknown time zone Middle/Earth" in unknown
    assert 'value="2024-03-31T03:30:00"' in plain
    assert "is used" not in plain


def test_a_time_without_its_zone_is_refused_with_a_word_on_the_plus(client: FlaskClient) -> None:
    answer = client.get(f"{URL}?created_after=2024-03-31T02:30:00")

    assert answer.status_code == 422
    [error] = got(answer)["errors"]
    assert (error["field"], error["code"]) == ("created_after", "time_without_zone")
    assert "%2B" in error["message"]
