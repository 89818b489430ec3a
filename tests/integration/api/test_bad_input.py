"""Every kind of bad input has its own answer, and none is a fault of ours."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.integration.api.conftest import got

ID = "0190f5b2-7c1e-7a3b-8c2d-1e2f3a4b5c6d"
SUCCESS = '{"behavior": {"type": "success"}%s}'


def _with(rest: str) -> str:
    return SUCCESS % f", {rest}"


MALFORMED = {
    "empty": b"",
    "not json": b"{",
    "trailing text": (SUCCESS % "").encode() + b" x",
    "bad utf-8": b'{"behavior": {"type": "success"}, "payload": {"a": "\xff"}}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "too deep": _with('"payload": ' + '{"a":' * 70 + "1" + "}" * 70).encode(),
    "absurdly deep": b"[" * 100_000,
    "NaN": _with('"payload": {"a": NaN}').encode(),
    "Infinity": _with('"payload": {"a": -Infinity}').encode(),
    "infinite float": _with('"payload": {"a": 1e999}').encode(),
    "giant integer": _with('"payload": {"a": ' + "9" * 5000 + "}").encode(),
    "same key twice": _with('"payload": {"a": 1, "a": 2}').encode(),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_json_is_answered_400(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/api/v1/commands", data=body, content_type="application/json")

    assert answer.status_code == 400
    assert_problem(answer, "malformed_json")


INVALID_COMMANDS = {
    "array": "[]",
    "null": "null",
    "no behavior": "{}",
    "unknown field": _with('"colour": 1'),
    "unknown behavior field": '{"behavior": {"type": "success", "colour": 1}}',
    "unknown type": '{"behavior": {"type": "explode"}}',
    "type is a number": '{"behavior": {"type": 1}}',
    "NUL": _with('"payload": {"a": "\\u0000"}'),
    "NUL in a key": _with('"payload": {"\\u0000": 1}'),
    "lone surrogate": _with('"payload": {"a": "\\ud800"}'),
    "lone surrogate in a key": _with('"payload": {"\\udfff": 1}'),
    "NUL in reply_to": _with('"reply_to": "a\\u0000"'),
    "true for 1": _with('"max_attempts": true'),
    "text for a number": _with('"max_attempts": "5"'),
    "float for an integer": _with('"max_attempts": 5.5'),
    "zero attempts": _with('"max_attempts": 0'),
    "negative": _with('"max_attempts": -1'),
    "2^63": _with(f'"max_attempts": {2**63}'),
    "payload is a list": _with('"payload": []'),
    "id without hyphens": _with(f'"command_id": "{ID.replace("-", "")}"'),
    "id in upper case": _with(f'"command_id": "{ID.upper()}"'),
    "id in braces": _with(f'"command_id": "{{{ID}}}"'),
    "id as a urn": _with(f'"command_id": "urn:uuid:{ID}"'),
    "id is a number": _with('"command_id": 5'),
    "unknown reply queue": _with('"reply_to": "nowhere__replies"'),
}


@pytest.mark.parametrize("body", INVALID_COMMANDS.values(), ids=INVALID_COMMANDS.keys())
def test_values_that_no_command_can_have_are_answered_422(client: FlaskClient, body: str) -> None:
    answer = client.post("/api/v1/commands", data=body, content_type="application/json")

    assert answer.status_code == 422
    assert_problem(answer)


INVALID_BULKS: dict[str, dict[str, Any]] = {
    "no count": {},
    "zero": {"count": 0},
    "negative": {"count": -1},
    "true for 1": {"count": True},
    "text": {"count": "5"},
    "2^63": {"count": 2**63},
    "above a million": {"count": 1_000_001},
    "percentages below 100": {"count": 1, "behavior_distribution": {"success": 99}},
    "percentages above 100": {
        "count": 1,
        "behavior_distribution": {"success": 100, "fail_permanent": 1},
    },
    "negative percentage": {
        "count": 1,
        "behavior_distribution": {"success": 101, "fail_permanent": -1},
    },
    "no percentages": {"count": 1, "behavior_distribution": {}},
    "unknown type": {"count": 1, "behavior_distribution": {"explode": 100}},
    "behavior twice": {
        "count": 1,
        "behavior": {"type": "success"},
        "behavior_distribution": {"success": 100},
    },
    "negative delay": {"count": 1, "delay_ms": -1},
    "name of two lines": {"count": 1, "name": "a\nb"},
    "name that clears a terminal": {"count": 1, "name": "\x1b[2J"},
    "no name": {"count": 1, "name": ""},
    "name of 201 characters": {"count": 1, "name": "x" * 201},
    "unknown field": {"count": 1, "colour": "red"},
}


@pytest.mark.parametrize("body", INVALID_BULKS.values(), ids=INVALID_BULKS.keys())
def test_impossible_bulks_are_answered_422(client: FlaskClient, body: dict[str, Any]) -> None:
    answer = client.post("/api/v1/commands/bulk", json=body)

    assert answer.status_code == 422
    assert_problem(answer)
    assert got(client.get("/api/v1/commands"))["total"] == 0


INVALID_QUERIES = [
    "/commands?limit=0",
    "/commands?limit=101",
    "/commands?limit=-1",
    "/commands?limit=5.0",
    "/commands?limit=1e1",
    "/commands?limit=%20",
    "/commands?limit=",
    "/commands?limit=99999999999999999999",
    "/commands?limit=%D9%A1",
    "/commands?limit=1&limit=2",
    "/commands?offset=-1",
    "/commands?offset=10001",
    "/commands?sort=status",
    "/commands?cursor=x",
    "/commands?cursor=",
    "/commands?cursor=~",
    "/commands?cursor=MjAyNi0",
    "/commands?status=pending",
    "/commands?status=DONE",
    "/commands?status=",
    "/commands?domain=A",
    "/commands?domain=a%00",
    "/commands?q=%00",
    "/commands?created_after=2026-01-01T00:00:00",
    "/commands?created_after=2026-01-01",
    "/commands?created_after=2026-02-30T00:00:00Z",
    "/commands?created_after=2026-01-01T25:00:00Z",
    "/commands?created_after=0001-01-01T00:00:00Z",
    "/commands?created_after=1767225600",
    "/commands?created_after=now",
    "/commands?created_after=2026-01-02T00:00:00Z&created_before=2026-01-01T00:00:00Z",
    "/tsq?limit=1000",
    "/tsq?group_id=1",
    "/tsq?cursor=abc",
    "/tsq/groups?domain=%27",
    "/tsq/groups?limit=101",
    "/tsq/rejected?limit=0",
    "/tsq/rejected?before=0",
    "/tsq/rejected?before=9223372036854775808",
    "/tsq/rejected?x=1",
    "/audit?event_type=SEND",
    "/audit?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
    "/audit?cursor=0",
    "/audit?cursor=-5",
    "/audit?cursor=99999999999999999999",
    "/stats?domain=test",
    "/stats/throughput?window_seconds=0",
    "/stats/throughput?window_seconds=86401",
    "/stats/history?window_seconds=86400&step_seconds=1",
    f"/stats/load-test?run_id={ID.upper()}",
    "/openapi.json?x=1",
    "/workers?limit=5",
    "/config?x=1",
    f"/commands/{ID}?domain=",
]


@pytest.mark.parametrize("query", INVALID_QUERIES)
def test_queries_out_of_range_are_answered_422(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/api/v1{query}")

    assert answer.status_code == 422, answer.text
    assert_problem(answer)


UNKNOWN = [
    ("get", f"/commands/{ID}"),
    ("get", f"/commands/{ID.upper()}"),
    ("get", f"/commands/{ID.replace('-', '')}"),
    ("get", "/commands/1"),
    ("get", f"/audit/{ID}"),
    ("get", "/audit/x"),
    ("get", "/nothing"),
    ("post", f"/commands/{ID}/cancel"),
    ("post", f"/tsq/{ID}/retry"),
    ("post", f"/tsq/{ID}/cancel"),
    ("post", f"/tsq/{ID}/complete"),
    ("post", f"/tsq/{ID}/undo-retry"),
    ("post", "/tsq/x/retry"),
    ("post", "/workers/7/stop"),
    ("post", "/workers/3380344658/stop"),
    ("post", "/workers/007/stop"),
    ("post", "/workers/0/stop"),
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
def test_what_does_not_exist_is_answered_404(client: FlaskClient, method: str, path: str) -> None:
    body = {"reason": "because"} if path.endswith("cancel") else {}
    url = f"/api/v1{path}"
    answer = client.get(url) if method == "get" else client.post(url, json=body)

    assert answer.status_code == 404
    assert_problem(answer)


@pytest.mark.parametrize("path", ["/commands", "/commands/quick", "/tsq/bulk-retry", "/workers"])
@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_media_type_is_answered_415(
    client: FlaskClient, path: str, media_type: str | None
) -> None:
    answer = client.post(f"/api/v1{path}", data="{}", content_type=media_type)

    assert answer.status_code == 415
    assert_problem(answer, "unsupported_media_type")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("/commands/", "/commands"),
        ("/commands/?status=IN_TSQ&q=%C3%A9%20x", "/commands?status=IN_TSQ&q=%C3%A9%20x"),
        (f"/commands/{ID}//", f"/commands/{ID}"),
        ("/health/ready/", "/health/ready"),
        ("/api/v1/stats/", "/api/v1/stats"),
        (f"/api/v1/commands/{ID}/", f"/api/v1/commands/{ID}"),
        ("/api/v1/commands/bulk/", "/api/v1/commands/bulk"),  # which takes POST only
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_slash_at_the_end_leads_to_the_address_without(
    client: FlaskClient, method: str, address: str, target: str
) -> None:
    answer = client.open(address, method=method)

    # 308: the method and the body stay, and the other address judges them.
    assert (answer.status_code, answer.headers["Location"]) == (308, target)


@pytest.mark.parametrize(
    "address",
    ["/nothing/", "/api/v1/nothing/", "/\\evil.example/", "/%2Fevil.example/", "/./"],
)
def test_a_slash_makes_no_address_of_what_is_none(client: FlaskClient, address: str) -> None:
    assert client.get(address).status_code == 404


def test_a_form_sent_to_an_address_with_a_slash_arrives(client: FlaskClient) -> None:
    sent = client.post(
        "/api/v1/commands/", json={"behavior": {"type": "success"}}, follow_redirects=True
    )

    assert sent.status_code == 201


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, identity", "x"])
@pytest.mark.parametrize("path", ["/api/v1/commands", "/send"])
def test_an_encoded_body_is_answered_415_and_its_encoding_named(
    client: FlaskClient, path: str, coding: str
) -> None:
    answer = client.post(
        path,
        data=gzip.compress(b"{}"),
        content_type="application/json",
        headers={"Content-Encoding": coding, "Accept": "application/json"},
    )

    assert answer.status_code == 415
    assert_problem(answer, "encoded_body")
    assert repr(coding.lower()) in got(answer)["detail"]
    assert answer.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("path", ["/api/v1/commands", "/send"])
def test_a_body_of_another_charset_is_answered_415(client: FlaskClient, path: str) -> None:
    for charset, status in (("latin-1", 415), ("utf-16", 415), ("UTF-8", None), ('"utf-8"', None)):
        answer = client.post(
            path,
            data=b"{",
            content_type=f"application/json; charset={charset}",
            headers={"Accept": "application/json"},
        )
        assert status in (None, answer.status_code)
        assert (answer.status_code == 415) == (status == 415)


@pytest.mark.parametrize(
    "media_type", ["application/problem+json", "application/vnd.api+json", "text/json", ""]
)
def test_a_body_of_a_related_format_is_answered_415(client: FlaskClient, media_type: str) -> None:
    body = json.dumps({"behavior": {"type": "success"}})

    answer = client.post("/api/v1/commands", data=body, content_type=media_type)
    assert answer.status_code == 415
    assert_problem(answer)
    taken = "Application/JSON; charset=utf-8"
    assert client.post("/api/v1/commands", data=body, content_type=taken).status_code == 201


def test_an_encoding_that_changes_nothing_is_accepted(client: FlaskClient) -> None:
    body = {"behavior": {"type": "success"}}

    for coding in ("identity", "Identity", "identity, identity", "identity,", ""):
        answer = client.post("/api/v1/commands", json=body, headers={"Content-Encoding": coding})
        assert answer.status_code == 201
    assert client.get("/commands", headers={"Content-Encoding": "gzip"}).status_code == 200


def test_every_address_answers_every_method_by_the_rules(app: Flask, client: FlaskClient) -> None:
    rules = list(app.url_map.iter_rules())
    for rule in rules:
        address = re.sub(r"<worker_id:[^>]*>", "1", rule.rule)
        address = re.sub(r"<[^>]*>", ID, address)
        # One address may have a rule for looking and another for changing.
        allowed = {m for other in rules if other.rule == rule.rule for m in other.methods or ()}
        for method in ("HEAD", "OPTIONS", "PATCH", "TRACE"):
            answer = client.open(address, method=method)
            assert answer.status_code < 500, (method, address)
            assert method != "HEAD" or answer.data == b""
            if method not in allowed and answer.status_code != 404:
                assert answer.status_code == 405, (method, address)
                assert allowed & set(answer.headers["Allow"].split(", ")), (method, address)


ODD_QUERIES = [
    "%zz",
    "q=%00",
    "q=%ff",
    "q=%ED%A0%80",
    "domain=%00&cursor=%00&partial=%00&tz=%00&next=%00",
    "limit=1&limit=2",
    "q=" + "x" * 60_000,
    "&".join(f"a{number}=1" for number in range(2_000)),
]


def test_no_page_and_no_call_breaks_by_an_odd_query_or_cookie(
    app: Flask, client: FlaskClient
) -> None:
    headers = [
        {"Cookie": f"commandbus_session={'x' * 50_000}; theme=\x01; operator=%00%ff"},
        {"Cookie": "; ".join(f"a{number}=b" for number in range(3_000))},
        {"Accept": "\x7f;;q=x,,,", "If-None-Match": '"""', "If-Modified-Since": "never"},
    ]
    for rule in app.url_map.iter_rules():
        if "GET" not in (rule.methods or ()) or "<" in rule.rule:
            continue
        for query in ODD_QUERIES:
            answer = client.get(f"{rule.rule}?{query}")
            assert answer.status_code < 500, (rule.rule, query, answer.text)
        for odd in headers:
            assert client.get(rule.rule, headers=odd).status_code < 500, (rule.rule, odd)


def test_a_form_with_an_unreadable_body_is_answered(app: Flask, client: FlaskClient) -> None:
    token = re.search('name="csrf-token" content="([^"]*)"', client.get("/").text)
    assert token is not None
    headers = {"X-CSRFToken": token[1], "Accept": "application/json"}
    sent = {
        "": b"",
        "text/plain": b"operator=x",
        "application/json": b"{",
        "multipart/form-data": b"--x",
        "multipart/form-data; boundary=x": b"--x\r\n\r\n--x--",
        "application/x-www-form-urlencoded": b"operator=%00&name=%ff&reason=%00&keys=%00",
    }
    for rule in app.url_map.iter_rules():
        if "POST" not in (rule.methods or ()) or rule.rule.startswith("/api/"):
            continue
        if rule.endpoint == "web.start_worker":
            continue  # its form has no fields, and it would start a process each time
        address = re.sub(r"<worker_id:[^>]*>", "1", rule.rule)
        for media_type, body in sent.items():
            answer = client.post(
                re.sub(r"<[^>]*>", ID, address),
                data=body,
                headers={**headers, "Content-Type": media_type},
            )
            assert answer.status_code < 500, (address, media_type, body, answer.text)


def test_what_a_person_does_not_find_keeps_the_navigation_and_the_search(
    client: FlaskClient,
) -> None:
    headers = {"Accept": "text/html"}

    for address in (f"/commands/{ID}", "/nothing", f"/load-tests/{ID}"):
        page = client.get(address, headers=headers)
        assert page.status_code == 404
        assert 'role="search"' in page.text
        assert 'href="/troubleshooting"' in page.text
        assert page.headers["X-Request-ID"] in page.text
    foreign = client.get("/", headers={**headers, "Host": "evil.example"})
    assert foreign.status_code == 400
    assert 'role="search"' not in foreign.text


def test_a_payload_over_256_kb_is_answered_413(client: FlaskClient) -> None:
    answer = client.post(
        "/api/v1/commands",
        json={"behavior": {"type": "success"}, "payload": {"a": "x" * 256 * 1024}},
    )

    assert answer.status_code == 413
    assert_problem(answer, "payload_too_large")


def test_a_request_over_1_mb_is_answered_413(client: FlaskClient) -> None:
    answer = client.post("/api/v1/commands", json={"payload": "x" * 1024 * 1024})

    assert answer.status_code == 413
    assert_problem(answer, "too_large")


def test_a_wrong_method_is_answered_405_with_those_allowed(client: FlaskClient) -> None:
    answer = client.delete("/api/v1/commands")

    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) >= {"GET", "POST"}
    assert_problem(answer, "method_not_allowed")


INVALID_CHOICES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "both": {"command_ids": [ID], "filter": {}},
    "no ids": {"command_ids": []},
    "501 ids": {"command_ids": [str(uuid4()) for _ in range(501)]},
    "id not canonical": {"command_ids": [ID.upper()]},
    "unknown filter": {"filter": {"colour": "red"}},
    "negative delay": {"command_ids": [ID], "delay_seconds": -1},
    "empty operator": {"command_ids": [ID], "operator": ""},
}


@pytest.mark.parametrize("body", INVALID_CHOICES.values(), ids=INVALID_CHOICES.keys())
def test_impossible_sets_are_answered_422(client: FlaskClient, body: dict[str, Any]) -> None:
    answer = client.post("/api/v1/tsq/bulk-retry", json=body)

    assert answer.status_code == 422
    assert_problem(answer)


INVALID_CONFIGS: dict[str, dict[str, Any]] = {
    "unknown option": {"worker": {"colour": 1}},
    "too small": {"worker": {"concurrency": 0}},
    "true for 1": {"worker": {"concurrency": True}},
    "float": {"retry": {"max_attempts": 2.5}},
    "null": {"retry": {"max_attempts": None}},
    "text": {"version": "1"},
}


@pytest.mark.parametrize("body", INVALID_CONFIGS.values(), ids=INVALID_CONFIGS.keys())
def test_impossible_configurations_are_answered_422(
    client: FlaskClient, body: dict[str, Any]
) -> None:
    answer = client.put("/api/v1/config", json=body)

    assert answer.status_code == 422
    assert_problem(answer)
    assert got(client.get("/api/v1/config"))["version"] == 1


def assert_problem(answer: Any, code: str | None = None) -> None:
    """The answer is a problem document with every member, and tells nothing of the inside."""
    assert answer.mimetype == "application/problem+json"
    problem = answer.json
    assert problem.keys() >= {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert problem["status"] == answer.status_code
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    if code is not None:
        assert problem["code"] == code
    for secret in ("Traceback", "psycopg", "select ", "command_bus_"):
        assert secret not in answer.text
