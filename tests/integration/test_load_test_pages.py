"""The pages of load-test runs as a browser without scripts asks for them."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.models import db
from tests.integration.api.conftest import app, client, got
from tests.waiting import eventually_now

__all__ = ["app", "client"]

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
        assert "What was sent is processed" in question.text
        answer = asker.post(f"{page}/cancel", data={**form, "confirmed": "yes"})
        assert answer.status_code == 303

        eventually_now(lambda: got(client.get(f"/api/v1{page}"))["generated_at"] is not None)
        run = got(client.get(f"/api/v1{page}"))
        assert run["cancel_requested_at"] is not None
        assert run["generated_count"] < 1_000_000
    finally:
        with other.app_context():
            db.session.remove()
            db.engine.dispose()
        other.extensions["portal"].close()
