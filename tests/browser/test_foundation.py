"""The frame of every page in a real browser, and every macro once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page, expect

from tests.browser.acting import IN_TIME, layout_shift, settled
from tests.browser.conftest import DESKTOP, PHONE

pytestmark = pytest.mark.browser

MakePage = Callable[..., Page]
PAGES = ("/", "/gallery", "/nowhere")


def background(page: Page) -> str:
    color: str = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return color


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("path", ["/", "/gallery"])
def test_axe_finds_no_violation(make_page: MakePage, path, size, theme):
    page = make_page(size, theme=theme)
    page.goto(path)

    results = Axe().run(page)

    assert results.violations_count == 0, results.generate_report()


def test_axe_finds_no_violation_in_dialogs_the_drawer_and_errors(make_page: MakePage):
    page = make_page(PHONE)
    page.goto("/")
    page.get_by_role("button", name="Menu", exact=True).click()
    drawer = Axe().run(page)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    dialog = Axe().run(page)

    assert (drawer.violations_count, dialog.violations_count) == (0, 0), (
        drawer.generate_report() + dialog.generate_report()
    )


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("path", ["/", "/gallery"])
def test_a_page_never_scrolls_sideways(make_page: MakePage, path, size):
    page = make_page(size)
    page.goto(path)

    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("document.documentElement.clientWidth")


def test_the_theme_follows_the_choice_and_is_remembered(make_page: MakePage):
    page = make_page(color_scheme="light")
    page.goto("/")
    light = background(page)
    page.get_by_role("button", name="Dark").click()
    dark = background(page)
    page.reload()
    expect(page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")

    assert background(page) == dark != light
    assert 'data-theme="dark"' in page.request.get("/").text()
    page.get_by_role("button", name="System").click()
    assert background(page) == light


def test_the_theme_is_chosen_without_scripts(make_page: MakePage):
    page = make_page(java_script_enabled=False)
    page.goto("/?status=FAILED")
    page.get_by_role("button", name="Dark").click()

    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page).to_have_url("/?status=FAILED")


@pytest.mark.parametrize("scripts", [True, False])
def test_the_drawer_works_by_keyboard(make_page: MakePage, scripts):
    page = make_page(PHONE, java_script_enabled=scripts)
    page.goto("/")
    link = page.locator("#sidebar").get_by_role("link", name="Send command")
    expect(link).to_be_hidden()

    menu = page.get_by_role("button", name="Menu", exact=True)
    menu.focus()
    page.keyboard.press("Enter")
    expect(link).to_be_visible()
    page.keyboard.press("Escape")

    expect(link).to_be_hidden()
    expect(menu).to_be_focused()


def test_the_first_tab_stop_skips_to_the_content(page: Page):
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")

    expect(page.locator("#main")).to_be_focused()


def test_shortcuts_work_and_stay_out_of_the_way_while_typing(page: Page):
    page.goto("/gallery")
    refused = page.get_by_label("Max attempts")
    expect(refused).to_be_focused()
    refused.blur()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    search = page.get_by_role("searchbox", name="Find a command")
    expect(search).to_be_focused()
    page.keyboard.type("g d r ?")
    expect(search).to_have_value("g d r ?")
    search.blur()
    page.keyboard.press("g")
    page.keyboard.press("d")

    expect(page).to_have_url("/")


@pytest.mark.parametrize("library", ["blocked", "stalls"])
def test_without_the_chart_library_a_chart_is_its_table(page: Page, library):
    page.route("**/vendor/uplot*", lambda route: route.abort() if library == "blocked" else None)
    page.goto("/gallery", wait_until="domcontentloaded", timeout=IN_TIME)
    before = page.locator("#throughput").bounding_box()

    expect(page.locator("#throughput table")).to_be_visible()
    expect(page.locator("#throughput")).to_have_attribute("data-state", "table", timeout=8000)
    assert page.locator("#throughput").bounding_box() == before
    times = page.locator("#throughput time").evaluate_all("all => all.map((each) => each.dateTime)")
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("cdn", ["works", "blocked", "stalls"])
def test_a_term_is_explained_by_mouse_and_keyboard_with_and_without_the_cdn(
    make_page: MakePage, cdn
):
    page = make_page(cdn=cdn)
    page.goto("/gallery", wait_until="domcontentloaded", timeout=IN_TIME)
    button = page.get_by_role("button", name="What a lease means")
    explanation = page.get_by_role("tooltip")
    expect(button).to_have_accessible_description(re.compile("holds a command for the time"))
    if cdn == "works":
        page.wait_for_function("window.Tooltip !== undefined")
        page.wait_for_load_state("load")
        placed = re.compile("top|bottom")
        expect(page.locator("#hint-lease")).to_have_attribute("data-popper-placement", placed)

    button.hover()
    expect(explanation).to_be_visible()
    page.mouse.move(0, 0)
    expect(explanation).to_be_hidden()
    button.focus()
    expect(explanation).to_be_visible()
    assert explanation.evaluate("it => it.getBoundingClientRect().left") >= 0
    assert explanation.evaluate("it => it.getBoundingClientRect().right - innerWidth") <= 0
    if cdn == "works":
        page.keyboard.press("Escape")
        expect(explanation).to_be_hidden()


def test_a_term_is_explained_without_scripts(make_page: MakePage):
    page = make_page(java_script_enabled=False)
    page.goto("/gallery")
    page.get_by_role("button", name="What a lease means").focus()

    expect(page.get_by_role("tooltip")).to_be_visible()


@pytest.mark.parametrize("cdn", ["works", "blocked", "stalls"])
def test_nothing_jumps_while_a_page_loads(make_page: MakePage, cdn):
    page = make_page(cdn=cdn)
    page.goto("/gallery", wait_until="domcontentloaded")
    if cdn != "stalls":
        page.wait_for_load_state("load")
    settled(page)

    assert layout_shift(page) < 0.01


def test_rows_that_come_and_go_leave_the_focus_where_it_is(page: Page):
    page.goto("/gallery")
    page.evaluate(
        """async () => {
            const { morph } = await import('/static/src/morph.js');
            const list = document.createElement('ul');
            const row = (id) => `<li id="${id}"><input value="${id}"></li>`;
            const of = (ids) => ids.map(row).join('');
            list.innerHTML = of(['a', 'b', 'c', 'd']);
            document.querySelector('main').append(list);
            list.querySelector('#c input').focus();
            list.querySelector('#c input').value = 'typed';
            window.blurred = 0;
            list.addEventListener('focusout', () => { window.blurred += 1; });
            for (const ids of [['new', 'a', 'c', 'd'], ['c', 'a'], ['d', 'c', 'x']]) {
                const next = document.createElement('ul');
                next.innerHTML = of(ids);
                morph(list, next);
                window.order = [...list.children].map((row) => row.id).join();
            }
        }"""
    )

    assert page.evaluate("window.order") == "d,c,x"
    assert page.evaluate("window.blurred") == 0
    expect(page.locator("#c input")).to_be_focused()
    expect(page.locator("#c input")).to_have_value("typed")


def test_charts_are_drawn_and_keep_their_table_for_screen_readers(page: Page):
    page.goto("/gallery")

    expect(page.locator("#throughput canvas")).to_be_visible()
    expect(page.get_by_role("cell", name="240").first).to_be_attached()


def test_a_refresh_keeps_selection_focus_and_what_is_open(page: Page):
    page.goto("/gallery")
    row = page.locator("#row-FAILED")
    row.get_by_role("checkbox").check()
    row.get_by_text("More").click()
    row.get_by_role("checkbox").focus()
    ticks = int(row.locator("[data-tick]").inner_text())
    page.wait_for_function(
        "n => Number(document.querySelector('#row-FAILED [data-tick]').textContent) > n", arg=ticks
    )

    expect(row.get_by_role("checkbox")).to_be_checked()
    expect(row.get_by_role("checkbox")).to_be_focused()
    expect(row.locator("details")).to_have_attribute("open", "")
    expect(page.get_by_role("region", name="Selection")).to_contain_text("1 selected")


def test_a_refresh_waits_while_text_is_selected(page: Page):
    page.goto("/gallery")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#row-FAILED'))")
    selected = page.evaluate("getSelection().toString()")
    with page.expect_response("**/gallery/rows"), page.expect_response("**/gallery/rows"):
        pass

    assert page.evaluate("getSelection().toString()") == selected


def test_a_server_that_is_away_is_said_and_its_return_too(page: Page):
    page.goto("/gallery")
    page.route("**/gallery/rows", lambda route: route.abort())
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached", timeout=10_000)
    page.unroute("**/gallery/rows")
    page.get_by_role("button", name="Refresh now").click()

    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_database_that_is_away_is_not_called_the_server(page: Page):
    page.add_init_script(
        "const own = fetch;"
        "window.fetch = (path, options) => String(path).includes('/gallery/rows')"
        " ? Promise.resolve(new Response('', { status: 503 })) : own(path, options);"
    )
    page.goto("/gallery")

    expect(page.get_by_role("alert")).to_contain_text("The database cannot be reached.")


def test_selecting_the_page_offers_everything_that_matches(page: Page):
    page.goto("/gallery")
    page.get_by_role("checkbox", name="Select the page").check()
    bar = page.get_by_role("region", name="Selection")
    expect(bar).to_contain_text("6 selected")
    bar.get_by_role("button", name="Select all 1,234").click()

    expect(bar).to_contain_text("1,234 selected")
    expect(page.locator("[data-select-scope]")).to_have_value("filter")
    bar.get_by_role("button", name="Clear").click()
    expect(bar).to_be_hidden()


def test_json_is_checked_while_typing_and_conditions_hide_fields(page: Page):
    page.goto("/gallery")
    payload = page.get_by_label("Payload")
    payload.fill('{"a": 1')
    expect(page.locator("#payload-error")).to_contain_text("Not valid JSON")
    payload.fill("[1]")
    expect(page.locator("#payload-error")).to_contain_text("must be a JSON object")
    payload.fill("{}")
    expect(page.locator("#payload-error")).to_be_hidden()

    expect(page.get_by_label("Error code", exact=True)).to_be_hidden()
    page.get_by_text("Permanent failure").click()
    expect(page.get_by_label("Error code", exact=True)).to_be_visible()


def test_a_dangerous_action_asks_first(page: Page):
    page.goto("/gallery")
    page.get_by_role("button", name="Cancel all").click()
    dialog = page.get_by_role("dialog", name="Cancel all")
    expect(dialog).to_contain_text("Cancel 12 commands?")
    dialog.get_by_role("button", name="Go back", exact=True).click()
    expect(dialog).to_be_hidden()

    page.get_by_role("button", name="Cancel all").click()
    with page.expect_request(lambda request: request.method == "POST") as sent:
        dialog.get_by_role("button", name="Cancel all").click()
    assert "confirmed=yes" in (sent.value.post_data or "")


def test_times_are_shown_in_the_viewers_zone_with_utc_on_hover(make_page: MakePage):
    page = make_page(timezone_id="Asia/Tokyo", locale="en-GB")
    page.goto("/gallery")
    moment = page.locator("time[data-time=absolute]").first

    expect(moment).to_have_attribute(
        "title", page.evaluate("e => e", moment.get_attribute("title"))
    )
    hour_in_utc = int((moment.get_attribute("datetime") or "")[11:13])
    assert int(moment.inner_text().split(", ")[1][:2]) == (hour_in_utc + 9) % 24


WRITTEN = """() => {
    window.written = [];
    const fill = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
        window.written.push(text);
        return fill.call(this, text, ...rest);
    };
}"""
REDRAW = """({ values, unit, axis }) => {
    const chart = document.getElementById('throughput');
    const times = values.map((_, index) => index);
    const series = [{ label: 'One', tone: 'accent', values }];
    chart.dataset.chartValues = JSON.stringify({ times, series, unit, axis });
    window.written = [];
    document.dispatchEvent(new CustomEvent('live:updated'));
}"""


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([900, 1200, 400], "/s", {"500", "1,000"}),
        ([12_000, 26_000, 24_000], "/s", {"10K", "20K"}),
        ([400, 90_000, 130_000], "ms", {"100 ms", "1 s", "10 s", "1 min", "10 min"}),
        ([40_000, 90_000, 170_000], "ms", {"1 min", "2 min", "3 min"}),
    ],
    ids=["rates", "large rates", "milliseconds and minutes", "minutes"],
)
def test_the_axes_of_a_chart_say_moments_once_and_durations_as_people_do(
    page: Page, values, unit, expected
):
    page.add_init_script(f"({WRITTEN})()")
    page.goto("/gallery")
    expect(page.locator("#throughput[data-state=drawn]")).to_be_visible()
    page.evaluate(REDRAW, {"values": values, "unit": unit, "axis": "elapsed"})
    page.wait_for_function("window.written.length > 0")
    written = page.evaluate("new Promise(requestAnimationFrame).then(() => window.written)")

    assert expected <= set(written), written
    moments = [text for text in written if re.fullmatch(r"\d+:\d\d", text)]
    assert sorted(set(moments)) == ["0:00", "0:01", "0:02"]
    assert len(moments) == len(set(moments)) * (len(written) // len(set(written)))
