"""What holds for every page and every call: headers, guards, error answers, declared access."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import psycopg
import pytest
from flask import Flask, abort, request

from app import create_app
from app.factory import kept_secret_key
from app.server import access, assets
from app.server.errors import PROBLEM_TYPE, Problem
from app.server.security import SAFE_METHODS
from app.settings.configuration import ConfigurationError, Settings
from app.web.rendering import ask_to_confirm
from tests.applications import close

STATIC = Path(__file__).parents[2] / "app" / "static"
API = "/api/v1/echo"
# What Python's own reader of addresses refuses.
NO_ADDRESSES = ("//[", "http://[::1", "//\u2100")


@pytest.mark.parametrize("spelt", [str.lower, str.upper])
def test_settings_are_given_by_field_or_as_in_the_environment(tmp_path, spelt):
    url = "postgresql://somebody@127.0.0.1:1/somewhere"
    given = {"database_url": url, "data_dir": tmp_path, "secret_key": "not a secret"}

    app = create_app({"TESTING": True, **{spelt(name): value for name, value in given.items()}})

    settings = app.config["SETTINGS"]
    assert (settings.database_url, settings.data_dir) == (url, tmp_path)
    assert (app.config["SECRET_KEY"], app.config["TESTING"]) == ("not a secret", True)
    app.extensions["portal"].close()


@pytest.fixture
def make_app(tmp_path, shared_database_url):
    """Applications that give back what they hold after the test."""
    made = []

    def make(**settings):
        given = {"data_dir": tmp_path, "database_url": shared_database_url, **settings}
        made.append(create_app(Settings(**given)))
        return made[-1]

    yield make
    for app in made:
        close(app)


@pytest.fixture
def app(make_app):
    """The application with a few endpoints that raise what is to be answered."""
    app = make_app(secret_key="not a secret", allowed_hosts=("bus.example",))

    @app.post("/api/v1/echo")
    @access.operator
    def echo():
        return {"got": request.get_json()}

    @app.get("/api/v1/fails")
    @access.viewer
    def fails():
        raise RuntimeError("select * from secrets")

    @app.get("/api/v1/conflict")
    @access.viewer
    def conflict():
        raise Problem(409, "not_in_tsq", "The command is COMPLETED.", current_status="COMPLETED")

    @app.get("/api/v1/undeclared")
    def undeclared():
        return {}

    @app.get("/api/v1/database/<fault>")
    @access.viewer
    def database():
        raise {
            "away": psycopg.OperationalError("connection to /secrets failed"),
            "slow": psycopg.errors.QueryCanceled("secrets"),
        }[(request.view_args or {})["fault"]]

    @app.route("/away", methods=["GET", "POST"])
    @access.viewer
    def away():
        raise psycopg.OperationalError("connection to /secrets failed")

    @app.post("/delete")
    @access.operator
    def delete():
        question = ask_to_confirm(
            title="Delete 3", message="Delete 3 rows?", action="Delete", back="/"
        )
        return question or "deleted"

    @app.get("/status/<int:code>")
    @access.viewer
    def status():
        abort((request.view_args or {})["code"])

    return app


@pytest.fixture
def client(app: Flask):
    return app.test_client()


def form_token(client) -> str:
    """The token of the form on the dashboard."""

    class Finder(HTMLParser):
        token = ""

        def handle_starttag(self, tag, attrs):
            values = dict(attrs)
            if values.get("name") == "csrf_token":
                self.token = values["value"]

    finder = Finder()
    finder.feed(client.get("/").text)
    return finder.token


@pytest.mark.parametrize("path", ["/", "/nowhere", "/api/v1/nowhere", "/static/favicon.svg"])
def test_every_answer_carries_the_security_headers(client, path):
    with client.get(path) as answer:
        headers = answer.headers
    policy = headers["Content-Security-Policy"]

    assert "unsafe-" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "camera=()" in headers["Permissions-Policy"]
    assert len(headers["X-Request-ID"]) == 16


@pytest.mark.parametrize("library", assets.BROWSER_ASSETS, ids=lambda library: library.name)
def test_a_committed_browser_library_has_the_hash_of_its_version(library):
    content = (STATIC / library.vendor_path).read_bytes()
    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()

    assert library.integrity == f"sha384-{digest}"
    assert list(STATIC.glob(f"vendor/LICENSE-{library.name}.*"))


def test_the_folder_of_foreign_files_holds_nothing_else():
    scripts = {f"vendor/{path.name}" for path in STATIC.glob("vendor/*.js")}

    assert scripts == {library.vendor_path for library in assets.BROWSER_ASSETS}


def test_the_policy_names_one_file_of_the_cdn_and_none_when_it_is_local(make_app):
    from_cdn = make_app().test_client().get("/")
    local = make_app(local_assets=True).test_client().get("/")

    [scripts] = [
        part
        for part in from_cdn.headers["Content-Security-Policy"].split("; ")
        if part.startswith("script-src")
    ]
    assert scripts == f"script-src 'self' {assets.FLOWBITE.url}"
    assert "https:" not in local.headers["Content-Security-Policy"]
    assert "https:" not in local.text


@pytest.mark.parametrize("path", ["/", "/workers", "/settings", "/troubleshooting"])
def test_a_page_that_explains_a_term_loads_flowbite(client, path):
    page = client.get(path).text

    assert "data-tooltip-target" in page
    assert page.count(assets.FLOWBITE.url) == 1


@pytest.mark.parametrize("path", ["/send", "/audit", "/commands", "/nowhere"])
def test_a_page_without_tooltips_does_not_load_flowbite(client, path):
    page = client.get(path).text

    assert "data-tooltip-target" not in page
    assert "flowbite" not in page


def test_every_explained_id_is_once_on_its_page(client):
    for path in ("/", "/workers", "/settings"):
        page = client.get(path).text
        ids = re.findall(r'id="(hint-[a-z0-9_]+)"', page)
        assert sorted(ids) == sorted(set(re.findall(r'data-tooltip-target="([^"]+)"', page)))


def test_pages_hold_no_inline_script_style_or_handler(client):
    class Finder(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            names = dict(attrs)
            if tag == "style" or (tag == "script" and "src" not in names):
                self.found.append(tag)
            self.found += [name for name in names if name == "style" or name.startswith("on")]

    for path in ("/", "/nowhere"):
        finder = Finder()
        finder.feed(client.get(path).text)
        assert finder.found == []


def test_a_request_id_from_outside_is_not_taken(client):
    answer = client.get("/", headers={"X-Request-ID": "forged\\nline"})

    assert answer.headers["X-Request-ID"] != "forged\\nline"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5001", "[::1]:5001", "BUS.example"])
def test_listed_hosts_are_served(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "", "localhost.evil.example", "localhost:x", "[::2]"]
)
def test_other_hosts_are_refused(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/nowhere", 404, "not_found"),
        ("/api/v1/echo", 405, "method_not_allowed"),
        ("/api/v1/fails", 500, "internal_error"),
        ("/api/v1/undeclared", 403, "forbidden"),
        ("/api/v1/conflict", 409, "not_in_tsq"),
    ],
)
def test_api_errors_are_problems_that_reveal_nothing(client, path, status, code):
    answer = client.get(path)
    problem = json.loads(answer.data)

    assert answer.status_code == status
    assert answer.mimetype == PROBLEM_TYPE
    assert problem.keys() >= {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert "secrets" not in answer.text


@pytest.mark.parametrize(("fault", "status"), [("away", 503), ("slow", 504)])
def test_a_database_that_does_not_answer_is_said_with_when_to_come_back(client, fault, status):
    answer = client.get(f"/api/v1/database/{fault}")

    assert (answer.status_code, answer.mimetype) == (status, PROBLEM_TYPE)
    assert int(answer.headers["Retry-After"]) > 0
    assert "secrets" not in answer.text


def test_without_scripts_a_page_asks_and_sends_every_field_again(client):
    form = {"csrf_token": form_token(client), "command_ids": ["a", '"b"']}
    question = client.post("/delete", data=form)
    answer = client.post("/delete", data={**form, "confirmed": "yes"})

    assert "Delete 3 rows?" in question.text
    assert question.text.count('name="command_ids"') == 2
    assert 'value="&#34;b&#34;"' in question.text
    assert answer.text == "deleted"


def test_a_problem_may_carry_members_of_its_own(client):
    assert client.get("/api/v1/conflict").get_json(force=True)["current_status"] == "COMPLETED"


def test_wrong_methods_name_the_right_ones(client):
    assert "POST" in client.get(API).headers["Allow"]


@pytest.mark.parametrize("code", [400, 403, 404, 409, 413, 429, 500, 503])
def test_people_get_pages_and_programs_get_problems(client, code):
    page = client.get(f"/status/{code}", headers={"Accept": "text/html,*/*;q=0.8"})
    problem = client.get(f"/status/{code}", headers={"Accept": "application/json"})

    assert (page.status_code, page.mimetype) == (code, "text/html")
    assert page.headers["X-Request-ID"] in page.text
    assert ("Try again" in page.text) == (code == 503)
    assert (problem.status_code, problem.mimetype) == (code, PROBLEM_TYPE)


def test_a_page_that_the_database_kept_away_tries_again_by_itself_unless_it_was_a_form(client):
    headers = {"Accept": "text/html"}
    page = client.get("/away", headers=headers)
    form = {"csrf_token": form_token(client)}
    sent = client.post("/away", headers=headers, data=form)

    assert (page.status_code, sent.status_code) == (503, 503)
    assert f'http-equiv="refresh" content="{page.headers["Retry-After"]}"' in page.text
    assert "tries again in" in page.text
    assert "refresh" not in sent.text
    assert "refresh" not in client.get("/status/500", headers=headers).text


def test_a_json_call_works_as_curl_sends_it(client):
    assert client.post(API, json={"a": 1}).get_json() == {"got": {"a": 1}}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_calls_without_the_json_media_type_are_refused(client, content_type):
    assert client.post(API, data='{"a": 1}', content_type=content_type).status_code == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "//\u2100"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_calls_from_other_sites_are_refused(client, headers):
    assert client.post(API, json={}, headers=headers).status_code == 403


def test_calls_from_our_own_pages_are_served(client):
    headers = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}

    assert client.post(API, json={}, headers=headers).status_code == 200


def test_a_form_needs_its_token(client):
    refused = client.post("/preferences/theme", data={"theme": "dark"})
    token = form_token(client)
    accepted = client.post("/preferences/theme", data={"theme": "dark", "csrf_token": token})

    assert refused.status_code == 403
    assert accepted.status_code == 303


def test_the_theme_is_remembered_and_written_into_the_page(client):
    client.post("/preferences/theme", data={"theme": "dark", "csrf_token": form_token(client)})

    assert 'data-theme="dark"' in client.get("/").text


@pytest.mark.parametrize(
    "target", ["//evil.example/x", "https://evil.example/x", "/\\\\evil.example"]
)
def test_saving_a_preference_never_leads_to_another_site(client, target):
    form = {"theme": "dark", "next": target, "csrf_token": form_token(client)}
    location = client.post("/preferences/theme", data=form).headers["Location"]

    assert location.startswith("/")
    assert not location.startswith(("//", "/\\\\"))


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_leads_nowhere(client, address):
    token = form_token(client)

    def save(form, **headers):
        given = {"theme": "dark", "csrf_token": token, **form}
        return client.post("/preferences/theme", data=given, headers=headers)

    for answer in (
        client.get("/login", query_string={"next": address}),
        save({"next": address}),
        save({}, Referer=address),
    ):
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")


@pytest.mark.parametrize("referrer", [*NO_ADDRESSES, "https://localhost:99999/"])
def test_a_form_that_came_by_tls_from_no_address_is_refused(client, referrer):
    form = {"theme": "dark", "csrf_token": form_token(client)}

    def save(referrer):
        return client.post(
            "/preferences/theme",
            data=form,
            headers={"Referer": referrer},
            base_url="https://localhost",
        )

    assert save(referrer).status_code == 403
    assert save("https://localhost/send").status_code == 303


def test_requests_over_one_megabyte_are_refused(client):
    assert client.post(API, json={"a": "x" * 1024 * 1024}).status_code == 413


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(client):
    [cookie] = client.get("/").headers.getlist("Set-Cookie")

    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


def test_static_files_are_kept_for_a_year_under_their_own_hash_only(client):
    page = client.get("/").text
    start = page.index("/static/favicon.svg?v=")
    versioned = page[start : page.index('"', start)]

    def lifetime(path):
        with client.get(path) as answer:
            return answer.headers["Cache-Control"]

    assert "immutable" in lifetime(versioned)
    assert "no-cache" in lifetime("/static/favicon.svg")
    assert "no-cache" in lifetime("/static/favicon.svg?v=other")


def test_the_secret_key_is_made_once_and_is_its_owners_alone(tmp_path):
    first = kept_secret_key(tmp_path / "data")
    second = kept_secret_key(tmp_path / "data")

    assert first == second
    assert len(first) >= 32
    assert stat.S_IMODE((tmp_path / "data" / "secret_key").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["secret_key"]


def test_a_secret_key_that_others_may_read_is_refused(tmp_path):
    kept_secret_key(tmp_path)
    (tmp_path / "secret_key").chmod(0o640)

    with pytest.raises(ConfigurationError, match=r"mode 0640.*chmod 600"):
        kept_secret_key(tmp_path)


def test_every_endpoint_declares_who_may_call_it(tmp_path):
    app = create_app(Settings(data_dir=tmp_path))
    roles = [(rule, access.required_role(app, rule.endpoint)) for rule in app.url_map.iter_rules()]

    assert [rule.endpoint for rule, role in roles if role is None] == []
    open_writes = [
        rule.endpoint
        for rule, role in roles
        if rule.methods and rule.methods - SAFE_METHODS and role == access.Role.PUBLIC
    ]
    assert open_writes == ["web.sign_in"]


def test_a_page_and_its_refresh_come_from_one_context(client):
    page = client.get("/").text
    partial = client.get("/?partial=dashboard_counts")

    assert partial.text.strip() in page
    assert client.get("/?partial=dashboard_activity").status_code == 200
    assert client.get("/?partial=../pages/error").status_code == 404


def test_an_unchanged_refresh_costs_an_empty_answer(client):
    first = client.get("/?partial=dashboard_counts")
    second = client.get(
        "/?partial=dashboard_counts", headers={"If-None-Match": first.headers["ETag"]}
    )

    assert (second.status_code, second.data) == (304, b"")


def test_a_secret_key_that_leads_elsewhere_or_was_made_by_another_user_is_refused(
    tmp_path: Path,
) -> None:
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.touch(0o600)
    home.mkdir()
    (home / "secret_key").symlink_to(elsewhere)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        kept_secret_key(home)
    (home / "secret_key").unlink()
    kept_secret_key(home)
    if os.getuid() == 0:  # only root can give files away
        os.chown(home / "secret_key", 65534, 65534)
        with pytest.raises(ConfigurationError, match="secret_key belongs to user nobody"):
            kept_secret_key(home)
        os.chown(home, 65534, 65534)
        with pytest.raises(ConfigurationError, match="data belongs to user nobody"):
            kept_secret_key(home)
    home.chmod(0o777)
    with pytest.raises(ConfigurationError):
        kept_secret_key(home)


def test_a_new_data_dir_is_its_owners_alone(tmp_path: Path) -> None:
    kept_secret_key(tmp_path / "data")

    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
