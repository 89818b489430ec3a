"""Finding commands, and everything about one of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.acting import (
    PERMANENT,
    SOON,
    SUCCESS,
    execute,
    send,
    send_many,
    status_of,
    trail_of,
    troubled,
    wait_for,
)
from tests.browser.conftest import DESKTOP, PHONE

pytestmark = pytest.mark.browser

MakePage = Callable[..., Page]
UNKNOWN_ID = "01900000-0000-7000-8000-000000000000"


def rows(page: Page):
    return page.locator("#commands tbody tr")


@pytest.mark.parametrize("scripts", [True, False])
def test_filters_combine_live_in_the_address_and_are_cleared(
    make_live_page: MakePage, live_worker, scripts
):
    page = make_live_page(java_script_enabled=scripts)
    [declined, other] = troubled(page, "CARD_DECLINED", "BANK_AWAY")
    done = send(page, SUCCESS)
    wait_for(page, done, "COMPLETED")

    page.goto("/commands")
    expect(rows(page)).to_have_count(3)
    filters = page.get_by_role("search", name="Filters")
    filters.get_by_label("Status").select_option("IN_TSQ")
    filters.get_by_label("Search").fill("CARD_DECLINED")
    filters.get_by_role("button", name="Apply").click()

    expect(rows(page)).to_have_count(1)
    expect(rows(page).locator("a.id")).to_have_attribute("title", declined)
    assert "status=IN_TSQ" in page.url
    assert "q=CARD_DECLINED" in page.url
    if scripts:
        assert "domain=" not in page.url
    page.get_by_role("link", name="Clear", exact=True).click()
    expect(rows(page)).to_have_count(3)
    assert page.url.endswith("/commands")
    assert other != declined


def test_a_command_is_found_by_its_id_by_parts_of_it_and_by_its_correlation_id(live_page: Page):
    correlation_id = "6b1c0d7e-0000-4000-8000-000000000001"
    command_id = send(live_page, SUCCESS, correlation_id=correlation_id)
    send(live_page, SUCCESS)

    live_page.goto("/")
    for text in (command_id.upper()[:13], command_id[:30]):
        live_page.keyboard.press("/")
        live_page.keyboard.type(text)
        live_page.keyboard.press("Enter")
        expect(live_page).to_have_url(re.compile(r"/commands\?q="))
        expect(live_page.locator(f'#commands a[title="{command_id}"]')).to_have_count(1)
    expect(rows(live_page)).to_have_count(1)
    shown = f"{command_id[:8]}…{command_id[-4:]}"
    for text in (command_id, shown, f'"{command_id}"', correlation_id):
        live_page.goto("/")
        live_page.keyboard.press("/")
        live_page.keyboard.type(text)
        live_page.keyboard.press("Enter")
        expect(live_page).to_have_url(re.compile(f"/commands/{command_id}"))
    live_page.goto("/commands?q=nothing-like-it")
    expect(live_page.get_by_text("No commands match")).to_be_visible()


def test_times_are_meant_in_the_viewers_zone(make_live_page: MakePage, database_url):
    page = make_live_page(timezone_id="Asia/Tokyo")
    command_id = send(page, SUCCESS)
    execute(
        database_url,
        "update command_bus_command set created_at = '2026-03-01 23:30:00+00'"
        " where command_id = %s",
        command_id,
    )
    page.goto("/commands")
    time = rows(page).locator("time").first
    expect(time).to_have_text("2 Mar, 08:30:00")
    expect(time).to_have_attribute("title", "2026-03-01 23:30:00 UTC")
    page.get_by_text("Time range").click()
    expect(page.get_by_label("Created from Tokyo")).to_be_visible()
    page.get_by_label("Created from Tokyo").fill("2026-03-02T08:29")
    page.get_by_label("Created before Tokyo").fill("2026-03-02T08:31")
    page.get_by_role("button", name="Apply").click()

    expect(rows(page)).to_have_count(1)
    assert "tz=Asia" in page.url
    elsewhere = make_live_page(timezone_id="UTC")
    elsewhere.goto(page.url)
    expect(rows(elsewhere)).to_have_count(1)
    elsewhere.goto(page.url.replace("08%3A29", "08%3A31"))
    expect(elsewhere.get_by_text("No commands match")).to_be_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_one_pages_forth_and_back_through_everything(make_live_page: MakePage, scripts):
    page = make_live_page(java_script_enabled=scripts)
    send_many(page, 45, SUCCESS)

    page.goto("/commands")
    expect(page.get_by_text("45 commands, page 1 of 3")).to_be_visible()
    seen = []
    for number in (1, 2, 3):
        expect(page.get_by_text(f"page {number} of 3")).to_be_visible()
        seen += rows(page).locator("a.id").evaluate_all("links => links.map((link) => link.title)")
        if number < 3:
            page.get_by_role("link", name="Next").click()
    assert len(seen) == len(set(seen)) == 45
    expect(page.get_by_role("link", name="Next")).to_have_count(0)
    page.get_by_role("link", name="Previous").click()
    expect(page.get_by_text("page 2 of 3")).to_be_visible()
    page.get_by_role("link", name="Previous").click()
    expect(page.get_by_text("page 1 of 3")).to_be_visible()
    assert page.url.endswith("/commands")
    page.get_by_role("link", name="50 rows").click()
    expect(rows(page)).to_have_count(45)
    expect(page.get_by_text("page 1 of 1")).to_be_visible()


@pytest.mark.parametrize(
    "query",
    ["limit=7", "limit=x", "cursor=x", "page=-1", "status=NO", "created_from=yesterday",
     "created_from=0001-01-01T00:00&tz=Asia/Tokyo", "tz=../../etc/passwd"],
)  # fmt: skip
def test_an_address_that_makes_no_sense_still_shows_a_list(live_page: Page, query):
    send(live_page, SUCCESS)
    answer = live_page.goto(f"/commands?{query}")

    assert answer is not None
    assert answer.status == 200
    expect(live_page.locator("#commands")).to_be_visible()


def test_the_list_follows_by_itself_and_keeps_what_one_types(live_page: Page, live_worker):
    live_page.goto("/commands")
    expect(live_page.get_by_text("No commands stored")).to_be_visible()
    search = live_page.get_by_label("Search", exact=True)
    search.fill("half a wo")
    send(live_page, SUCCESS)

    expect(rows(live_page)).to_have_count(1, timeout=SOON)
    expect(rows(live_page).get_by_text("Completed")).to_be_visible(timeout=SOON)
    expect(search).to_have_value("half a wo")
    expect(search).to_be_focused()


def test_the_detail_shows_everything(live_page: Page, live_worker):
    correlation_id = "6b1c0d7e-0000-4000-8000-000000000002"
    behavior = {"type": "fail_transient_then_succeed", "transient_failures": 1}
    command_id = send(
        live_page,
        behavior,
        payload={"order": "A-17"},
        correlation_id=correlation_id,
        max_attempts=4,
    )
    wait_for(live_page, command_id, "COMPLETED")
    live_page.goto("/commands")
    rows(live_page).first.click()

    expect(live_page).to_have_url(re.compile(rf"/commands/{command_id}\?domain=test"))
    main = live_page.locator("main")
    for text in (
        command_id,
        correlation_id,
        "Completed on attempt 2",
        "of 4",
        "Its own budget",
    ):
        expect(main.get_by_text(text).first).to_be_visible()
    expect(live_page.get_by_role("region", name="Payload")).to_contain_text('"order": "A-17"')
    expect(live_page.get_by_role("region", name="Behaviour")).to_contain_text("transient_failures")
    expect(live_page.get_by_role("region", name="Result")).to_be_visible()
    attempts = live_page.get_by_role("region", name="Attempts").locator("tbody tr")
    expect(attempts).to_have_count(2)
    expect(attempts.nth(0)).to_contain_text("Failed")
    expect(attempts.nth(1)).to_contain_text("Completed")
    for event in ("Sent", "Received", "Retry scheduled", "Completed"):
        expect(main.locator(".timeline").get_by_text(event, exact=True).first).to_be_visible()
    expect(main.get_by_text(re.compile(r"^w-\d+$")).first).to_be_visible()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_each_row_leads_to_the_trail_of_its_command(make_live_page: MakePage, size):
    page = make_live_page(size)
    command_id = send(page, SUCCESS)
    send(page, SUCCESS)
    page.goto("/commands")
    rows(page).last.get_by_role("link", name=f"Audit trail of {command_id[:8]}").click()

    expect(page).to_have_url(re.compile(rf"/audit/{command_id}\?domain=test$"))
    expect(page.locator("#audit-trail")).to_contain_text("Sent")


def test_a_command_that_no_worker_took_says_how_long_it_waits_so_far(live_page: Page, database_url):
    command_id = send(live_page, SUCCESS)
    execute(
        database_url,
        "update command_bus_command set created_at = created_at - interval '2 hours'"
        " where command_id = %s",
        command_id,
    )
    live_page.goto(f"/commands/{command_id}")

    timing = live_page.get_by_role("region", name="Timing")
    expect(timing).to_contain_text("So far")
    expect(timing.locator("time")).to_have_text(re.compile(r"^2 h( \d min)?$"))
    answer = live_page.request.get(f"/api/v1/commands/{command_id}").json()
    assert answer["timing"]["waiting_ms"] is None


def test_the_detail_follows_a_command_to_its_end(live_page: Page, start_live_worker):
    command_id = send(live_page, {"type": "success", "execution_time_ms": 6000})
    live_page.goto(f"/commands/{command_id}")
    expect(live_page.get_by_text("no worker is running for domain test")).to_be_visible()

    start_live_worker("--poll-interval", "0.2")
    expect(
        live_page.get_by_text(re.compile(r"Worker w-\d+ has been running attempt 1"))
    ).to_be_visible(timeout=SOON)
    expect(live_page.get_by_text("Completed on attempt 1")).to_be_visible(timeout=SOON)


@pytest.mark.parametrize("scripts", [True, False])
def test_a_pending_command_is_cancelled_with_a_reason(make_live_page: MakePage, scripts):
    page = make_live_page(java_script_enabled=scripts)
    command_id = send(page, SUCCESS)
    page.goto(f"/commands/{command_id}")
    page.get_by_role("link", name="Cancel…").click()
    page.get_by_label("Reason").fill("Ordered twice")
    page.get_by_label("Your name").last.fill("Ada")
    page.get_by_role("button", name="Cancel 1 command").click()

    expect(page.get_by_text("Cancelled.", exact=True)).to_be_visible()
    expect(page.get_by_text("Ada cancelled it: Ordered twice.")).to_be_visible()
    assert status_of(page, command_id) == "CANCELLED"
    details = trail_of(page, command_id)[-1]["details"]
    assert (details["operator"], details["reason"]) == ("Ada", "Ordered twice")


def test_too_late_to_cancel_is_said(make_live_page: MakePage, start_live_worker):
    page = make_live_page()
    command_id = send(page, SUCCESS)
    page.goto(f"/commands/{command_id}/cancel")
    start_live_worker("--poll-interval", "0.2")
    wait_for(page, command_id, "COMPLETED")
    page.get_by_label("Reason").fill("Too late")
    page.get_by_label("Your name").last.fill("Ada")
    page.get_by_role("button", name="Cancel 1 command").click()

    expect(page.get_by_text("Nothing was cancelled: the command is COMPLETED now.")).to_be_visible()


def test_operators_act_from_the_detail(live_page: Page, live_worker):
    [command_id] = troubled(live_page, "CARD_DECLINED")
    live_page.goto(f"/commands/{command_id}")
    expect(live_page.get_by_text("failed with a permanent error")).to_be_visible()
    live_page.get_by_role("button", name="Retry").click()
    dialog = live_page.get_by_role("dialog")
    dialog.get_by_label("Your name").fill("Ada")
    dialog.get_by_role("button", name="Retry 1 command").click()

    expect(live_page.get_by_text("retried it; this can be undone until")).to_be_visible()
    live_page.get_by_role("button", name="Undo the retry").click()
    expect(live_page.get_by_text("The retry is undone")).to_be_visible()
    assert status_of(live_page, command_id) == "IN_TSQ"


def test_an_unknown_command_is_not_found(live_page: Page):
    answer = live_page.request.get(f"/commands/{UNKNOWN_ID}", headers={"Accept": "text/html"})

    assert answer.status == 404
    assert f"There is no command {UNKNOWN_ID}." in answer.text()
    assert live_page.request.get("/commands/not-an-id").status == 404


def test_what_needs_an_operator_leads_to_where_one_can_act(live_page: Page, live_worker):
    [command_id] = troubled(live_page, PERMANENT["error_code"])
    live_page.goto("/commands?status=IN_TSQ&domain=test")
    live_page.get_by_role("link", name="Retry, complete or cancel them").click()

    expect(live_page).to_have_url(re.compile(r"/troubleshooting\?domain=test$"))
    live_page.goto(f"/commands/{command_id}")
    live_page.get_by_role("link", name="All with this code").click()
    expect(live_page.get_by_label("Error code", exact=True)).to_have_value(PERMANENT["error_code"])


def test_a_far_time_is_told_with_its_day(make_live_page: MakePage, database_url):
    page = make_live_page(timezone_id="Asia/Tokyo")
    command_id = send(page, {"type": "success"})
    execute(
        database_url,
        "with moved as (delete from pgmq.q_test__commands)"
        " insert into command_bus_waiting (domain, command_id, due_at, kind)"
        " values ('test', %s, '2099-12-31 20:00+00', 'SCHEDULED')",
        command_id,
    )
    page.goto(f"/commands/{command_id}")

    expect(page.get_by_text("It is scheduled for 1 Jan 2100, 05:00:00.")).to_be_visible()


@pytest.mark.parametrize("size", [PHONE, (768, 900)], ids=["phone", "tablet"])
def test_a_long_type_needs_no_scrolling_to_the_side(make_live_page: MakePage, database_url, size):
    page = make_live_page(size)
    send(page, {"type": "success"})
    execute(database_url, "update command_bus_command set command_type = repeat('a', 200)")
    page.goto("/commands")

    table = page.get_by_role("region", name="Commands").last
    expect(rows(page)).to_have_count(1)
    assert table.evaluate("table => table.scrollWidth <= table.clientWidth")


def test_a_phone_shows_the_list_and_the_detail(make_live_page: MakePage, live_worker):
    page = make_live_page(PHONE)
    [command_id] = troubled(page, PERMANENT["error_code"])
    page.goto("/commands")
    rows(page).first.click()

    expect(page.locator("h1")).to_have_text("TestCommand")
    expect(page.locator(".page-head")).to_contain_text(command_id)
    expect(page.get_by_role("button", name="Retry")).to_be_visible()


def test_why_a_command_is_here_is_what_the_page_says_largest(live_page: Page, live_worker):
    [command_id] = troubled(live_page, PERMANENT["error_code"])
    live_page.goto(f"/commands/{command_id}")
    why = live_page.locator(".hero-text")

    expect(why).to_contain_text("Attempt 1 failed with a permanent error: CARD_DECLINED")
    size = why.evaluate("element => parseFloat(getComputedStyle(element).fontSize)")
    assert 18 <= size <= 20
    expect(live_page.locator("h1")).to_have_text("TestCommand")


def test_what_is_copied_as_curl_sends_such_a_command(live_page: Page, live_url: str, live_worker):
    behavior = {"type": "fail_permanent", "error_code": "IT'S", "error_message": 'a "b" \\ $c'}
    payload = {"text": "it's $HOME `x` \n", "number": 12345678901234567890}
    command_id = send(live_page, behavior, payload=payload, max_attempts=2)
    wait_for(live_page, command_id, "IN_TSQ")
    live_page.goto(f"/commands/{command_id}")
    text = live_page.get_by_role("button", name="Copy as curl").get_attribute("data-copy") or ""
    done = subprocess.run(["sh", "-c", f"{text} -s"], capture_output=True, check=True)

    again = json.loads(done.stdout)["command_id"]
    assert again != command_id
    wait_for(live_page, again, "IN_TSQ")
    details = [
        live_page.request.get(f"/api/v1/commands/{each}").json() for each in (command_id, again)
    ]
    for name in ("payload", "behavior", "max_attempts"):
        assert details[0][name] == details[1][name]
    result = live_page.get_by_role("button", name="Copy the payload")
    assert json.loads(result.get_attribute("data-copy") or "") == payload
