"""What the API refuses, a form refuses in the same words: both are read by the same models."""

from __future__ import annotations

import html
import re
from typing import Any

from flask.testing import FlaskClient

from tests.integration.api.conftest import app, client, got

__all__ = ["app", "client"]

LONG = "x" * 2_001
ONE = {"type": "success"}
SEND = "/api/v1/commands"
BULK = "/api/v1/commands/bulk"

SENT = [
    ({"max_attempts": "0"}, {"behavior": ONE, "max_attempts": 0}),
    ({"max_attempts": "1001"}, {"behavior": ONE, "max_attempts": 1_001}),
    ({"max_attempts": "2.5"}, {"behavior": ONE, "max_attempts": 2.5}),
    ({"max_attempts": "many"}, {"behavior": ONE, "max_attempts": "many"}),
    ({"execution_time_ms": "-1"}, {"behavior": {**ONE, "execution_time_ms": -1}}),
    ({"execution_time_ms": "3600001"}, {"behavior": {**ONE, "execution_time_ms": 3_600_001}}),
    ({"error_code": LONG}, {"behavior": {**ONE, "error_code": LONG}}),
    ({"error_message": "a\x00"}, {"behavior": {**ONE, "error_message": "a\x00"}}),
    ({"command_id": "no id"}, {"behavior": ONE, "command_id": "no id"}),
    ({"correlation_id": "no id"}, {"behavior": ONE, "correlation_id": "no id"}),
    ({"reply_to": LONG}, {"behavior": ONE, "reply_to": LONG}),
    ({"reply_to": "a\x00b"}, {"behavior": ONE, "reply_to": "a\x00b"}),
    ({"payload": "[1]"}, {"behavior": ONE, "payload": [1]}),
    ({"payload": "null"}, {"behavior": ONE, "payload": None}),
    ({"payload": '{"a": "\\u0000"}'}, {"behavior": ONE, "payload": {"a": "\x00"}}),
]
GENERATED = [
    ({"count": ""}, {}),
    ({"count": "0"}, {"count": 0}),
    ({"count": "1000001"}, {"count": 1_000_001}),
    ({"delay_ms": "3600001"}, {"count": 1, "delay_ms": 3_600_001}),
    ({"name": "a\tb"}, {"count": 1, "name": "a\tb"}),
    ({"name": "x" * 201}, {"count": 1, "name": "x" * 201}),
    ({"load_max_attempts": "0"}, {"count": 1, "max_attempts": 0}),
    (
        {"mix": "custom", "share_timeout": "100.5"},
        {"count": 1, "behavior_distribution": {"timeout": 100.5}},
    ),
]
SETTINGS = [
    ({"concurrency": "0"}, {"worker": {"concurrency": 0}}),
    ({"visibility_timeout": "43201"}, {"worker": {"visibility_timeout": 43_201}}),
    ({"batch_size": "2.5"}, {"worker": {"batch_size": 2.5}}),
    ({"poll_interval": "nan"}, {"worker": {"poll_interval": "nan"}}),
    ({"poll_interval": ""}, {"worker": {"poll_interval": ""}}),
    ({"max_attempts": "1e400"}, {"retry": {"max_attempts": "1e400"}}),
    ({"backoff_multiplier": "0.5"}, {"retry": {"backoff_multiplier": 0.5}}),
]


def posted(client: FlaskClient, page: str, path: str, data: dict[str, str]) -> str:
    """The page that answers a form with these values."""
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get(page).text)
    assert token is not None
    answer = client.post(path, data={"csrf_token": token[1], **data})
    assert answer.status_code == 422, (data, answer.status_code)
    return answer.text


def at_field(page: str, field: str) -> str:
    """The error that the page shows at *field*."""
    name = re.escape(field)
    found = re.search(rf'name="{name}"[^>]* id="([^"]+)"[^>]*aria-invalid="true"', page)
    assert found is not None, field
    error = re.search(rf'id="{found[1]}-error"[^>]*>([^<]*)<', page)
    assert error is not None
    return html.unescape(error[1])


def said_by_api(client: FlaskClient, path: str, body: Any, method: str = "POST") -> str:
    """Why the API refuses *body*."""
    [error] = got(client.open(path, method=method, json=body))["errors"]
    return str(error["message"])


def test_a_form_refuses_what_the_api_refuses_in_the_same_words(client: FlaskClient) -> None:
    forms = [
        ("/send", {"type": "success"}, SEND, SENT),
        ("/send/load", {"count": "1", "mix": "success"}, BULK, GENERATED),
    ]
    for path, rest, api, cases in forms:
        for typed, body in cases:
            page = posted(client, "/send", path, rest | typed)

            [field] = set(typed) - {"mix"}
            assert at_field(page, field) == said_by_api(client, api, body), typed
    assert got(client.get(SEND))["total"] == 0


def test_a_mix_that_does_not_add_up_is_refused_as_by_the_api(client: FlaskClient) -> None:
    typed = {"count": "1", "mix": "custom", "share_success": "33.33333"}

    page = posted(client, "/send", "/send/load", typed)

    body = {"count": 1, "behavior_distribution": {"success": 33.33333}}
    assert f'<p class="field-error">{said_by_api(client, BULK, body)}</p>' in page


def test_an_action_refuses_what_the_api_refuses_in_the_same_words(client: FlaskClient) -> None:
    command_id = got(client.post(SEND, json={"behavior": ONE}))["command_id"]
    path = f"/commands/{command_id}/cancel"
    cases: list[tuple[str, dict[str, str]]] = [
        ("", {}),
        (LONG, {"reason": LONG}),
        ("a\x00b", {"reason": "a\x00b"}),
    ]
    for typed, body in cases:
        token = re.search(r'name="csrf_token" value="([^"]+)"', client.get(path).text)
        assert token is not None
        fields = {"csrf_token": token[1], "operator": "Ada", "reason": typed}

        page = client.post(path, data=fields).text

        assert at_field(page, "reason") == said_by_api(client, f"/api/v1{path}", body)
    assert got(client.get(f"{SEND}/{command_id}"))["status"] == "PENDING"


def test_settings_are_refused_as_by_the_api_and_nothing_is_saved(client: FlaskClient) -> None:
    path = "/api/v1/config"
    for typed, body in SETTINGS:
        page = posted(client, "/settings", "/settings", {"version": "1", **typed})

        [field] = typed
        assert at_field(page, field) == said_by_api(client, path, body, "PUT"), typed
    assert got(client.get(path))["version"] == 1


def test_a_form_made_from_impossible_numbers_is_compared_with_what_is_stored(
    client: FlaskClient,
) -> None:
    """What the page's hidden fields repeat can be changed on its way, and is not believed."""
    was = {"was_concurrency": "1e400", "was_batch_size": "x\x00", "was_max_attempts": "9" * 99}
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/settings").text)
    assert token is not None

    answer = client.post("/settings", data={"csrf_token": token[1], "version": "7", **was})

    assert answer.status_code == 409
    assert got(client.get("/api/v1/config"))["version"] == 1


def test_a_list_refuses_a_filter_that_the_api_refuses_and_lists_nothing_else(
    client: FlaskClient,
) -> None:
    """It was cut or changed, so the page listed what nobody had asked for."""
    for text in ("x" * 201, "a\x00b", "\x00"):
        for page, api in (("/commands", SEND), ("/troubleshooting", "/api/v1/tsq")):
            answer = client.get(page, query_string={"q": text})
            refused = got(client.get(api, query_string={"q": text}))["errors"][0]["message"]

            assert answer.status_code == 422
            said = f"The value of q in the address cannot be used. {refused}."
            assert said in html.unescape(answer.text)
