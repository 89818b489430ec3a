"""The page Lanes, and what other pages say of lanes."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from tests.integration.api.conftest import got

LANE = "tenant-7/order-42"


@pytest.fixture
def token(client: FlaskClient) -> str:
    text = client.get("/lanes").text
    return text.split('name="csrf_token" value="')[1].split('"')[0]


def test_a_page_without_lanes_says_where_they_come_from(client: FlaskClient) -> None:
    answer = client.get("/lanes")

    assert answer.status_code == 200
    assert "Commands that are sent with a lane appear here" in answer.text


def test_the_page_shows_groups_and_what_holds_their_lanes(
    client: FlaskClient, send: Any, run_all: Any
) -> None:
    first, *_ = [send(lane=LANE) for _ in range(3)]
    run_all("permanent")

    page = client.get("/lanes").text
    troubled = client.get("/troubleshooting").text
    detail = client.get(f"/commands/{first}").text

    assert "tenant-7" in page
    assert f"/commands/{first}" in page
    assert "2 wait behind it" in troubled
    assert f">{LANE}</a>" in troubled
    assert LANE in detail


def test_settings_are_changed_and_taken_back_on_the_page(client: FlaskClient, token: str) -> None:
    form = {"csrf_token": token, "domain": "test", "group": "tenant-7"}

    client.post(
        "/lanes/settings",
        data={
            **form,
            "max_in_flight": "5",
            "lane_limit": "2",
            "weight": "0,5",
            "on_trouble": "skip",
        },
    )
    [group] = got(client.get("/api/v1/lanes/groups"))["groups"]
    page = client.get("/lanes").text
    client.post("/lanes/settings", data={**form, "reset": "1"})

    assert (group["max_in_flight"], group["lane_limit"]) == (5, 2)
    assert (group["weight"], group["on_trouble"], group["changed_by"]) == (0.5, "skip", "web")
    assert "tenant-7 has new settings" in page
    assert got(client.get("/api/v1/lanes/groups"))["groups"] == []


@pytest.mark.parametrize(
    "bad", [{"weight": "much"}, {"weight": "0"}, {"lane_limit": "-1"}, {"group": "a/b"}]
)
def test_a_wrong_setting_changes_nothing_and_says_why(
    client: FlaskClient, token: str, bad: dict[str, str]
) -> None:
    form = {"csrf_token": token, "domain": "test", "group": "g", "on_trouble": "hold", **bad}

    client.post("/lanes/settings", data=form)

    assert "Nothing was changed" in client.get("/lanes").text
    assert got(client.get("/api/v1/lanes/groups"))["groups"] == []


def test_a_command_is_sent_into_a_lane_by_the_form(
    client: FlaskClient, token: str, conn: psycopg.Connection[Any]
) -> None:
    answer = client.post(
        "/send", data={"csrf_token": token, "type": "success", "lane": LANE, "payload": "{}"}
    )

    assert answer.status_code in (302, 303), answer.text[:500]
    assert conn.execute("select lane from command_bus_lane").fetchall() == [(LANE,)]
