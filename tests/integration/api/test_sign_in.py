"""Signing in for real: sessions, passwords and tokens, and under whose name actions stand."""

from __future__ import annotations

import base64
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance
from werkzeug.test import TestResponse

from app import create_app
from app.credentials import CredentialsFile
from app.server.errors import PROBLEM_TYPE
from tests.applications import close
from tests.credentials import OPERATOR, PASSWORDS, TOKENS, VIEWER, bearer, credentials_file, remove
from tests.integration.api.conftest import got

COMMANDS = "/api/v1/commands"
SUCCESS = {"behavior": {"type": "success"}}


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return credentials_file(tmp_path)


@pytest.fixture
def make_app(database_url: str, users: Path, tmp_path: Path):
    """Applications with a viewer and an operator, closed after the test."""
    made: list[Flask] = []

    def make(**options: Any) -> Flask:
        given = {
            "database_url": database_url,
            "data_dir": tmp_path / "data",
            "secret_key": "for tests only",
            "credentials_file": users,
        }
        made.append(create_app({**given, **options}))
        return made[-1]

    yield make
    for app in made:
        close(app)


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client that comes from nowhere in particular and has not signed in."""
    return app.test_client()


def token_in(page: TestResponse) -> str:
    """The token of the forms on a page."""

    class Finder(HTMLParser):
        token = ""

        def handle_starttag(self, tag, attrs):
            values = dict(attrs)
            if values.get("name") == "csrf_token":
                self.token = values["value"] or ""

    finder = Finder()
    finder.feed(page.text)
    return finder.token


def sign_in(client: FlaskClient, name: str, password: str | None = None, **fields: str):
    """The answer to the login form."""
    given = PASSWORDS[name] if password is None else password
    form = {"name": name, "password": given, "csrf_token": token_in(client.get("/login"))}
    return client.post("/login", data={**form, **fields})


def cookie(client: FlaskClient) -> str:
    found = client.get_cookie("commandbus_session")
    assert found is not None
    return found.value


def basic(name: str, password: str) -> dict[str, str]:
    text = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


def test_a_person_signs_in_looks_and_signs_out(client):
    entered = sign_in(client, OPERATOR, next="/commands?status=IN_TSQ")
    page = client.get("/commands")
    left = client.post("/logout", data={"csrf_token": token_in(page)})

    assert (entered.status_code, entered.headers["Location"]) == (303, "/commands?status=IN_TSQ")
    assert (page.status_code, OPERATOR in page.text) == (200, True)
    assert left.headers["Location"] == "/login"
    assert client.get("/commands").status_code == 303
    assert "You are signed out." in client.get("/login").text


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (OPERATOR, "wrong"),
        (OPERATOR, PASSWORDS[VIEWER]),
        (OPERATOR, ""),
        (OPERATOR, "x" * 5_000),
        ("nobody", PASSWORDS[OPERATOR]),
        ("", ""),
        ("a\x00b", "a\x00b"),
    ],
)
def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(client, name, password):
    answer = sign_in(client, name, password)

    assert answer.status_code == 401
    assert "This name and password do not belong together." in answer.text
    assert client.get("/").status_code == 303


def test_the_login_form_needs_its_token_as_well(client):
    form = {"name": OPERATOR, "password": PASSWORDS[OPERATOR]}

    assert client.post("/login", data=form).status_code == 403


@pytest.mark.parametrize(
    "target", ["https://evil.example/x", "//evil.example/x", "/\\evil.example", "javascript:x"]
)
def test_signing_in_never_leads_to_another_site(client, target):
    location = sign_in(client, OPERATOR, next=target).headers["Location"]

    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


def test_the_session_is_a_new_one_and_out_of_reach_of_scripts(client):
    client.get("/login")
    before = cookie(client)
    answer = sign_in(client, OPERATOR)
    [set_cookie] = answer.headers.getlist("Set-Cookie")

    assert cookie(client) != before
    assert "HttpOnly" in set_cookie
    assert "SameSite=Lax" in set_cookie
    assert "Secure" not in set_cookie
    client.set_cookie("commandbus_session", before)
    assert client.get("/").status_code == 303


def test_nothing_of_a_session_outlives_signing_in_or_out(client):
    client.get("/login")
    with client.session_transaction() as session:
        session["planted"] = "before"
        token = session["csrf_token"]
    sign_in(client, OPERATOR)
    page = client.get("/commands")
    with client.session_transaction() as session:
        assert "planted" not in session
        assert session["csrf_token"] != token
    client.post("/logout", data={"csrf_token": token_in(page)})
    with client.session_transaction() as session:
        assert session.keys() == {"_flashes", "_permanent"} & session.keys()
        assert OPERATOR not in str(dict(session))


def test_over_tls_no_cookie_travels_without_it(app):
    client = app.test_client()
    page = client.get("/login", base_url="https://localhost")

    assert "Secure" in page.headers["Set-Cookie"]


def test_pages_are_not_stored_by_the_browser(client):
    sign_in(client, VIEWER)

    assert client.get("/commands").headers["Cache-Control"] == "no-store"


def test_a_copy_of_the_cookie_is_worthless_after_signing_out(app, client):
    sign_in(client, OPERATOR)
    thief = app.test_client()
    thief.set_cookie("commandbus_session", cookie(client))
    assert thief.get("/commands").status_code == 200

    client.post("/logout", data={"csrf_token": token_in(client.get("/"))})
    assert thief.get("/commands").status_code == 303


def test_a_session_ends_by_itself(client):
    sign_in(client, OPERATOR)
    with client.session_transaction() as session:
        session["signed_in_at"] = int(time.time()) - 12 * 3600 - 1

    assert client.get("/commands").status_code == 303


def test_a_session_ends_with_its_password_and_with_its_user(client, users):
    sign_in(client, OPERATOR)
    sign_in(viewer := client.application.test_client(), VIEWER)
    assert client.get("/commands").status_code == 200

    def alter(known):
        del known[VIEWER]
        other = known[OPERATOR].password_hash
        known[OPERATOR] = type(known[OPERATOR])(OPERATOR, known[OPERATOR].role, other + "0")

    CredentialsFile(users).change(alter)
    assert client.get("/commands").status_code == 303
    assert viewer.get("/commands").status_code == 303


def test_a_forged_cookie_is_no_session(make_app):
    forger = make_app(secret_key="another key").test_client()
    sign_in(forger, OPERATOR)
    client = make_app().test_client()
    client.set_cookie("commandbus_session", cookie(forger))

    assert client.get("/commands").status_code == 303


def test_programs_give_a_password_or_a_token_with_each_call(client):
    for headers in (bearer(OPERATOR), basic(OPERATOR, PASSWORDS[OPERATOR])):
        for _ in range(2):  # the second time from memory
            assert client.post(COMMANDS, json=SUCCESS, headers=headers).status_code == 201
    for headers in (bearer(VIEWER), basic(VIEWER, PASSWORDS[VIEWER])):
        assert client.get(COMMANDS, headers=headers).status_code == 200
        assert client.post(COMMANDS, json=SUCCESS, headers=headers).status_code == 403
    for headers in (
        basic(OPERATOR, "wrong"),
        basic(OPERATOR, TOKENS[OPERATOR]),
        {"Authorization": f"Bearer {PASSWORDS[OPERATOR]}".encode().decode("latin-1")},
    ):
        assert client.get(COMMANDS, headers=headers).status_code == 401
    assert client.get_cookie("commandbus_session") is None


def test_wrong_credentials_are_not_made_good_by_a_session(client):
    sign_in(client, OPERATOR)

    assert client.get(COMMANDS, headers=basic(OPERATOR, "wrong")).status_code == 401


def test_a_password_that_was_changed_is_not_remembered(client, users):
    headers = basic(OPERATOR, PASSWORDS[OPERATOR])
    assert client.get(COMMANDS, headers=headers).status_code == 200
    remove(users, OPERATOR)

    assert client.get(COMMANDS, headers=headers).status_code == 401


def test_actions_stand_under_the_logins_name_whatever_the_caller_says(client, run_all):
    sent = got(client.post(COMMANDS, json=SUCCESS, headers=bearer(OPERATOR)))["command_id"]
    run_all("permanent")
    client.set_cookie("operator", "Mallory")
    retried = client.post(
        f"/api/v1/tsq/{sent}/retry",
        json={"operator": "Mallory"},
        headers={**bearer(OPERATOR), "X-Operator": "Mallory", "X-Remote-User": "Mallory"},
    )
    run_all("permanent")
    sign_in(client, OPERATOR)
    page = client.get("/troubleshooting")
    form = {
        "csrf_token": token_in(page),
        "keys": f"test:{sent}",
        "operator": "Mallory",
        "confirmed": "yes",
        "reason": "No use",
    }
    cancelled = client.post("/troubleshooting/cancel", data=form)
    changed = client.put(
        "/api/v1/config",
        json={"worker": {"concurrency": 9}, "operator": "Mallory"},
        headers=bearer(OPERATOR),
    )

    events = got(client.get(f"/api/v1/audit/{sent}"))["events"]
    names = [event["details"]["operator"] for event in events if "OPERATOR" in event["event_type"]]
    assert (retried.status_code, cancelled.status_code, changed.status_code) == (200, 303, 200)
    assert names == [OPERATOR, OPERATOR]
    assert "Mallory" not in client.get(f"/audit/{sent}").text
    assert "Mallory" not in client.get("/settings").text
    assert OPERATOR in client.get("/settings").text


def test_a_signed_in_operator_cannot_choose_another_name(client):
    sign_in(client, OPERATOR)
    form = {"operator": "Mallory", "csrf_token": token_in(client.get("/"))}

    assert client.post("/preferences/operator", data=form).status_code == 409


def test_who_fails_too_often_has_to_wait_and_so_does_the_right_password(make_app):
    client = make_app(sign_in_failures_per_minute=3).test_client()
    for _ in range(2):
        assert sign_in(client, OPERATOR, "wrong").status_code == 401
    assert client.get(COMMANDS, headers=basic(OPERATOR, "wrong")).status_code == 401

    page = sign_in(client, OPERATOR)
    call = client.get(COMMANDS, headers=basic(OPERATOR, PASSWORDS[OPERATOR]))
    elsewhere = client.get(
        COMMANDS,
        headers=basic(OPERATOR, PASSWORDS[OPERATOR]),
        environ_base={"REMOTE_ADDR": "198.51.100.7"},
    )

    assert page.status_code == 429
    assert "Too many failed attempts" in page.text
    assert (call.status_code, call.mimetype) == (429, PROBLEM_TYPE)
    assert 1 <= int(call.headers["Retry-After"]) <= 60
    assert 1 <= int(page.headers["Retry-After"]) <= 60
    assert elsewhere.status_code == 200


def test_failures_of_one_caller_do_not_keep_out_the_others_behind_the_same_address(make_app):
    app = make_app(sign_in_failures_per_minute=2)
    client = app.test_client()
    signed_in = app.test_client()
    sign_in(signed_in, OPERATOR)
    wrong = [{"Authorization": "Bearer guessed"}, basic(VIEWER, "wrong"), basic("nobody", "wrong")]
    tried = [
        [client.get(COMMANDS, headers=headers).status_code for _ in range(3)] for headers in wrong
    ]

    assert tried == [[401, 401, 429]] * 3
    assert signed_in.get("/commands").status_code == 200
    for headers in (bearer(OPERATOR), bearer(VIEWER), basic(OPERATOR, PASSWORDS[OPERATOR])):
        assert client.get(COMMANDS, headers=headers).status_code == 200


def test_one_password_tried_for_many_names_is_limited(make_app):
    client = make_app(sign_in_failures_per_minute=1).test_client()
    for _ in range(2):  # the second time from memory, in which nobody guesses
        known = client.get(COMMANDS, headers=basic(OPERATOR, PASSWORDS[OPERATOR]))
    statuses = [
        client.get(COMMANDS, headers=basic(f"name-{number}", "wrong")).status_code
        for number in range(11)
    ]

    assert known.status_code == 200
    assert statuses == [401] * 10 + [429]
    assert client.get(COMMANDS, headers=basic(OPERATOR, PASSWORDS[OPERATOR])).status_code == 200


@pytest.mark.parametrize("headers", [basic(OPERATOR, "wrong"), {"Authorization": "Bearer wrong"}])
def test_many_guesses_at_once_are_no_more_than_the_limit(make_app, headers):
    app: Flask = make_app(sign_in_failures_per_minute=5)

    def guess(_: int) -> TestResponse:
        return app.test_client().get(COMMANDS, headers=headers)

    with ThreadPoolExecutor(20) as threads:
        statuses = Counter(answer.status_code for answer in threads.map(guess, range(20)))

    assert statuses == {401: 5, 429: 15}


def test_many_right_passwords_at_the_same_time_all_pass(make_app):
    app: Flask = make_app(sign_in_failures_per_minute=1)

    def call(_: int) -> TestResponse:
        headers = basic(OPERATOR, PASSWORDS[OPERATOR])
        return app.test_client().get("/api/v1/config", headers=headers)

    with ThreadPoolExecutor(6) as threads:
        assert {answer.status_code for answer in threads.map(call, range(12))} == {200}


def test_who_changes_too_much_in_a_minute_has_to_wait(make_app):
    client = make_app(rate_limit_per_minute=3).test_client()
    answers = [client.post(COMMANDS, json=SUCCESS, headers=bearer(OPERATOR)) for _ in range(4)]
    over = answers[-1]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    assert (over.mimetype, got(over)["code"]) == (PROBLEM_TYPE, "too_many_requests")
    assert 1 <= int(over.headers["Retry-After"]) <= 60
    # Looking is not counted, and who asks for health is no caller.
    assert client.get(COMMANDS, headers=bearer(OPERATOR)).status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_the_limit_is_each_addresss_own_where_nobody_signs_in(make_app):
    client = make_app(credentials_file=None, rate_limit_per_minute=1).test_client()

    def send(address):
        return client.post(
            COMMANDS, json=SUCCESS, environ_base={"REMOTE_ADDR": address}
        ).status_code

    assert [send("127.0.0.1"), send("127.0.0.1"), send("127.0.0.2")] == [201, 429, 201]
    # Whoever has one address of IPv6 has a whole network of them.
    assert [send("2001:db8::1"), send("2001:db8::2"), send("2001:db8:0:1::1")] == [201, 429, 201]


def test_only_a_trusted_proxy_says_where_a_request_comes_from(make_app):
    forwarded = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}
    near, far = {"REMOTE_ADDR": "127.0.0.1"}, {"REMOTE_ADDR": "203.0.113.9"}
    trusting = make_app(trusted_proxies=("127.0.0.0/8",), rate_limit_per_minute=1).test_client()
    plain = make_app(rate_limit_per_minute=1, credentials_file=None).test_client()

    def is_tls(client: FlaskClient, peer: dict[str, str]) -> bool:
        cookies = client.get("/login", headers=forwarded, environ_base=peer).headers
        return "Secure" in cookies.get("Set-Cookie", "")

    assert is_tls(trusting, near)
    assert not is_tls(make_app(trusted_proxies=("127.0.0.0/8",)).test_client(), far)
    # Without a proxy, one caller cannot be many by saying so.
    statuses = [
        plain.post(COMMANDS, json=SUCCESS, headers={"X-Forwarded-For": f"198.51.100.{number}"})
        for number in range(2)
    ]
    assert [answer.status_code for answer in statuses] == [201, 429]


def test_another_host_is_not_taken_from_a_proxy_and_no_other_site_as_prefix(make_app):
    client = make_app(trusted_proxies=("127.0.0.1",)).test_client()
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "//evil.example"}
    answer = client.get("/commands", headers=headers)

    assert answer.headers["Location"] == "/login?next=/commands"


def test_no_line_of_the_log_holds_a_secret_or_a_line_that_a_caller_wrote(client, caplog):
    caplog.set_level(logging.DEBUG)
    sign_in(client, OPERATOR)
    session = cookie(client)
    sign_in(client, "x\nFORGED line", "secret-typed-wrong")
    client.get(COMMANDS, headers=bearer(OPERATOR))
    client.get(COMMANDS, headers=basic(OPERATOR, "secret-typed-wrong"))
    client.get(COMMANDS, headers={"Authorization": "Bearer secret-typed-wrong"})
    client.get("/nowhere%0aFORGED", headers={"User-Agent": "x\tFORGED", "Host": "FORGED"})

    text = "\n".join(str(vars(record)) for record in caplog.records)
    assert "signed_in" in text
    assert "sign_in_refused" in text
    secrets = (session, *TOKENS.values(), *PASSWORDS.values(), "secret-typed-wrong", "scrypt:")
    assert [secret for secret in secrets if secret in text] == []
    assert "FORGED" not in text


def test_the_description_says_how_to_sign_in_only_where_that_is_needed(make_app):
    guarded = got(make_app().test_client().get("/api/v1/openapi.json"))
    open_to_all = got(make_app(credentials_file=None).test_client().get("/api/v1/openapi.json"))

    assert guarded["security"] == [{"token": []}, {"password": []}]
    assert {
        name: scheme["scheme"] for name, scheme in guarded["components"]["securitySchemes"].items()
    } == {"token": "bearer", "password": "basic"}
    assert "security" not in open_to_all
    for path, item in guarded["paths"].items():
        for operation in item.values():
            assert (operation.get("security") == [{}]) == path.startswith("/health/")
            if path.startswith("/api/"):
                assert operation["responses"].keys() >= {"401", "403", "429"}


def test_the_examples_for_people_carry_the_token(client):
    sign_in(client, VIEWER)

    assert "Authorization: Bearer $TOKEN" in client.get("/api-docs").text


def test_every_operation_asks_for_credentials_and_answers_as_described(make_app):
    """With each operation schemathesis tries wrong and missing credentials, too."""
    app = make_app(sign_in_failures_per_minute=1_000)
    document = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    for found in document.exclude(path="/api/v1/workers", method="POST").get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @settings(
            max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(operation.as_strategy())
        def answers_as_described(case: Any) -> None:
            case.call_and_validate(
                headers=bearer(OPERATOR), excluded_checks=[positive_data_acceptance]
            )

        answers_as_described()
