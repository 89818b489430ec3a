"""The page of the invariants and its twin of the API, with rows that were spoilt on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page, expect

from app.database import invariants
from app.database.invariants import GROUPS
from tests.browser.conftest import PHONE

pytestmark = pytest.mark.browser


@pytest.fixture
def conn(database_url):
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def send(page: Page) -> str:
    command_id: str = page.request.post("/api/v1/commands/quick", data={}).json()["command_id"]
    return command_id


def spoil(conn, command_id: str) -> None:
    """The command loses its message, and its row says something that no event brought about."""
    conn.execute("delete from pgmq.q_test__commands")
    conn.execute(
        "update command_bus_command set attempts = -1 where command_id = %s", (command_id,)
    )


@pytest.mark.parametrize("scripts", [True, False])
def test_everything_holds_and_each_invariant_is_explained(
    make_live_page: Callable[..., Page], scripts
):
    page = make_live_page(java_script_enabled=scripts)
    send(page)
    page.goto("/invariants")

    expect(page.locator("#verdict")).to_contain_text("Everything checked holds")
    expect(page.locator("#verdict")).to_contain_text("20 invariants over 1 command,")
    for group in GROUPS:
        for invariant in group.invariants:
            heading = page.get_by_role(
                "heading", name=re.compile(f"^{invariant.title or invariant.name} Holds$", re.I)
            )
            expect(heading).to_be_visible()
    report = page.request.get("/api/v1/invariants").json()
    assert (report["holds"], report["violations_count"]) == (True, 0)
    assert len(report["invariants"]) == 20


def test_what_does_not_hold_is_named_with_a_link_to_the_command(live_page: Page, conn):
    command_id = send(live_page)
    spoil(conn, command_id)
    live_page.goto("/invariants")

    expect(live_page.locator("#verdict")).to_contain_text("2 violations")
    table = live_page.get_by_role("region", name="Violations: attempts stay within the budget")
    expect(table).to_contain_text("-1 attempts of")
    link = table.get_by_role("link", name=re.compile(command_id[:8]))
    expect(link).to_have_attribute("href", f"/commands/{command_id}?domain=test")
    report = live_page.request.get("/api/v1/invariants").json()
    assert (report["holds"], report["violations_count"]) == (False, 2)
    found = {each["name"]: each["violations"] for each in report["invariants"]}
    [violation] = found["attempts stay within the budget"]
    assert (violation["subject_id"], violation["domain"]) == (command_id, "test")


def test_a_violation_can_be_mended_and_checked_again(live_page: Page, conn):
    command_id = send(live_page)
    conn.execute("update command_bus_command set attempts = -1")
    live_page.goto("/invariants")
    expect(live_page.locator("#verdict")).to_contain_text("1 violation")
    conn.execute("update command_bus_command set attempts = 0 where command_id = %s", (command_id,))
    live_page.get_by_role("button", name="Check again").click()

    expect(live_page.locator("#verdict")).to_contain_text("Everything checked holds")


def test_many_commands_are_checked_only_when_asked(live_page: Page, monkeypatch):
    monkeypatch.setattr("app.web.invariants.CHECKED_AT_ONCE", 0)
    send(live_page)
    live_page.goto("/invariants")
    expect(live_page.locator("#main")).to_contain_text("Not checked yet")
    expect(live_page.locator("#verdict")).to_have_count(0)
    live_page.get_by_role("button", name="Check now").click()

    expect(live_page.locator("#verdict")).to_contain_text("Everything checked holds")


def test_there_is_one_check_at_a_time(live_page: Page, conn):
    conn.execute("select pg_advisory_lock(%s)", (invariants._ONE_AT_A_TIME,))
    live_page.goto("/invariants")

    expect(live_page.locator("#main")).to_contain_text("Another check is running")
    refused = live_page.request.get("/api/v1/invariants")
    assert (refused.status, refused.json()["code"]) == (409, "check_running")


def test_a_check_that_takes_too_long_is_given_up(live_page: Page, conn):
    conn.execute(
        "create or replace function command_bus.find_violations()"
        " returns table (invariant text, domain text, command_id uuid, detail text)"
        " language sql as $$ select '', '', null::uuid, '' from pg_sleep(30) $$"
    )
    conn.execute("select pg_sleep(0)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invariants.check, "__kwdefaults__", {"seconds": 1})
        live_page.goto("/invariants")
        refused = live_page.request.get("/api/v1/invariants")

    expect(live_page.locator("#main")).to_contain_text("says nothing about the invariants")
    assert (refused.status, refused.json()["code"]) == (504, "check_too_long")


def test_an_invariant_that_only_the_database_knows_is_shown(live_page: Page, conn):
    conn.execute(
        "create or replace function command_bus.find_violations()"
        " returns table (invariant text, domain text, command_id uuid, detail text)"
        " language sql as $$ select 'water is wet', null, null::uuid, n || ' <b>dry</b>'"
        " from generate_series(1, 70) as n $$"
    )
    live_page.goto("/invariants")

    table = live_page.get_by_role("region", name="Violations: water is wet")
    expect(table).to_contain_text("1 <b>dry</b>")
    expect(table).to_contain_text("and 20 more")
    expect(live_page.locator("#verdict")).to_contain_text("70 violations")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways_with_violations(
    make_live_page: Callable[..., Page], conn, theme
):
    page = make_live_page(PHONE, theme=theme)
    spoil(conn, send(page))
    page.goto("/invariants")
    results = Axe().run(page)

    assert results.violations_count == 0, results.generate_report()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("document.documentElement.clientWidth")
