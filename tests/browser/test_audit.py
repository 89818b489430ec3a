"""The audit trail: of one command, and the search over all events."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acting import PERMANENT, SOON, SUCCESS, send, send_many, troubled, wait_for

pytestmark = pytest.mark.browser

MakePage = Callable[..., Page]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_trail_is_found_by_id_and_by_its_beginning(
    make_live_page: MakePage, live_worker, scripts
):
    page = make_live_page(java_script_enabled=scripts)
    command_id = send(page, SUCCESS)
    wait_for(page, command_id, "COMPLETED")
    for text in (command_id, command_id[:20]):
        page.goto("/audit")
        page.get_by_label("Command id").fill(text)
        page.get_by_role("button", name="Show trail").click()

        expect(page).to_have_url(re.compile(rf"/audit/{command_id}"))
        labels = page.locator(".timeline strong").all_inner_texts()
        assert labels == ["Sent", "Received", "Completed"]


def test_several_commands_that_begin_alike_are_offered(live_page: Page):
    ids = [send(live_page, SUCCESS) for _ in range(3)]
    live_page.goto(f"/audit?id={ids[0][:5]}")

    expect(live_page.locator("main tbody tr")).to_have_count(3)
    live_page.get_by_role("link", name=ids[1]).click()
    expect(live_page).to_have_url(re.compile(rf"/audit/{ids[1]}"))


@pytest.mark.parametrize(
    "path", ["/audit/01900000-0000-7000-8000-000000000000", "/audit?id=ffff", "/audit/zzz"]
)
def test_nothing_found_is_said(live_page: Page, path):
    live_page.goto(path)

    expect(live_page.get_by_text("No audit events found for this command")).to_be_visible()


def test_attempts_are_grouped_and_details_open(live_page: Page, live_worker):
    behavior = {"type": "fail_transient", "error_code": "BANK_AWAY", "error_message": "No answer"}
    command_id = send(live_page, behavior, max_attempts=2)
    wait_for(live_page, command_id, "IN_TSQ")
    live_page.goto(f"/audit/{command_id}")

    titles = live_page.locator("#audit-trail h3").all_inner_texts()
    assert titles == ["Sent", "Attempt 1", "Attempt 2"]
    expect(live_page.get_by_text("Total duration")).to_be_visible()
    last = live_page.get_by_role("region", name="Attempt 2")
    assert last.locator("strong").all_inner_texts() == [
        "Received",
        "Failed",
        "Retries exhausted",
        "Moved to the TSQ",
    ]
    expect(last.get_by_text("BANK_AWAY: No answer").first).to_be_visible()
    expect(last.get_by_text(re.compile(r"^\+\d")).first).to_be_visible()
    last.locator("summary").first.click()
    expect(last.locator("pre").first).to_contain_text('"attempt": 2')


def test_a_trail_follows_live_and_keeps_open_what_is_open(live_page: Page, start_live_worker):
    command_id = send(live_page, {"type": "success", "execution_time_ms": 1000})
    live_page.goto(f"/audit/{command_id}")
    live_page.locator(".timeline summary").first.click()
    start_live_worker("--poll-interval", "0.2")

    expect(live_page.locator(".timeline").get_by_text("Completed", exact=True)).to_be_visible(
        timeout=SOON
    )
    expect(live_page.locator(".timeline details").first).to_have_attribute("open", "")


@pytest.mark.parametrize("scripts", [True, False])
def test_events_of_all_commands_are_searched(make_live_page: MakePage, live_worker, scripts):
    page = make_live_page(java_script_enabled=scripts)
    [command_id] = troubled(page, PERMANENT["error_code"])
    send(page, SUCCESS)
    page.goto("/audit")
    page.get_by_label("Event", exact=True).select_option("MOVED_TO_TSQ")
    page.get_by_role("button", name="Apply").click()

    events = page.locator("#audit-events > div > ul > li")
    expect(events).to_have_count(1)
    expect(events).to_contain_text("CARD_DECLINED: Card 4711 was declined")
    events.get_by_role("link").click()
    expect(page).to_have_url(re.compile(rf"/audit/{command_id}"))
    page.goto("/audit?since=2199-01-01T00:00")
    expect(page.get_by_text("No events match")).to_be_visible()


def test_one_pages_through_the_events(live_page: Page):
    send_many(live_page, 45, SUCCESS)
    live_page.goto("/audit")
    seen = []
    for number in (1, 2, 3):
        expect(live_page.get_by_text(f"Page {number}", exact=True)).to_be_visible()
        events = live_page.locator("#audit-events > div > ul > li")
        seen += events.evaluate_all("events => events.map((event) => event.id)")
        if number < 3:
            live_page.get_by_role("link", name="Next").click()
    assert len(seen) == len(set(seen)) == 45
    live_page.get_by_role("link", name="Previous").click()
    expect(live_page.get_by_text("Page 1", exact=True)).to_be_visible()
