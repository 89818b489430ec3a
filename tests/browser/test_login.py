"""Signing in with a browser: what a viewer and an operator see and can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from flask import Flask
from playwright.sync_api import Page, expect

from app import create_app
from app.server import access
from app.server.access import Role
from tests.browser import everywhere
from tests.browser.conftest import close_app
from tests.browser.test_screenshots import FOLDER, SIZES
from tests.credentials import OPERATOR, PASSWORDS, VIEWER, bearer, credentials_file, remove

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

MakePage = Callable[..., Page]
# Where each control that is not switched off would lead if it were pressed.
TARGETS = """() => {
    const controls = [...document.querySelectorAll('main a[href], button:enabled')];
    return controls.flatMap((element) => {
        if (element.matches('a')) return [['GET', element.href]];
        const form = element.form;
        if (!form || element.type !== 'submit') return [];
        const target = element.hasAttribute('formaction') ? element.formAction : form.action;
        return [[(element.formMethod || form.method).toUpperCase(), target]];
    });
}"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return credentials_file(tmp_path)


@pytest.fixture
def live_app(database_url: str, tmp_path: Path, users: Path) -> Iterator[Flask]:
    """The whole application, for a viewer and an operator."""
    app = create_app(
        {
            "database_url": database_url,
            "data_dir": tmp_path / "data",
            "secret_key": "not a secret",
            "credentials_file": users,
            "sign_in_failures_per_minute": 3,
        }
    )
    yield app
    close_app(app)


def sign_in(page: Page, name: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORDS[name])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text("Sign in")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "plain"])
def test_an_operator_signs_in_acts_and_signs_out(make_live_page: MakePage, scripts):
    page = make_live_page(java_script_enabled=scripts)
    page.goto("/send?from=a-link")
    assert urlsplit(page.url).path == "/login"
    page.get_by_label("Name").fill(OPERATOR)
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("main")).to_contain_text("do not belong together")
    expect(page.get_by_label("Name")).to_have_value(OPERATOR)
    expect(page.get_by_label("Password")).to_have_value("")

    sign_in(page, OPERATOR)
    assert page.url.endswith("/send?from=a-link")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("main")).to_contain_text("was sent")
    expect(page.locator("#viewer-note")).to_have_count(0)

    sidebar = page.locator("#sidebar")
    expect(sidebar).to_contain_text(OPERATOR)
    expect(sidebar.get_by_role("button", name="Sign out")).to_be_in_viewport(ratio=1)
    sidebar.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("main")).to_contain_text("You are signed out.")
    page.goto("/commands")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_viewer_sees_everything_and_is_offered_nothing_that_is_not_theirs(
    make_live_page: MakePage, live_app, live_worker, database_url
):
    page = make_live_page()
    page.goto("/login")
    context = page.context
    sign_in(page, VIEWER)
    filling = make_live_page(extra_http_headers=bearer(OPERATOR))
    everywhere.fill(filling.request, database_url)
    paths = everywhere.paths(live_app, database_url, headers=bearer(VIEWER))
    assert {"/", "/commands", "/troubleshooting", "/workers", "/settings"} <= set(paths)

    offered = []
    for path in paths:
        page.goto(path)
        expect(page.locator("#viewer-note")).to_contain_text("signed in as a viewer")
        offered += _offered_to_operators(live_app, page)
    assert offered == []
    filling.goto("/troubleshooting")
    assert len(_offered_to_operators(live_app, filling)) > 20
    page.goto("/workers")
    stop = page.get_by_role("button", name="Stop all")
    expect(stop).to_be_disabled()
    assert stop.get_attribute("title") == access.OPERATORS_ONLY
    # Who asks all the same is told why not.
    refused = context.request.post("/api/v1/commands/quick", data={})
    assert (refused.status, refused.json()["code"]) == (403, "operators_only")

    reports = []
    for theme in ("light", "dark"):
        context.add_cookies([{"name": "theme", "value": theme, "url": page.url}])
        for size_name, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            for path in ("/", "/troubleshooting", "/workers", "/send"):
                page.goto(path)
                reports += _violations(page)
                _picture(page, f"viewer-{path.strip('/') or 'dashboard'}-{theme}-{size_name}")
    assert not reports, "\n".join(reports)


def _offered_to_operators(app: Flask, page: Page) -> list[str]:
    """What the page offers that only an operator may do."""
    return [
        f"{page.url}: {method} {url}"
        for method, url in page.evaluate(TARGETS)
        if _required(app, method, url) is Role.OPERATOR
    ]


def _required(app: Flask, method: str, url: str) -> Role | None:
    parts = urlsplit(url)
    adapter = app.url_map.bind(parts.netloc)
    if not adapter.test(parts.path, method):
        return None  # elsewhere, or without a page
    endpoint, _ = adapter.match(parts.path, method)
    return access.required_role(app, endpoint)


def test_an_open_page_says_that_its_session_is_over(make_live_page: MakePage, users):
    page = make_live_page()
    page.goto("/login")
    sign_in(page, VIEWER)
    page.goto("/workers")
    expect(page.locator("#live")).to_be_visible()
    remove(users, VIEWER)

    page.get_by_role("button", name="Refresh now").click()
    expect(page.get_by_role("alert")).to_contain_text("Reload the page to sign in again.")


def test_nothing_is_shown_again_after_signing_out(make_live_page: MakePage):
    page = make_live_page()
    page.goto("/login")
    sign_in(page, VIEWER)
    page.goto("/commands")
    page.locator("#sidebar").get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.go_back()

    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_login_is_for_everybody_and_is_pictured(make_live_page: MakePage, size, theme):
    page = make_live_page(SIZES[size], theme=theme)
    page.goto("/login")
    expect(page.get_by_label("Name")).to_be_focused()
    _examine(page, f"login-empty-{theme}-{size}")

    told = {1: "do not belong together", 4: "Too many failed attempts"}
    for attempt in range(1, 5):
        page.get_by_label("Name").fill(VIEWER)
        page.get_by_label("Password").fill("not the password")
        page.get_by_role("button", name="Sign in").click()
        if attempt in told:
            expect(page.get_by_role("main")).to_contain_text(told[attempt])
            expect(page.get_by_label("Password")).to_be_focused()
            _examine(page, f"login-refused-{attempt}-{theme}-{size}")


def _examine(page: Page, name: str) -> None:
    assert not _violations(page)
    over = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert over <= 0
    _picture(page, name)


def _violations(page: Page) -> list[str]:
    """What axe finds, for people to read."""
    results = Axe().run(page)
    return [f"{page.url}\n{results.generate_report()}"] if results.violations_count else []


def _picture(page: Page, name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=True)
