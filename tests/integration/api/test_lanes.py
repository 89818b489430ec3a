"""Lanes over HTTP: sending into one, finding its commands, settings, what holds a lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from tests.integration.api.conftest import got

COMMANDS = "/api/v1/commands"
GROUPS = "/api/v1/lanes/groups"
LANE = "tenant-7/order-42"


def groups(client: FlaskClient) -> dict[str, Any]:
    return {each["group"]: each for each in got(client.get(GROUPS))["groups"]}


def test_commands_of_a_lane_are_found_by_it(client: FlaskClient, send: Callable[..., str]) -> None:
    mine = [send(lane=LANE), send("fail_permanent", lane=LANE)]
    send(lane="tenant-7/order-43")
    send()

    listed = got(client.get(COMMANDS, query_string={"lane": LANE}))
    pending = got(client.get(COMMANDS, query_string={"lane": LANE, "status": "PENDING"}))

    assert {each["command_id"] for each in listed["commands"]} == set(mine)
    assert {each["command_id"] for each in pending["commands"]} == set(mine)
    assert {each["lane"] for each in listed["commands"]} == {LANE}
    assert got(client.get(f"{COMMANDS}/{mine[0]}"))["lane"] == LANE


def test_a_command_says_how_far_back_it_is_and_behind_whom(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    first, *rest = [send(lane=LANE) for _ in range(3)]
    run_all("permanent")

    said = got(client.get(f"{COMMANDS}/{rest[1]}"))["explanation"]
    behind = got(client.get("/api/v1/tsq"))["commands"][0]

    assert said == (
        f"It is third in lane {LANE}, behind {first}, which is in the troubleshooting queue."
    )
    assert (behind["command_id"], behind["lane"], behind["waiting_behind"]) == (first, LANE, 2)
    assert got(client.get("/api/v1/lanes/held"))["lanes"][0]["command_id"] == first


def test_a_command_whose_group_is_full_says_so(
    client: FlaskClient,
    send: Callable[..., str],
    run_all: Callable[..., None],
    conn: psycopg.Connection[Any],
) -> None:
    run_all()
    client.put(GROUPS, json={"group": "tenant-7", "max_in_flight": 0})
    stuck = send(lane=LANE)
    run_all()

    said = got(client.get(f"{COMMANDS}/{stuck}"))["explanation"]

    assert said == (
        f"It is first in lane {LANE}, and waits for its group, of which at most 0 may be on their"
        " way at once."
    )


def test_a_group_shows_its_backlog_and_takes_settings(
    client: FlaskClient, send: Callable[..., str], run_all: Callable[..., None]
) -> None:
    for number in range(4):
        send(lane=f"tenant-7/{number % 2}")
    run_all("permanent")

    before = groups(client)["tenant-7"]
    changed = client.put(GROUPS, json={"group": "tenant-7", "on_trouble": "skip", "weight": 2.5})
    after = groups(client)["tenant-7"]

    assert (before["waiting"], before["in_flight"], before["held"]) == (2, 0, 2)
    assert before["oldest_at"] is not None
    assert changed.status_code == 200
    assert got(changed) == {
        "max_in_flight": None, "weight": 2.5, "lane_limit": 1, "on_trouble": "skip",
    }  # fmt: skip
    assert (after["held"], after["is_own"], after["changed_by"]) == (0, True, "api")
    assert got(client.post(f"{GROUPS}/reset", json={"group": "tenant-7"})) == {"reset": True}
    assert groups(client)["tenant-7"]["weight"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"weight": 0}, {"lane_limit": 0}, {"max_in_flight": -1}, {"on_trouble": "wait"},
        {"group": "a/b"}, {"other": 1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(client: FlaskClient, bad: dict[str, Any]) -> None:
    assert client.put(GROUPS, json={"group": "g", **bad}).status_code == 422
    assert groups(client) == {}


def test_bulk_commands_go_into_lanes_in_turns(client: FlaskClient) -> None:
    made = client.post(f"{COMMANDS}/bulk", json={"count": 60, "lanes": 6, "groups": 2})

    assert made.status_code == 201
    assert {name: each["waiting"] for name, each in groups(client).items()} == {
        "group-0": 30,
        "group-1": 30,
    }
    page = got(client.get(COMMANDS, query_string={"lane": "group-1/lane-3"}))
    assert page["total"] == 10
