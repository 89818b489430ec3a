"""The page of the settings, with somebody else who changes them too."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Dialog, Page, expect

from app.web.formats import NOTHING
from tests.browser.conftest import PHONE
from tests.waiting import eventually_now

pytestmark = pytest.mark.browser

SOON = 15_000


def config(page: Page) -> dict[str, Any]:
    values: dict[str, Any] = page.request.get("/api/v1/config").json()
    return values


def somebody_saves(page: Page, name: str = "Grace", **sections: dict[str, float]) -> None:
    answer = page.request.put("/api/v1/config", data={**sections, "operator": name})
    assert answer.status == 200, answer.text()


def delays(page: Page) -> list[str]:
    return page.locator("#delays tbody tr td:nth-child(2)").all_inner_texts()


def save(page: Page) -> None:
    page.get_by_role("button", name="Save settings").click()


@pytest.mark.parametrize("scripts", [True, False])
def test_what_is_saved_is_stored_and_remembered_with_its_author(
    make_live_page: Callable[..., Page], live_url: str, scripts
):
    page = make_live_page(java_script_enabled=scripts)
    page.context.add_cookies([{"name": "operator", "value": "Ada", "url": live_url}])
    page.goto("/settings")
    page.get_by_label("Concurrency").fill("7")
    page.get_by_label("Poll interval").fill("0.25")
    save(page)

    expect(page.locator("#main")).to_contain_text("Saved as version 2")
    stored = config(page)
    assert (stored["worker"]["concurrency"], stored["worker"]["poll_interval"]) == (7, 0.25)
    entry = page.locator("#version-2")
    expect(entry).to_contain_text("Ada")
    expect(entry).to_contain_text(re.compile(r"Concurrency 4 →\s*7"))
    expect(entry).to_contain_text(re.compile(r"Poll interval 1 →\s*0.25 seconds"))


def test_a_running_worker_follows_except_where_its_flag_says_otherwise(
    live_page: Page, start_live_worker
):
    start_live_worker("--concurrency", "3")
    live_page.goto("/settings")
    override = live_page.get_by_role("listitem").filter(has_text="by --concurrency")
    expect(override).to_contain_text("Concurrency 3", timeout=SOON)
    live_page.get_by_label("Concurrency").fill("9")
    live_page.get_by_label("Batch size").fill("20")
    save(live_page)

    def settings() -> Any:
        [worker] = live_page.request.get("/api/v1/workers").json()["workers"]
        return worker["settings"]

    for _ in range(40):
        if settings()["batch_size"]["value"] == 20:
            break
        live_page.wait_for_timeout(250)
    assert settings()["batch_size"] == {"value": 20, "source": "stored"}
    assert settings()["concurrency"] == {"value": 3, "source": "flag"}


def test_the_delays_follow_while_one_types(live_page: Page):
    live_page.goto("/settings")
    assert delays(live_page) == ["1.00 s", "2.00 s"]
    live_page.get_by_label("Max attempts").fill("5")
    live_page.get_by_label("Backoff multiplier").fill("3")
    live_page.get_by_label("Max delay").fill("20000")

    expect(live_page.locator("#delays")).to_contain_text(
        "After attempt 5 it goes to the troubleshooting"
    )
    expect(live_page.locator("#delays tbody tr").nth(3)).to_contain_text("20.0 s")
    assert delays(live_page) == ["1.00 s", "3.00 s", "9.00 s", "20.0 s"]
    expect(
        live_page.get_by_text("3 changes not saved").and_(live_page.locator("[data-unsaved]"))
    ).to_be_visible()
    live_page.get_by_label("Max attempts").fill("100")
    expect(live_page.locator("#delays")).to_contain_text("90 more delays")


def test_a_value_out_of_range_is_told_while_typing_and_not_sent(live_page: Page):
    live_page.goto("/settings")
    field = live_page.get_by_label("Visibility timeout")
    field.fill("0")
    expect(live_page.locator("#visibility_timeout-error")).to_contain_text("from 1 to 43200")
    save(live_page)

    expect(field).to_be_focused()
    assert config(live_page)["version"] == 1
    field.fill("45")
    expect(live_page.locator("#visibility_timeout-error")).to_be_hidden()
    save(live_page)
    expect(live_page.locator("#main")).to_contain_text("Saved as version 2")


def test_the_server_refuses_too_and_keeps_what_was_typed(make_live_page: Callable[..., Page]):
    page = make_live_page(java_script_enabled=False)
    page.goto("/settings")
    page.get_by_label("Concurrency").fill("0")
    page.get_by_label("Batch size").fill("33")
    save(page)

    expect(page.locator("#main")).to_contain_text("Nothing was saved")
    expect(page.locator("#concurrency-error")).to_have_text("Must be at least 1")
    expect(page.get_by_label("Concurrency")).to_have_value("0")
    expect(page.get_by_label("Batch size")).to_have_value("33")
    assert config(page)["version"] == 1


@pytest.mark.parametrize("scripts", [True, False])
def test_when_two_save_both_values_are_shown_and_nothing_is_lost(
    make_live_page: Callable[..., Page], scripts
):
    page = make_live_page(java_script_enabled=scripts)
    page.goto("/settings")
    somebody_saves(page, worker={"concurrency": 16, "batch_size": 50})
    page.get_by_label("Concurrency").fill("8")
    page.get_by_label("Max delay").fill("30000")
    save(page)

    conflict = page.locator("#conflict")
    expect(conflict).to_contain_text("Grace saved while you were typing")
    row = conflict.get_by_role("row").filter(has_text="Concurrency")
    assert row.get_by_role("cell").all_inner_texts() == ["4", "16", "8"]
    row = conflict.get_by_role("row").filter(has_text="Batch size")
    assert row.get_by_role("cell").all_inner_texts() == ["10", "50", NOTHING]
    assert config(page)["worker"]["concurrency"] == 16  # nothing was stored yet
    expect(page.get_by_label("Concurrency")).to_have_value("8")
    expect(page.get_by_label("Batch size")).to_have_value("50")
    expect(page.get_by_label("Max delay")).to_have_value("30000")

    save(page)
    expect(page.locator("#main")).to_contain_text("Saved as version 3")
    stored = config(page)
    assert (stored["worker"]["concurrency"], stored["worker"]["batch_size"]) == (8, 50)
    assert stored["retry"]["max_delay_ms"] == 30_000


def test_one_is_told_at_once_that_somebody_saved_and_keeps_what_one_typed(live_page: Page):
    live_page.goto("/settings")
    field = live_page.get_by_label("Concurrency")
    field.press_sequentially("2")
    somebody_saves(live_page, "Grace", retry={"max_attempts": 9})

    news = live_page.locator("#settings-news").get_by_text("Grace saved version 2 since")
    expect(news).to_be_visible(timeout=SOON)
    expect(field).to_have_value("24")
    expect(field).to_be_focused()
    expect(live_page.locator("#version-2")).to_contain_text("Grace")
    live_page.once("dialog", lambda dialog: dialog.accept())  # the typed value would be lost
    live_page.get_by_role("link", name="Show theirs").click()
    expect(live_page.get_by_label("Max attempts")).to_have_value("9")


@pytest.mark.parametrize("scripts", [True, False])
def test_the_defaults_come_back_after_a_question(make_live_page: Callable[..., Page], scripts):
    page = make_live_page(java_script_enabled=scripts)
    page.goto("/settings")
    expect(page.get_by_role("button", name="Restore defaults")).to_have_count(0)
    somebody_saves(page, worker={"concurrency": 16})
    page.goto("/settings")
    page.get_by_role("button", name="Restore defaults").click()
    question = page.get_by_role("dialog") if scripts else page.locator("#main")
    expect(question).to_contain_text("This changes Concurrency from 16 to 4.")
    question.get_by_role("button", name="Restore defaults").click()

    expect(page.locator("#main")).to_contain_text("Defaults restored as version 3")
    assert config(page)["worker"]["concurrency"] == 4


def test_saving_nothing_makes_no_version(make_live_page: Callable[..., Page]):
    page = make_live_page(java_script_enabled=False)
    page.goto("/settings")
    save(page)

    expect(page.locator("#main")).to_contain_text("No changes to save")
    assert config(page)["version"] == 1


def test_the_bar_is_there_only_with_changes_and_each_change_is_marked(live_page: Page):
    live_page.goto("/settings")
    button = live_page.get_by_role("button", name="Save settings")
    field = live_page.get_by_label("Concurrency")
    expect(button).to_be_hidden()
    field.fill("7")

    expect(button).to_be_visible()
    expect(live_page.get_by_text("stored: 4")).to_be_visible()
    expect(
        live_page.get_by_text("1 change not saved").and_(live_page.locator("[data-unsaved]"))
    ).to_be_visible()
    field.fill("4")
    expect(button).to_be_hidden()
    expect(live_page.get_by_text("stored: 4")).to_have_count(0)


def test_leaving_with_changes_asks_first_and_discarding_does_not(live_page: Page):
    questions: list[str] = []

    def stay(dialog: Dialog) -> None:
        questions.append(dialog.type)
        dialog.dismiss()

    live_page.on("dialog", stay)
    live_page.goto("/settings")
    live_page.get_by_label("Concurrency").fill("7")
    live_page.get_by_role("link", name="Workers", exact=True).click()

    eventually_now(lambda: questions == ["beforeunload"])
    expect(live_page.get_by_label("Concurrency")).to_have_value("7")
    live_page.get_by_role("link", name="Discard").click()
    expect(live_page.get_by_label("Concurrency")).to_have_value("4")
    live_page.get_by_role("link", name="Workers", exact=True).click()
    expect(live_page.get_by_role("heading", level=1)).to_have_text("Workers")
    assert questions == ["beforeunload"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation_in_refusals_and_conflicts(
    make_live_page: Callable[..., Page], live_worker, theme
):
    page = make_live_page(PHONE, theme=theme)
    page.goto("/settings")
    somebody_saves(page, worker={"concurrency": 16})
    page.get_by_label("Concurrency").fill("8")
    save(page)
    expect(page.locator("#conflict")).to_be_visible()
    page.get_by_label("Batch size").fill("0")
    expect(page.get_by_text("by --poll-interval")).to_be_visible(timeout=SOON)
    results = Axe().run(page)

    assert results.violations_count == 0, results.generate_report()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("document.documentElement.clientWidth")
