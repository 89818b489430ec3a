"""The pages of load-test runs as a browser without scripts asks for them."""

from __future__ import annotations

import re
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow
from werkzeug.test import TestResponse

from app import create_app
from tests.applications import close
from tests.integration.api.conftest import app, client, conn, got
from tests.waiting import eventually_now

__all__ = ["app", "client", "conn"]

UNKNOWN = UUID("01a1fc82-ca21-74dd-bd32-ab262c74e3b8")


def generate(client: FlaskClient, name: str, count: int = 1) -> str:
    """Generate commands through the API; the run's id."""
    return str(
        got(client.post("/api/v1/commands/bulk", json={"count": count, "name": name}))["run_id"]
    )


def token(client: FlaskClient, path: str) -> str:
    """What a form of the page proves its origin with."""
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get(path).text)
    assert found is not None
    return found[1]


def names(page: str) -> list[str]:
    return re.findall(r"Run-\d+(?=</a>)", page)


def send_load(client: FlaskClient, **fields: str) -> TestResponse:
    """Send the form of the send page that generates commands."""
    form = {"csrf_token": token(client, "/send"), "count": "5", "mix": "success"}
    return client.post("/send/load", data={**form, **fields})


def test_what_a_run_cannot_have_is_refused_beside_its_field(client: FlaskClient) -> None:
    refused = [
        *(("count", text) for text in ("0", "0000000000010000000", "1e3", "9" * 5_000)),
        *(("load_max_attempts", text) for text in ("0", "00000000000010000", "\u0661")),
        *(("name", text) for text in ("a\x00", "a\nb", "\x1b[2Ja", "x" * 201)),
    ]
    for field, text in refused:
        answer = send_load(client, **{field: text})

        assert answer.status_code == 422, (field, text)
        assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', answer.text), (field, text)
    assert got(client.get("/api/v1/load-tests"))["total"] == 0


def test_a_run_is_named_and_counted_as_its_form_says(client: FlaskClient) -> None:
    assert send_load(client, count="0005", name=" Grüße, 日本 [b] ").status_code == 303

    [run] = got(client.get("/api/v1/load-tests"))["runs"]
    assert (run["name"], run["count"]) == ("Grüße, 日本 [b]", 5)


def test_why_commands_cannot_be_generated_is_said_on_the_form(
    client: FlaskClient, conn: psycopg.Connection[TupleRow]
) -> None:
    conn.execute("delete from command_bus_domain where domain = 'test'")

    answer = send_load(client, name="Nowhere")

    assert answer.status_code == 422
    assert "does not exist" in answer.text
    assert 'value="Nowhere"' in answer.text


def test_runs_are_paged_from_the_latest_to_the_first(client: FlaskClient) -> None:
    for number in range(12):
        generate(client, f"Run-{number}")

    first = client.get("/load-tests?limit=10").text
    following = re.search(r'href="([^"]*cursor=[^"]*)"', first)
    assert following is not None
    second = client.get(following[1].replace("&amp;", "&")).text

    assert names(first) + names(second) == [f"Run-{number}" for number in range(11, -1, -1)]


@pytest.mark.parametrize("path", ["/load-tests/7", f"/load-tests/{UNKNOWN}"])
def test_an_unknown_run_is_not_found(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("text", ["7", "", str(UNKNOWN), "%00"])
def test_an_unknown_run_is_not_compared(client: FlaskClient, text: str) -> None:
    known = generate(client, "Run-1")

    assert client.get(f"/load-tests/compare?run={known}&run={text}").status_code == 404


def test_a_run_that_goes_on_is_not_compared(client: FlaskClient) -> None:
    runs = [generate(client, "Early"), generate(client, "Late")]

    answer = client.get(f"/load-tests/compare?run={runs[0]}&run={runs[1]}", follow_redirects=True)

    assert "has not ended yet" in answer.text
    assert answer.request.path == "/load-tests"


def test_a_generation_is_cancelled_through_another_web_process(
    client: FlaskClient, app: Flask, database_url: str
) -> None:
    run_id = generate(client, "Long", 1_000_000)
    page = f"/load-tests/{run_id}"
    other = create_app({"database_url": database_url, "secret_key": "for tests only"})
    try:
        asker = other.test_client()
        form = {"csrf_token": token(asker, page)}
        question = asker.post(f"{page}/cancel", data=form)
        assert "The commands already sent are still processed" in question.text
        answer = asker.post(f"{page}/cancel", data={**form, "confirmed": "yes"})
        assert answer.status_code == 303

        eventually_now(lambda: got(client.get(f"/api/v1{page}"))["generated_at"] is not None)
        run = got(client.get(f"/api/v1{page}"))
        assert run["cancel_requested_at"] is not None
        assert run["generated_count"] < 1_000_000
    finally:
        close(other)
