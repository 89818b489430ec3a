"""Who may call what: every route there is, asked by nobody, a viewer and an operator.

Each view is replaced by one that only says that it was reached, so that what stands before the
views is what is tried, and nothing is started or changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_wtf.csrf import generate_csrf
from werkzeug.routing import Rule

from app import create_app
from app.server import access
from app.server.access import Role
from app.server.errors import PROBLEM_TYPE
from app.server.security import API_PREFIX, SAFE_METHODS
from app.settings.configuration import Settings
from tests.credentials import OPERATOR, VIEWER, bearer, credentials_file

REACHED = "reached"
# Values for the parts of addresses; of each, the first that fits is taken.
PARTS = ("0193e0a0-0000-7000-8000-000000000001", "1", "retry", "csv", "favicon.svg")
CALLERS = {"nobody": {}, "viewer": bearer(VIEWER), "operator": bearer(OPERATOR)}
# What a viewer may change: nothing of the bus, only what their browser keeps.
VIEWERS_WRITES = {"web.save_theme", "web.save_operator", "web.sign_out"}


class Route(NamedTuple):
    """One method of one address."""

    method: str
    path: str
    endpoint: str


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    folder: Path = tmp_path_factory.mktemp("access")
    made = create_app(
        Settings(
            data_dir=folder,
            secret_key="not a secret",
            credentials_file=credentials_file(folder),
            sign_in_failures_per_minute=1_000,
        )
    )

    @made.get("/token")
    @access.public
    def token():
        return generate_csrf()

    for endpoint, view in made.view_functions.items():
        if endpoint != "token":
            made.view_functions[endpoint] = _probe(access.required_role(made, endpoint), view)
    made.add_url_rule("/undeclared", "undeclared", lambda: REACHED, methods=["GET", "POST"])
    return made


def _probe(role, view):
    def probe(**_):
        return REACHED

    return probe if role is None else access._declare(probe, role)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def routes(app: Flask) -> Iterator[Route]:
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            if rule.endpoint == "token":
                continue  # the test's own
            yield Route(method, path_of(rule), rule.endpoint)


def path_of(rule: Rule) -> str:
    """An address that the rule matches."""
    values = {
        name: next(part for part in PARTS if re.fullmatch(converter.regex, part))
        for name, converter in rule._converters.items()
    }
    return re.sub(r"<(?:[^<>]*:)?(\w+)>", lambda match: values[match[1]], rule.rule)


def call(client: FlaskClient, route: Route, headers):
    """The answer to a request that is right in every other respect."""
    if route.method in SAFE_METHODS:
        return client.open(route.path, method=route.method, headers=headers)
    if route.path.startswith(API_PREFIX):
        return client.open(route.path, method=route.method, headers=headers, json={})
    data = {"csrf_token": client.get("/token").text}
    return client.open(route.path, method=route.method, headers=headers, data=data)


@pytest.mark.parametrize("caller", CALLERS)
def test_every_route_answers_each_role_as_it_declares(app, client, caller):
    role = {"nobody": Role.PUBLIC, "viewer": Role.VIEWER, "operator": Role.OPERATOR}[caller]
    wrong, tried = [], 0
    for route in routes(app):
        required = access.required_role(app, route.endpoint)
        answer = call(client, route, CALLERS[caller])
        is_api = route.path.startswith(API_PREFIX)
        if required is None:
            expected = 403
        elif role >= required:
            expected = 200
        elif role is Role.PUBLIC:
            expected = 401 if is_api else 303
        else:
            expected = 403
        tried += 1
        if answer.status_code != expected or (answer.text == REACHED) != (expected == 200):
            wrong.append(f"{route}: {answer.status_code}, not {expected}")

    assert wrong == []
    assert tried > 60


def test_what_changes_the_bus_is_the_operators(app):
    declared = {
        route.endpoint: access.required_role(app, route.endpoint)
        for route in routes(app)
        if route.method not in SAFE_METHODS
    }
    others = {name for name, role in declared.items() if role is not Role.OPERATOR}

    assert others == {"web.sign_in", "undeclared", *VIEWERS_WRITES}


def test_what_anybody_may_read_shows_nothing_of_the_bus(app):
    open_to_all = {
        route.endpoint
        for route in routes(app)
        if access.required_role(app, route.endpoint) is Role.PUBLIC
    }

    assert open_to_all == {
        "static",
        "web.login",
        "web.sign_in",
        "health.live",
        "health.ready",
        "api.document",
    }


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_no_method_is_a_way_around(client, method):
    assert client.open("/commands", method=method).status_code == 303
    assert client.open("/api/v1/commands", method=method).status_code == 401


def test_a_program_without_credentials_is_told_how_to_give_them(client):
    answer = client.get("/api/v1/commands")
    challenge = answer.headers["WWW-Authenticate"]

    assert (answer.status_code, answer.mimetype) == (401, PROBLEM_TYPE)
    assert answer.get_json(force=True)["code"] == "unauthenticated"
    assert "Basic realm=" in challenge
    assert "Bearer realm=" in challenge


def test_a_script_of_ours_gets_no_dialog_of_the_browser_and_no_login_page(client):
    fetched = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
    called = client.get("/api/v1/commands", headers=fetched)
    refreshed = client.get("/?partial=dashboard_counts", headers={**fetched, "Accept": "text/html"})

    assert (called.status_code, refreshed.status_code) == (401, 401)
    assert "Basic" not in called.headers["WWW-Authenticate"]
    assert "Basic" not in refreshed.headers["WWW-Authenticate"]


def test_a_person_is_led_to_the_login_and_back(client):
    answer = client.get("/commands?q=a%26b&status=IN_TSQ")
    to = urlsplit(answer.headers["Location"])

    assert (answer.status_code, to.path, to.netloc) == (303, "/login", "")
    assert parse_qs(to.query) == {"next": ["/commands?q=a%26b&status=IN_TSQ"]}


def test_a_form_that_was_left_open_is_not_sent_again_by_itself(client):
    answer = client.post("/send", data={"type": "success"})

    assert answer.headers["Location"] == "/login"


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic YWRh",
        "Bearer",
        "Bearer ",
        "Digest username=ada",
        "nonsense",
        "",
        "Bearer cbt_\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
def test_a_header_that_proves_nothing_is_refused(client, header):
    assert client.get("/api/v1/commands", headers={"Authorization": header}).status_code == 401


def test_people_and_programs_are_told_that_an_operator_is_needed(client):
    page = client.post("/send", headers={**bearer(VIEWER), "Accept": "text/html"})
    problem = client.post("/api/v1/commands", json={}, headers=bearer(VIEWER))

    assert (page.status_code, page.mimetype) == (403, "text/html")
    assert "needs an operator" in page.text
    assert (problem.status_code, problem.mimetype) == (403, PROBLEM_TYPE)
    assert problem.get_json(force=True)["code"] == "operators_only"


def test_other_hosts_and_sites_are_refused_whoever_asks(client):
    host = client.get("/api/v1/commands", headers={**bearer(OPERATOR), "Host": "evil.example"})
    site = client.post(
        "/api/v1/commands",
        json={},
        headers={**bearer(OPERATOR), "Origin": "https://evil.example"},
    )
    form = client.post("/send", headers=bearer(OPERATOR), data={"type": "success"})
    text = client.post("/api/v1/commands", headers=bearer(OPERATOR), data="{}")

    assert (host.status_code, site.status_code) == (400, 403)
    assert (form.status_code, text.status_code) == (403, 415)


def test_without_a_file_of_credentials_everybody_who_reaches_us_operates(tmp_path):
    app = create_app(Settings(data_dir=tmp_path, secret_key="not a secret"))
    for endpoint, view in app.view_functions.items():
        app.view_functions[endpoint] = _probe(access.required_role(app, endpoint), view)
    client = app.test_client()

    assert client.post("/api/v1/commands", json={}).text == REACHED
    assert client.get("/").text == REACHED
