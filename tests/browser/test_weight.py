"""What a page costs over the wire, as the browser counts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from app import create_app
from tests.browser.acting import PERMANENT, count, send_many
from tests.browser.conftest import close_app, served
from tests.waiting import eventually_now

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

MOST_BYTES = 60_000
FAILURES = 100
# Every page, with as many rows as it shows at most.
PATHS = (
    "/commands?limit=100",
    "/troubleshooting?limit=100",
    "/troubleshooting?view=groups",
    "/audit?limit=100",
    "/send",
    "/load-tests",
    "/workers",
    "/settings",
    "/invariants",
    "/api-docs",
    "/",
)
MODULES = """() => {
    const named = [...document.querySelectorAll('link[rel=modulepreload], script[type=module]')]
        .map((element) => element.href || element.src);
    return performance.getEntriesByType('resource')
        .map((entry) => entry.name)
        .filter((name) => /\\/static\\/(src|js)\\/(?!boot)[a-z_]+\\.js/.test(name))
        .filter((name) => !named.includes(name));
}"""


@pytest.fixture
def page(browser: Browser, database_url: str, tmp_path: Path) -> Iterator[Page]:
    """A page whose browser keeps files: routes, as other tests have for the CDN, forbid that."""
    settings = {"database_url": database_url, "data_dir": tmp_path, "secret_key": "not a secret"}
    app = create_app({**settings, "local_assets": True})
    try:
        with served(app) as url:
            context = browser.new_context(base_url=url)
            yield context.new_page()
            context.close()
    finally:
        close_app(app)


def test_a_page_weighs_little_once_the_first_was_there(page: Page, live_worker):
    send_many(page, FAILURES, PERMANENT)
    eventually_now(lambda: count(page, "IN_TSQ") == FAILURES)
    page.goto("/")
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    sizes: list[float] = []
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    weights = {}
    for path in PATHS:
        sizes.clear()
        page.goto(path, wait_until="networkidle")
        weights[path] = sum(sizes)
        assert page.evaluate(MODULES) == [], f"{path} finds modules only by reading others"

    assert {path: size for path, size in weights.items() if size > MOST_BYTES} == {}
    assert all(weights.values())
