"""Commands as tests of the pages need them: sent over HTTP, run by real workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from playwright.sync_api import Page

from tests.waiting import eventually_now

PERMANENT = {
    "type": "fail_permanent",
    "error_code": "CARD_DECLINED",
    "error_message": "Card 4711 was declined",
}
SUCCESS = {"type": "success"}
SOON = 15_000


def send(page: Page, behavior: dict[str, Any], **fields: Any) -> str:
    """Send a test command; its id."""
    answer = page.request.post("/api/v1/commands", data={"behavior": behavior, **fields})
    assert answer.ok, answer.text()
    return str(answer.json()["command_id"])


def send_many(page: Page, count: int, behavior: dict[str, Any]) -> None:
    """Send *count* test commands that do the same."""
    answer = page.request.post("/api/v1/commands/bulk", data={"count": count, "behavior": behavior})
    assert answer.ok, answer.text()


def status_of(page: Page, command_id: str) -> str:
    """Where the command is."""
    return str(page.request.get(f"/api/v1/commands/{command_id}").json()["status"])


def wait_for(page: Page, command_id: str, status: str) -> None:
    """Until the command is there."""
    eventually_now(lambda: status_of(page, command_id) == status)


def count(page: Page, status: str) -> int:
    """How many commands are in a status."""
    return int(page.request.get("/api/v1/stats").json()["counts"][status])


def troubled(page: Page, *codes: str) -> list[str]:
    """Commands in the troubleshooting queue, one with each error code, in this order."""
    ids = [send(page, {**PERMANENT, "error_code": code}) for code in codes]
    for command_id in ids:
        wait_for(page, command_id, "IN_TSQ")
    return ids


def trail_of(page: Page, command_id: str) -> list[dict[str, Any]]:
    """What happened to the command."""
    events = page.request.get(f"/api/v1/audit/{command_id}").json()["events"]
    return [dict(event) for event in events]


def call_me(page: Page, name: str) -> None:
    """Let the browser remember who acts."""
    url = page.request.get("/").url
    page.context.add_cookies([{"name": "operator", "value": name, "url": url}])


def execute(database_url: str, query: str, *params: Any) -> Sequence[tuple[Any, ...]]:
    """The rows of a query."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        cur = conn.execute(query.encode(), params or None)
        return cur.fetchall() if cur.description else []
