"""Commands as tests of the pages need them: sent over HTTP, run by real workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from playwright.sync_api import Page, expect

from tests.waiting import eventually_now

PERMANENT = {
    "type": "fail_permanent",
    "error_code": "CARD_DECLINED",
    "error_message": "Card 4711 was declined",
}
SUCCESS = {"type": "success"}
SOON = 15_000
# Within so many milliseconds a page is there that waits for nothing which never comes.
IN_TIME = 15_000

_SETTLED = """async () => {
    await document.fonts.ready;
    const ends = (animation) => Number.isFinite(animation.effect.getComputedTiming().endTime);
    const running = document.getAnimations().filter(ends);
    await Promise.allSettled(running.map((animation) => animation.finished));
    for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
}"""
_LAYOUT_SHIFT = """() => {
    const observer = new PerformanceObserver(() => {});
    observer.observe({ type: 'layout-shift', buffered: true });
    return observer.takeRecords().reduce((sum, { value }) => sum + value, 0);
}"""


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


def reload_until(page: Page, part: str, text: str) -> None:
    """Load the page anew, as people without scripts do, until the part says *text*."""
    shown = page.locator(part).first

    def look() -> bool:
        page.reload()
        return text in shown.inner_text()

    eventually_now(look, message=f"{part} does not say {text!r}")


def settled(page: Page) -> None:
    """Wait until the page looks as it will: fonts are there, charts are drawn, nothing moves."""
    expect(page.locator("[data-chart]:not([data-state])")).to_have_count(0)
    page.evaluate(_SETTLED)


def layout_shift(page: Page) -> float:
    """How much of the page has moved since it was loaded, other than by what people did."""
    return float(page.evaluate(_LAYOUT_SHIFT))


def call_me(page: Page, name: str) -> None:
    """Let the browser remember who acts."""
    url = page.request.get("/").url
    page.context.add_cookies([{"name": "operator", "value": name, "url": url}])


def execute(database_url: str, query: str, *params: Any) -> Sequence[tuple[Any, ...]]:
    """The rows of a query."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        cur = conn.execute(query.encode(), params or None)
        return cur.fetchall() if cur.description else []
