"""What a command caused and what caused it, in the API and on pages."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from tests.integration.api.conftest import got

URL = "/api/v1/commands"


def send(client: FlaskClient, **fields: object) -> str:
    answer = client.post(URL, json={"behavior": {"type": "success"}, **fields})
    assert answer.status_code == 201
    return str(got(answer)["command_id"])


def caused(
    conn: psycopg.Connection[TupleRow], cause: str, correlation_id: UUID | None, kind: str = "Next"
) -> str:
    """A command that the handler of *cause* sent."""
    command_id = str(uuid4())
    command = {
        "command_id": command_id,
        "command_type": kind,
        "correlation_id": None if correlation_id is None else str(correlation_id),
        "causation_id": cause,
    }
    conn.execute(
        "select * from command_bus.send_commands('test', %s::jsonb)", (json.dumps([command]),)
    )
    return command_id


@pytest.fixture
def conn(database_url: str):
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def test_cause_and_effects_of_a_command_are_told_both_ways(client, conn):
    correlation_id = uuid4()
    parent = send(client, correlation_id=str(correlation_id))
    children = [caused(conn, parent, correlation_id, kind) for kind in ("First", "Second")]

    above = got(client.get(f"{URL}/{parent}"))
    below = got(client.get(f"{URL}/{children[0]}"))

    assert above["causation_id"] is None
    assert [each["command_id"] for each in above["effects"]["commands"]] == children
    assert above["effects"]["is_complete"] is True
    assert below["causation_id"] == parent
    page = client.get(f"/commands/{parent}").text
    assert "Its handler sent 2 commands" in page
    assert f"/commands/{children[1]}" in page
    assert f"/conversations/{correlation_id}" in page
    page = client.get(f"/commands/{children[0]}").text
    assert "Sent by the handler of" in page
    assert f"/commands/{parent}" in page


def test_a_cause_that_was_deleted_is_said_to_be(client, conn):
    child = caused(conn, str(uuid4()), None)

    assert "which has been deleted" in client.get(f"/commands/{child}").text


def test_a_conversation_is_a_tree(client, conn):
    correlation_id = uuid4()
    root = send(client, correlation_id=str(correlation_id))
    child = caused(conn, root, correlation_id)
    other = send(client, correlation_id=str(correlation_id))
    grandchild = caused(conn, child, correlation_id)

    found = got(client.get(f"/api/v1/conversations/{correlation_id}"))

    assert [(each["command_id"], each["depth"]) for each in found["commands"]] == [
        (root, 0), (child, 1), (grandchild, 2), (other, 0),
    ]  # fmt: skip
    assert found["is_complete"] is True
    page = client.get(f"/conversations/{correlation_id}").text
    places = [page.index(f"/commands/{each}") for each in (root, child, grandchild, other)]
    assert places == sorted(places)


@pytest.mark.parametrize("path", ["/api/v1/conversations", "/conversations"])
def test_an_unknown_conversation_is_404(client: FlaskClient, path: str) -> None:
    assert client.get(f"{path}/{uuid4()}").status_code == 404


def test_headers_are_shown_as_they_were_sent(client):
    headers = {"traceparent": "00-1", "tenant": 7}
    command_id = send(client, headers=headers)

    assert got(client.get(f"{URL}/{command_id}"))["headers"] == headers
    assert "traceparent" in client.get(f"/commands/{command_id}").text
    assert got(client.get(f"{URL}/{send(client)}"))["headers"] is None


@pytest.mark.parametrize("headers", [{"long": "x" * 8192}, {"nul": "\0"}, "text", [1]])
def test_headers_that_cannot_be_stored_are_refused(client: FlaskClient, headers: object) -> None:
    answer = client.post(URL, json={"behavior": {"type": "success"}, "headers": headers})

    assert answer.status_code == 422
    assert "headers" in answer.text
