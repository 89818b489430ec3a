"""Load tests in the browser: generated from the page, followed, cancelled, listed and compared."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page, expect

from tests.browser.acting import reload_until
from tests.browser.conftest import DESKTOP, PHONE

pytestmark = pytest.mark.browser

MakePage = Callable[..., Page]
RUN_PAGE = re.compile(r"/load-tests/[0-9a-f-]{36}$")


def generate(page: Page, count: int, **fields: object) -> str:
    """Generate commands through the API; the run's id."""
    answer = page.request.post("/api/v1/commands/bulk", data={"count": count, **fields})
    assert answer.ok, answer.text()
    return str(answer.json()["run_id"])


def ended(page: Page, run_id: str) -> None:
    """Wait until every command of the run has ended."""
    page.goto(f"/load-tests/{run_id}")
    expect(page.locator("#load-test")).to_contain_text("Every command has ended")


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_load_test_is_started_from_the_page_and_followed_to_its_end(
    make_live_page: MakePage, live_worker, scripts, size
):
    page = make_live_page(size, java_script_enabled=scripts)
    page.goto("/send")
    form = page.locator("#load-form")
    form.get_by_role("spinbutton", name="Commands").fill("50")
    form.get_by_role("textbox", name="Name").fill("Fifty <b>bold</b>")
    form.get_by_role("radio", name=re.compile("Mixed")).check()
    form.get_by_role("button", name="Start load test").click()

    expect(page).to_have_url(RUN_PAGE)
    expect(page.get_by_role("heading", level=1)).to_have_text("Fifty <b>bold</b>")
    expect(page.get_by_text("50 commands were sent")).to_be_visible()
    run = page.locator("#load-test")
    if not scripts:
        reload_until(page, "#load-test", "Every command has ended")
    expect(run).to_contain_text("Processed 50 of 50")
    expect(run).to_contain_text("Every command has ended")
    latencies = page.get_by_role("region", name="Latencies in milliseconds")
    expect(latencies.get_by_role("row", name=re.compile("Running"))).to_contain_text("ms")
    page.goto("/load-tests")
    row = page.get_by_role("row", name="Fifty <b>bold</b>")
    expect(row).to_contain_text("Finished")
    expect(row).to_contain_text("Page")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_generation_is_cancelled_after_a_question(make_live_page: MakePage, scripts):
    page = make_live_page(java_script_enabled=scripts)
    page.goto("/send")
    form = page.locator("#load-form")
    form.get_by_role("spinbutton", name="Commands").fill("1000000")
    form.get_by_role("button", name="Start load test").click()

    expect(page.get_by_role("progressbar", name="Generated")).to_be_visible()
    expect(page.locator("#load-test")).to_contain_text("Commands are being generated")
    page.get_by_role("button", name="Stop generating").click()
    question = page.get_by_role("dialog") if scripts else page.get_by_role("main")
    question.get_by_role("button", name="Stop generating").click()

    expect(page.get_by_text("Generating stops.")).to_be_visible()
    if not scripts:
        reload_until(page, "#load-test .badge", "Cancelled")
    expect(page.locator("#load-test .badge").first).to_have_text("Cancelled")
    expect(page.get_by_role("button", name="Stop generating")).to_have_count(0)
    counts = page.request.get("/api/v1/stats").json()["counts"]
    assert 0 < counts["PENDING"] < 1_000_000


def test_a_choice_outlives_a_refresh_and_two_runs_are_compared(
    live_page: Page, start_live_worker, live_app
):
    first, second = (generate(live_page, 20, name=name) for name in ("Before", "After"))
    live_page.goto("/load-tests")
    live_page.get_by_role("checkbox", name=re.compile("Before")).check()
    start_live_worker("--poll-interval", "0.2")
    expect(live_page.get_by_role("row", name=re.compile("Before"))).to_contain_text("Finished")
    expect(live_page.get_by_role("row", name=re.compile("After"))).to_contain_text("Finished")
    expect(live_page.get_by_role("checkbox", name=re.compile("Before"))).to_be_checked()
    live_page.get_by_role("checkbox", name=re.compile("After")).check()
    live_page.get_by_role("button", name="Compare").click()

    expect(live_page.get_by_role("heading", level=1)).to_have_text("Before vs After")
    figures = live_page.get_by_role("region", name="Figures of both runs")
    throughput = figures.get_by_role("row", name=re.compile("Throughput"))
    expect(throughput).to_contain_text(re.compile("Better|Worse|Same"))
    expect(figures.get_by_role("columnheader", name=re.compile("Before"))).to_be_visible()
    expect(
        live_page.get_by_text("The recorded settings and versions are the same.")
    ).to_be_visible()
    for theme_size in (DESKTOP, PHONE):
        live_page.set_viewport_size({"width": theme_size[0], "height": theme_size[1]})
        found = Axe().run(live_page)
        assert found.violations_count == 0, found.generate_report()
    assert first != second


def test_one_run_alone_is_not_compared(live_page: Page, live_worker):
    run_id = generate(live_page, 1)
    ended(live_page, run_id)
    live_page.goto("/load-tests")
    live_page.get_by_role("checkbox").check()
    live_page.get_by_role("button", name="Compare").click()

    expect(live_page.get_by_text("Select exactly two runs.")).to_be_visible()


def test_the_dashboard_leads_to_the_run_that_is_under_way(live_page: Page):
    run_id = generate(live_page, 30, name="On its way")
    live_page.goto("/")

    section = live_page.locator("#run")
    expect(section).to_contain_text("On its way")
    expect(section).to_contain_text("0 of 30")
    section.get_by_role("link", name="Follow the run").click()

    expect(live_page).to_have_url(re.compile(f"/load-tests/{run_id}$"))
    expect(live_page.locator("#load-test")).to_contain_text("they wait for workers")


def test_a_count_leads_to_the_commands_that_it_counts(live_page: Page, live_worker):
    shares = {"success": 75, "fail_permanent": 25}
    run_id = generate(live_page, 8, behavior_distribution=shares, name="Eight")
    generate(live_page, 4, behavior_distribution=shares, name="Four")
    ended(live_page, run_id)

    live_page.get_by_role("link", name=re.compile("^In TSQ 2")).click()

    expect(live_page.locator("tr[id^=command-]")).to_have_count(2)
    live_page.go_back()
    live_page.get_by_role("link", name=re.compile("^Completed 6")).click()
    expect(live_page.locator("tr[id^=command-]")).to_have_count(6)
    live_page.get_by_role("combobox", name="Status").select_option("In TSQ")
    live_page.get_by_role("button", name="Apply").click()
    expect(live_page.locator("tr[id^=command-]")).to_have_count(2)
    live_page.get_by_role("link", name="Eight").click()
    expect(live_page).to_have_url(RUN_PAGE)


def test_a_run_of_a_moment_is_drawn_as_a_point(live_page: Page, live_worker):
    ended(live_page, generate(live_page, 1))

    chart = live_page.locator("#run-latency")
    expect(chart).to_have_attribute("data-state", "drawn")
    coloured = """chart => {
        const canvas = chart.querySelector('canvas');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length; i += 4) {
            const rgb = data.slice(i, i + 3);
            if (data[i + 3] > 200 && Math.max(...rgb) - Math.min(...rgb) > 80) return true;
        }
        return false;
    }"""
    live_page.wait_for_function(f"({coloured})(document.querySelector('#run-latency'))")


def test_without_runs_the_page_says_how_to_start_one(live_page: Page):
    live_page.goto("/load-tests")

    expect(live_page.get_by_text("No load tests stored")).to_be_visible()
    live_page.get_by_role("main").get_by_role("link", name="Start a load test").first.click()
    expect(live_page.locator("#load-form")).to_be_in_viewport()


@pytest.mark.parametrize(
    "path", ["/load-tests/7", "/load-tests/01a1fc82-ca21-74dd-bd32-ab262c74e3b8"]
)
def test_an_unknown_run_is_not_found(live_page: Page, path):
    answer = live_page.request.get(path)
    assert answer.status == 404
