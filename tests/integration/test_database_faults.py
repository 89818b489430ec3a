"""Whatever a database answers: no page and no endpoint takes it for a fault of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from anyio.from_thread import start_blocking_portal
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from app.server.errors import PROBLEM_TYPE
from app.server.portal import WITHOUT_DATABASE
from app.settings.logs import TextFormatter
from tests.applications import close
from tests.chaos.proxy import Error, Proxy
from tests.conftest import databases

API = "/api/v1"
FOR_EVER = 10**9
PASSING = {
    "25006": "read_only",
    "25P03": "ended_transaction",
    "40001": "busy",
    "40P01": "busy",
    "53100": "disk_full",
    "53200": "out_of_memory",
    "53300": "too_many_connections",
    "55P03": "locked",
    "57014": "timeout",
    "58030": "io_error",
    "XX000": "database_fault",
    "XX001": "database_fault",
    "0A000": "changed_schema",
}
LASTING = {
    "42P01": "incomplete_database",
    "42883": "incomplete_database",
    "42703": "incomplete_database",
    "3F000": "incomplete_database",
    "42501": "no_rights",
    "26000": "unsuitable_connection",
    "23505": "database_refused",
    "P0001": "database_refused",
}
ENDING = ("57P01", "57P02", "57P03", "08006")
"""Those with which the server ends the connection."""
BODIES = {
    f"{API}/commands": {"behavior": {"type": "success"}},
    f"{API}/commands/bulk": {"count": 2},
    f"{API}/load-tests": {"count": 2},
}
FORMS = {
    "/send": {"behavior": "success"},
    "/send/load": {"count": "2"},
}


@pytest.fixture(scope="module")
def proxy(server_url: str, template_database: str) -> Iterator[Proxy]:
    """A proxy on a thread of its own, since the clients here are not asynchronous."""
    with databases(server_url) as make_database, start_blocking_portal() as loop:
        made = Proxy(make_database(template_database))
        loop.call(made.start)
        yield made
        loop.call(made.close)


@pytest.fixture(scope="module")
def app(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The application behind the proxy."""
    made = create_app(
        {
            "database_url": proxy.url,
            "data_dir": tmp_path_factory.mktemp("data"),
            "secret_key": "for tests only",
            "answer_timeout": 3,
        }
    )
    yield made
    close(made)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@contextmanager
def answering(proxy: Proxy, sqlstate: str, statement: bytes = b" ") -> Iterator[Error]:
    """Statements that contain *statement* are answered with an error; with one that ends the
    connection only the first."""
    times = 1 if sqlstate in ENDING else FOR_EVER
    proxy.error = Error(statement, sqlstate, times)
    try:
        yield proxy.error
    finally:
        proxy.error = None


def calls(app: Flask) -> Iterator[tuple[str, str, str]]:
    """Every endpoint with each of its methods, and an address that leads to it."""
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        path = re.sub(r"<any\((\w+)[^>]*>", r"\1", rule.rule)
        path = re.sub(r"<int:[^>]*>", "1", path).replace("<text>", "abc")
        path = re.sub(r"<[^>]*>", str(uuid4()), path)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            # Starting and stopping processes is proved elsewhere.
            if method == "GET" or "/workers" not in rule.rule:
                yield rule.endpoint, method, path


def asked(client: FlaskClient, method: str, path: str, token: str) -> TestResponse:
    if path.startswith("/api/"):
        body = BODIES.get(path, {})
        return client.open(path, method=method, json=None if method == "GET" else body)
    form = {**FORMS.get(path, {}), "csrf_token": token, "confirmed": "yes", "operator": "olga"}
    return client.open(path, method=method, data=None if method == "GET" else form)


def token_of(client: FlaskClient) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get("/send").text)
    assert found is not None
    return found[1]


def assert_is_told(answer: TestResponse, *where: object) -> None:
    """An answer that says what the matter is, in the form that its reader takes."""
    assert answer.status_code in (503, 504) or answer.status_code < 500, (where, answer.text)
    if answer.status_code < 500 or "health/ready" in answer.request.path:
        return
    if answer.request.path.startswith("/api/"):
        assert answer.content_type == PROBLEM_TYPE
        problem = json.loads(answer.text)
        assert problem["detail"].endswith("."), where
        assert ("Retry-After" in answer.headers) == (
            problem["code"] in {*PASSING.values(), "unavailable"}
        ), where
    else:
        assert "Request <span" in answer.text, where
        assert "Traceback" not in answer.text
        assert "select" not in answer.text.lower()


@pytest.mark.parametrize(
    ("sqlstate", "statement"),
    [
        ("53100", b" "),
        ("XX000", b" "),
        ("25006", b"insert "),
        ("25006", b"update "),
        ("42P01", b"pgmq."),
        ("42501", b"command_bus_"),
        ("42883", b"command_bus."),
        ("57P01", b" "),
    ],
)
def test_no_endpoint_answers_a_database_fault_with_500(
    app: Flask, client: FlaskClient, proxy: Proxy, sqlstate: str, statement: bytes
) -> None:
    token = token_of(client)
    client.get(f"{API}/config")  # both kinds of connections are there
    seen: dict[int, int] = {}
    failed = 0
    for endpoint, method, path in calls(app):
        with answering(proxy, sqlstate, statement) as error:
            answer = asked(client, method, path, token)
        assert_is_told(answer, sqlstate, statement, method, path)
        if endpoint in WITHOUT_DATABASE or endpoint == "health.live":
            assert answer.status_code < 500, (endpoint, method, path)
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        failed += error.happened > 0
    assert failed > 3, seen


@pytest.mark.parametrize("sqlstate", [*PASSING, *LASTING])
def test_each_failure_has_its_own_answer(
    client: FlaskClient, proxy: Proxy, caplog: pytest.LogCaptureFixture, sqlstate: str
) -> None:
    client.get(f"{API}/config")
    caplog.clear()
    with answering(proxy, sqlstate):
        read = client.get(f"{API}/commands")
        written = client.post(f"{API}/commands", json=BODIES[f"{API}/commands"])
        page = client.get("/commands")
        ready = client.get("/health/ready")

    code = {**PASSING, **LASTING}[sqlstate]
    for answer in (read, written):
        problem = json.loads(answer.text)
        assert (answer.status_code, problem["code"]) == (504 if code == "timeout" else 503, code)
        assert ("Retry-After" in answer.headers) == (sqlstate in PASSING)
    assert page.status_code == read.status_code
    assert json.loads(read.text)["detail"] in page.text.replace("&#39;", "'")
    assert ready.status_code == 503
    assert json.loads(ready.text)["problems"] == [json.loads(read.text)["detail"]]
    told = [TextFormatter().format(record) for record in caplog.records]
    [line] = [line for line in told if json.loads(read.text)["request_id"] in line]
    assert f"sqlstate={sqlstate}" in line
    assert len(line) < 400
    assert max(len(each) for each in told) < 1000  # no traceback


@pytest.mark.parametrize("sqlstate", ENDING)
def test_a_connection_that_the_server_ends_costs_one_answer_at_most(
    client: FlaskClient, proxy: Proxy, sqlstate: str
) -> None:
    client.get(f"{API}/commands")
    with answering(proxy, sqlstate):
        answer = client.get(f"{API}/commands")
    assert answer.status_code in (200, 503)
    assert client.get(f"{API}/commands").status_code == 200


def test_health_tells_for_a_minute_that_requests_failed(client: FlaskClient, proxy: Proxy) -> None:
    client.get(f"{API}/config")
    with answering(proxy, "53100", b"offer_command"):
        refused = client.post(f"{API}/commands", json=BODIES[f"{API}/commands"])
    ready = json.loads(client.get("/health/ready").text)
    dashboard = client.get("/").text

    assert json.loads(refused.text)["code"] == "disk_full"
    assert "Whether anything was changed is not known" in json.loads(refused.text)["detail"]
    assert ready["status"] == "ready"
    [check] = [each for each in ready["checks"] if each["name"] == "failed_requests"]
    assert check["level"] == "warning"
    assert check["value"] >= 1
    assert "disk is full" in dashboard
