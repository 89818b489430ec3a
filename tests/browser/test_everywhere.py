"""What holds on every page: found in the application, so that a new page is tried as well."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect

from tests.browser import everywhere
from tests.browser.acting import IN_TIME, layout_shift, settled
from tests.browser.conftest import DESKTOP, PHONE, pages_of
from tests.conftest import databases
from tests.programs import free_port

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

MakePage = Callable[..., Page]
ROOT = Path(__file__).resolve().parent.parent.parent
WIDTHS = (360, 640, 768, 1024, 1280, 1440, 2200)
# Elements that Tab reaches, as far as they are shown.
TAB_STOPS = """() => {
    const fields = 'input:not([type=hidden]), select, textarea';
    const wanted = `a[href], button, ${fields}, summary, [tabindex]`;
    const groups = new Set();
    return [...document.querySelectorAll(wanted)].filter((element) => {
        if (element.disabled || element.tabIndex < 0 || !element.checkVisibility()) return false;
        if (element.type === 'radio') {
            if (groups.has(element.name)) return false;
            groups.add(element.name);
        }
        return !element.closest('dialog:not([open])');
    }).map((element) => {
        element.dataset.tabStop = 'waits';
        return element.outerHTML.slice(0, 120);
    });
}"""
# Texts in a column that is hardly wider than a word.
CRAMPED = """() => [...document.querySelectorAll('main *')].filter((element) => {
    const text = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE)
        .map((node) => node.data.trim()).join('');
    if (text === '' || !element.checkVisibility()) return false;
    if (element.closest('.sr-only, .chart-table, svg')) return false;
    const { width, height } = element.getBoundingClientRect();
    return width < 64 && height > 4 * parseFloat(getComputedStyle(element).lineHeight);
}).map((element) => element.outerHTML.slice(0, 120))"""
REACH = """() => {
    const element = document.activeElement;
    if (!element || element === document.body) return 'out';
    const isRing = (style) => style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1;
    const parts = [element, element.parentElement, element.nextElementSibling].filter(Boolean);
    const isShown = parts.some((part) => isRing(getComputedStyle(part)));
    const isRadio = element.type === 'radio';
    const group = isRadio ? document.querySelectorAll(`input[name="${element.name}"]`) : [element];
    for (const each of group) delete each.dataset.tabStop;
    return isShown ? '' : element.outerHTML.slice(0, 120);
}"""


@pytest.fixture(scope="module")
def site(
    browser: Browser,
    server_url: str,
    template_database: str,
    vendor: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[everywhere.Site]:
    """The whole application with data in it; its tests only look, so they share it."""
    with (
        databases(server_url) as make_database,
        everywhere.filled_site(
            make_database(template_database), tmp_path_factory.mktemp("site"), browser, vendor
        ) as filled,
    ):
        yield filled


@pytest.fixture
def paths(site: everywhere.Site) -> list[str]:
    """Every page of the site."""
    assert {"/", "/workers", "/settings", "/invariants", "/api-docs"} <= set(site.paths)
    return site.paths


@pytest.fixture
def make_site_page(
    browser: Browser, site: everywhere.Site, vendor: dict[str, Path]
) -> Iterator[MakePage]:
    """The same as make_live_page, of the site that is shared."""
    with pages_of(browser, site.url, vendor) as make_page:
        yield make_page


# Colours depend on the theme alone, and layout on the width.
@pytest.mark.parametrize(
    ("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop-light", "phone-dark"]
)
def test_axe_finds_no_violation(make_site_page: MakePage, paths, size, theme):
    page = make_site_page(size, theme=theme)
    reports = []
    for path in paths:
        page.goto(path)
        results = Axe().run(page)
        if results.violations_count:
            reports.append(f"{path}\n{results.generate_report()}")

    assert not reports, "\n".join(reports)


def test_axe_finds_no_violation_where_there_is_nothing_yet(
    make_live_page: MakePage, live_app, database_url
):
    page = make_live_page(PHONE)
    reports = []
    for path in everywhere.paths(live_app, database_url):
        page.goto(path)
        results = Axe().run(page)
        if results.violations_count:
            reports.append(f"{path}\n{results.generate_report()}")

    assert not reports, "\n".join(reports)


def test_no_page_scrolls_sideways_at_any_width(make_site_page: MakePage, paths):
    page = make_site_page()
    wide = []
    for path in paths:
        page.goto(path)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            over = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            if over > 0:
                wide.append(f"{path} at {width} px: {over} px too wide")
            wide += [f"{path} at {width} px: cramped {text}" for text in page.evaluate(CRAMPED)]

    assert wide == []


def test_every_control_is_reached_by_keyboard_and_shows_it(make_site_page: MakePage, paths):
    page = make_site_page()
    # Rows that come and go while Tab walks through them would prove nothing.
    page.route("**/*partial=*", lambda route: route.fulfill(status=304))
    missed = []
    for path in paths:
        page.goto(path)
        stops = page.evaluate(TAB_STOPS)
        for _ in range(len(stops) + 20):
            page.keyboard.press("Tab")
            unseen = page.evaluate(REACH)
            if unseen == "out":
                break
            if unseen:
                missed.append(f"{path}: no visible focus on {unseen}")
        left = page.locator("[data-tab-stop]").evaluate_all(
            "elements => elements.map((element) => element.outerHTML.slice(0, 120))"
        )
        missed += [f"{path}: not reached: {each}" for each in left]

    assert missed == []


def test_every_page_has_its_title_landmarks_and_one_heading(make_site_page: MakePage, paths):
    page = make_site_page()
    titles = {}
    for path in paths:
        page.goto(path)
        titles[path] = page.title()
        expect(page.get_by_role("main")).to_have_count(1)
        expect(page.get_by_role("banner")).to_have_count(1)
        expect(page.locator("h1")).to_have_count(1)
        assert page.title().endswith(" · Command Bus"), path

    twice = [path for path, title in titles.items() if list(titles.values()).count(title) > 1]
    assert twice == []


def test_every_page_reads_without_scripts(make_site_page: MakePage, paths):
    scripted, plain = make_site_page(), make_site_page(java_script_enabled=False)
    poorer = []
    for path in paths:
        scripted.goto(path)
        plain.goto(path)
        for name, found in (("headings", "h1, h2, h3"), ("rows", "tbody tr")):
            with_scripts = scripted.locator(f"main :is({found}):visible").count()
            without = plain.locator(f"main :is({found}):visible").count()
            if without < with_scripts:
                poorer.append(f"{path}: {without} {name} of {with_scripts}")
        useless = plain.locator(".needs-js:visible").count()
        if useless:
            poorer.append(f"{path}: {useless} controls that do nothing")

    assert poorer == []


@pytest.mark.parametrize("cdn", ["blocked", "stalls"])
def test_every_page_is_there_at_once_without_the_cdn(make_site_page: MakePage, paths, cdn):
    page = make_site_page(cdn=cdn)
    for path in paths:
        page.goto(path, wait_until="domcontentloaded", timeout=IN_TIME)
        expect(page.locator("h1")).to_be_visible()
        # The modules of our own run: the theme can be chosen.
        expect(page.locator("html")).to_have_attribute("data-js", "")


def test_nothing_jumps_while_a_page_loads(make_site_page: MakePage, paths):
    page = make_site_page()
    shifts = {}
    for path in paths:
        page.goto(path)
        settled(page)
        shift = layout_shift(page)
        if shift > 0.02:
            shifts[path] = shift

    assert shifts == {}


# A server that is restarted under an open page


class Server:
    """`python run.py` as a process of its own, on a port that stays the same."""

    def __init__(self, database_url: str, data_dir: Path) -> None:
        self.port = free_port()
        self._environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "DATA_DIR": str(data_dir),
            "LOG_LEVEL": "WARNING",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "run.py", "--port", str(self.port)],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self._process.poll() is None, "run.py ended"
                assert time.monotonic() < deadline, "run.py does not listen"
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[Server]:
    made = Server(database_url, tmp_path)
    made.start()
    yield made
    made.stop()


def test_an_open_page_outlives_a_restart_of_the_server(browser, server: Server):
    context = browser.new_context(base_url=server.url)
    page = context.new_page()
    page.route("https://**", lambda route: route.abort())
    page.goto("/settings")
    page.get_by_label("Concurrency").fill("11")
    server.stop()
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text("cannot be reached", timeout=30_000)

    server.start()
    page.get_by_role("button", name="Refresh now").click()
    expect(notice).to_be_hidden(timeout=15_000)
    expect(page.get_by_label("Concurrency")).to_have_value("11")
    # The form was made by the process before; its token is still good.
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator("#main")).to_contain_text("Saved as version 2")
    context.close()
