"""Whatever is asked of a page or filled into its forms, the answer is no fault of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from werkzeug.routing import Rule

from tests.chaos.conftest import LONG, PARTS, part_of, scaled
from tests.integration.api.conftest import app, client

__all__ = ["app", "client"]

EXAMPLES = int(os.environ.get("CHAOS_EXAMPLES") or scaled(6, 10_000))
QUERY_NAMES = (
    *("limit", "cursor", "q", "domain", "status", "offset", "created_after", "group_id"),
    *("next", "run", "page", "tz", "created_from", "seen"),
)
HOSTILE = (
    *("0", "-1", "1e9", "9223372036854775808", "5", "%", "_", "NaN", "{", "[]", '{"a":1,"a":2}'),
    *("2026-02-30T00:00:00Z", "PENDING", "test", "0193e0a0-0000-7000-8000-000000000001", "\x00"),
    *("https://elsewhere.example/", "//elsewhere.example", "//[", "http://[::1", "//\u2100"),
    *("0000000000010000000", "9" * 5000, "a\x00", "a\nb\x1b[2J"),
)
VALUES = st.text(max_size=30) | st.sampled_from(HOSTILE)

tries_hard = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not LONG,
    phases=[Phase.generate, *([Phase.shrink] if LONG else [])],
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(scaled(180, 10 * 3600))


def pages(app: Flask, method: str) -> Iterator[tuple[Rule, str]]:
    """Every address for people that takes *method*, with something in its placeholders."""
    for rule in app.url_map.iter_rules():
        for_people = not rule.rule.startswith(("/api/", "/static", "/health", "/openapi"))
        # Starting and stopping processes is proved elsewhere.
        if for_people and method in (rule.methods or ()) and not rule.rule.startswith("/workers/"):
            path = re.sub(r"<any\((\w+)[^>]*>", r"\1", rule.rule)
            yield rule, re.sub(r"<[^>]*>", str(uuid4()), path)


def test_no_query_breaks_a_page(app: Flask, client: FlaskClient) -> None:
    tried = 0
    for _, path in part_of(pages(app, "GET")):
        queries = st.dictionaries(st.sampled_from(QUERY_NAMES) | st.text(), VALUES, max_size=3)
        tries_hard(given(queries)(_asked(client, "GET", path)))()
        tried += 1
    assert tried > 10 // PARTS


def test_no_form_breaks_a_page(app: Flask, client: FlaskClient) -> None:
    fields, token = _fields(app, client)
    tried = 0
    for _, path in part_of(pages(app, "POST")):
        filled = st.dictionaries(st.sampled_from(fields), VALUES, max_size=5)
        tries_hard(given(filled)(_asked(client, "POST", path, token)))()
        tried += 1
    assert tried > 5 // PARTS


@pytest.mark.parametrize(
    "query", ["q=%FF%FE", "limit=1&limit=2", "limit=%D9%A1", "q=" + "x" * 5000]
)
def test_a_query_that_is_no_text_or_too_much_is_answered(client: FlaskClient, query: str) -> None:
    for path in ("/commands", "/troubleshooting", "/audit"):
        assert client.get(f"{path}?{query}").status_code < 500


def test_who_sends_forms_and_reads_no_answer_keeps_a_session(
    app: Flask, client: FlaskClient
) -> None:
    _, token = _fields(app, client)
    for number in range(70):
        filled = {"csrf_token": token, "operator": f"operator {number} {'x' * 50}"}
        assert client.post("/preferences/operator", data=filled).status_code == 303

    page = client.get("/").text
    assert "operator 69" in page
    assert "operator 5 " not in page


def _asked(
    client: FlaskClient, method: str, path: str, token: str | None = None
) -> Callable[[Any], None]:
    def is_no_fault(values: Any) -> None:
        sent = {name: value.encode("utf-8", "replace") for name, value in values.items()}
        names = {name.encode("utf-8", "replace").decode(): value for name, value in sent.items()}
        if method == "GET":
            answer = client.get(path, query_string=names)
        else:
            answer = client.post(path, data={**names, "csrf_token": token})
        assert answer.status_code < 500, (method, path, values, answer.text)
        location = answer.headers.get("Location", "/")
        assert re.match(r"/(?!/)", location), (path, values, location)

    return is_no_fault


def _fields(app: Flask, client: FlaskClient) -> tuple[list[str], str]:
    """The names of all fields of all forms, and a token that they take."""
    texts = [client.get(path).text for _, path in pages(app, "GET")]
    fields = {name for text in texts for name in re.findall(r'name="([a-z_]+)"', text)}
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', "".join(texts))
    assert token is not None
    return sorted(fields - {"csrf_token"}), token[1]
