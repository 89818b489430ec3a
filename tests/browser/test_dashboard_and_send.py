"""Sending from the page, and seeing on the dashboard what became of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page, expect

from tests.browser.acting import SOON, SUCCESS, send, wait_for
from tests.browser.conftest import DESKTOP, PHONE

pytestmark = pytest.mark.browser


def card(page: Page, label: str):
    return page.locator("#counts a", has_text=re.compile(label))


@pytest.mark.parametrize("scripts", [True, False])
def test_a_command_sent_from_the_page_is_run(
    make_live_page: Callable[..., Page], live_worker, scripts
):
    page = make_live_page(java_script_enabled=scripts)
    page.goto("/send")
    page.get_by_role("radio", name="Fails, then succeeds").check()
    page.get_by_label("Failures before it succeeds").fill("0")
    page.get_by_role("button", name="Send", exact=True).click()

    sent = page.get_by_role("link", name="Details").get_attribute("href") or ""
    command_id = sent.rsplit("/", 1)[-1]
    page.goto("/")
    if scripts:  # the page follows by itself
        expect(card(page, "Completed")).to_contain_text("1", timeout=SOON)
    else:
        wait_for(page, command_id, "COMPLETED")
        page.reload()
        expect(card(page, "Completed")).to_contain_text("1")


def test_only_the_fields_that_a_type_needs_appear(live_page: Page):
    live_page.goto("/send")
    code = live_page.locator("#error_code")
    failures = live_page.get_by_label("Failures before it succeeds")

    expect(code).to_be_hidden()
    live_page.get_by_role("radio", name="Permanent failure").check()
    expect(code).to_be_visible()
    expect(failures).to_be_hidden()
    live_page.get_by_role("radio", name="Fails, then succeeds").check()
    expect(failures).to_be_visible()


def test_what_cannot_be_sent_is_said_and_nothing_typed_is_lost(make_live_page):
    page = make_live_page(java_script_enabled=False)
    page.goto("/send")
    page.get_by_label("Payload").fill("{not json")
    page.get_by_role("spinbutton", name="Execution time").fill("25")
    page.get_by_role("button", name="Send", exact=True).click()

    expect(page.locator("#payload-error")).to_contain_text("Not valid JSON")
    expect(page.get_by_label("Payload")).to_have_value("{not json")
    expect(page.get_by_role("spinbutton", name="Execution time")).to_have_value("25")
    assert page.request.get("/api/v1/stats").json()["counts"]["PENDING"] == 0


def test_the_first_field_that_was_refused_has_the_focus(live_page: Page):
    live_page.goto("/send")
    live_page.get_by_text("Ids, lane and reply").click()
    live_page.locator("#command_id").fill("no id")
    live_page.get_by_role("button", name="Send", exact=True).click()

    expect(live_page.get_by_text("Must be a UUID in lower case")).to_be_visible()
    expect(live_page.locator("#command_id")).to_be_focused()


def test_one_command_is_described_while_typing_and_a_timeout_gets_its_time(live_page: Page):
    live_page.goto("/send")
    form, expected = live_page.locator("#send-form"), live_page.locator("#expected-one")
    time = form.get_by_role("spinbutton", name="Execution time")
    attempts = form.get_by_role("spinbutton", name="Max attempts")
    expect(expected).to_have_text("Completes on attempt 1.")

    form.get_by_role("radio", name="Timeout").check()
    expect(time).to_have_value("35000")
    expect(expected).to_have_text("Completes on attempt 2.")
    time.fill("2000")
    expect(expected).to_contain_text("must exceed the visibility timeout of 30,000 ms")
    time.fill("35000")
    form.get_by_role("radio", name="Fails, then succeeds").check()
    expect(time).to_have_value("0")
    form.get_by_role("spinbutton", name="Failures before").fill("3")
    expect(expected).to_have_text("Goes to the troubleshooting queue after 3 attempts.")
    attempts.fill("4")
    expect(expected).to_have_text("Completes on attempt 4.")
    time.fill("30000")
    expect(expected).to_contain_text("after 4 attempts. The execution time is not below")


def test_a_load_test_is_described_while_typing_and_shown_while_it_runs(
    live_page: Page, start_live_worker
):
    live_page.goto("/send")
    load = live_page.locator("#load-form")
    load.get_by_role("spinbutton", name="Commands").fill("200")
    load.get_by_role("radio", name="Custom").check()
    load.get_by_role("spinbutton", name="Success").fill("50")
    expected = live_page.locator("#expected")
    expect(expected).to_contain_text("add up to 60")
    for kind, share in [("Success", 33.3), ("Fails, then succeeds", 33.3), ("Timeout", 33.4)]:
        load.get_by_role("spinbutton", name=kind, exact=True).fill(str(share))
    load.get_by_role("spinbutton", name="Permanent failure").fill("0")
    expect(expected).to_have_text(
        "About 200 complete, 66 are retried, 67 are delivered again after their lease."
    )
    load.get_by_role("spinbutton", name="Max attempts").fill("1")
    expect(expected).to_have_text("About 67 complete, 133 go to the troubleshooting queue.")
    load.get_by_role("spinbutton", name="Duration of a timeout").fill("30000")
    expect(expected).to_contain_text("133 go to the troubleshooting queue")
    load.get_by_role("spinbutton", name="Duration of a timeout").fill("29999")
    expect(expected).to_contain_text("About 134 complete, 66 go to the troubleshooting queue.")
    expect(expected).to_contain_text("A timeout must exceed the visibility timeout of 30,000 ms")
    load.get_by_role("spinbutton", name="Processing delay").fill("30000")
    expect(expected).to_contain_text("attempts end with their lease")
    live_page.reload()
    load.get_by_role("spinbutton", name="Commands").fill("200")
    load.get_by_role("radio", name="Custom").check()
    load.get_by_role("spinbutton", name="Success").fill("50")
    load.get_by_role("spinbutton", name="Business rule").fill("40")
    expect(live_page.locator("#expected")).to_contain_text("80 fail by a business rule")
    load.get_by_role("button", name="Start load test").click()

    expect(live_page.locator("#load-test")).to_contain_text("Processed 0 of 200")
    live_page.goto("/")
    expect(live_page.locator("#run")).to_contain_text("0 of 200")
    start_live_worker()
    expect(card(live_page, "Failed")).to_contain_text("80", timeout=SOON)
    expect(live_page.locator("#run")).not_to_contain_text("of 200", timeout=SOON)


@pytest.mark.parametrize("path", ["/", "/send"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(make_live_page, live_worker, path, theme):
    page = make_live_page(PHONE, theme=theme)
    page.request.post("/api/v1/commands/bulk", data={"count": 5})
    page.goto(path)

    found = Axe().run(page)

    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_latest_commands_lead_to_their_details_and_trails(make_live_page, live_worker, size):
    page = make_live_page(size)
    command_id = send(page, SUCCESS)
    wait_for(page, command_id, "COMPLETED")
    for label in ("The commands created last", "The commands completed last"):
        page.goto("/")
        table = page.get_by_role("region", name=label)
        assert table.evaluate("table => table.scrollWidth <= table.clientWidth")
        row = table.locator("tbody tr")
        link = row.locator("a.id")
        expect(link).to_have_attribute("href", f"/commands/{command_id}?domain=test")
        row.get_by_role("link", name=f"Audit trail of {command_id[:8]}").click()
        expect(page).to_have_url(re.compile(rf"/audit/{command_id}\?domain=test$"))


def test_without_a_worker_the_dashboard_says_so_and_starts_one(live_page: Page):
    live_page.request.post("/api/v1/commands/bulk", data={"count": 3})
    live_page.goto("/")
    warning = live_page.locator("#counts .alert", has_text="No worker is running")
    expect(warning).to_contain_text("3 commands wait until one does.")
    live_page.locator("summary", has_text="Workers").click()
    live_page.get_by_role("button", name="Start a worker").click()

    expect(live_page.get_by_text("is starting; it appears below")).to_be_visible()
    live_page.goto("/")
    expect(card(live_page, "Completed")).to_contain_text("3", timeout=SOON)
    expect(warning).to_have_count(0)


def test_the_dashboard_warns_of_what_endangers_the_bus(live_page: Page, database_url):
    live_page.goto("/")
    findings = live_page.locator("#database-findings")
    expect(findings).not_to_contain_text("Unlogged tables")

    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("alter table pgmq.q_test__commands set unlogged")
    live_page.reload()

    expect(findings).to_contain_text("Unlogged tables")
    expect(findings).to_contain_text("pgmq.q_test__commands")
    found = Axe().run(live_page)
    assert found.violations_count == 0, found.generate_report()
    findings.get_by_role("link", name="All checks").last.click()
    expect(live_page.locator("#check-unlogged_tables")).to_contain_text("Critical")


@pytest.mark.parametrize("width", [1440, 1024, 360])
def test_a_count_of_eight_digits_stays_in_one_piece(make_live_page: Callable[..., Page], width):
    page = make_live_page((width, 900))
    page.goto("/")
    broken = page.evaluate(
        """() => [...document.querySelectorAll('.stat-number')].filter((number) => {
            number.textContent = '12,345,678';
            const card = number.closest('.stat').getBoundingClientRect();
            const isCut = number.getBoundingClientRect().right > card.right - 4;
            return isCut || number.getClientRects().length > 1;
        }).length"""
    )

    assert broken == 0
    assert page.locator(".stat-number").count() >= 10
