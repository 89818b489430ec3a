"""The API's page: all that the document says, without a foreign script or style."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Page, expect

from tests.browser.conftest import DESKTOP, PHONE

pytestmark = pytest.mark.browser


def document(page: Page):
    return page.request.get("/api/v1/openapi.json").json()


@pytest.mark.parametrize("scripts", [True, False])
def test_every_operation_is_there_with_its_parameters_and_fields(
    make_live_page: Callable[..., Page], scripts
):
    page = make_live_page(java_script_enabled=scripts)
    page.goto("/api-docs")
    shown = page.locator("[data-endpoint]")
    texts = {
        (endpoint.get_attribute("data-endpoint") or "").split(" ", 2)[1]: endpoint
        for endpoint in shown.all()
    }
    described = document(page)

    assert shown.count() == sum(len(item) for item in described["paths"].values())
    assert texts.keys() == described["paths"].keys()
    for path, item in described["paths"].items():
        for method, operation in item.items():
            details = page.locator(f'[data-endpoint^="{method.upper()} {path} "]')
            text = details.text_content() or ""
            assert operation["summary"] in text
            for parameter in operation.get("parameters", ()):
                assert parameter["name"] in text
            for status in operation["responses"]:
                assert status in text


def test_the_examples_are_right(live_page: Page, live_url: str):
    live_page.goto("/api-docs")
    examples = [
        text.replace("\\\n", " ")
        for text in live_page.locator("[data-endpoint] pre.code").all_text_contents()
        if text.startswith("curl")
    ]
    assert len(examples) > 20
    for example in examples:
        words = shlex.split(example)
        address = next(word for word in words if word.startswith("http"))
        if address.endswith("/workers"):
            continue  # would start a process
        assert address.startswith(live_url)
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
        answer = live_page.request.fetch(address, method=method, data=body)
        # The made-up ids lead nowhere, but nothing is misspelt.
        assert answer.ok or answer.status in (404, 409), (example, answer.status, answer.text())


def test_an_endpoint_opens_by_keyboard_and_is_found_by_its_address(live_page: Page):
    live_page.goto("/api-docs")
    endpoint = live_page.locator("#post-api-v1-commands")
    endpoint.locator("summary").focus()
    live_page.keyboard.press("Enter")
    expect(endpoint.get_by_role("region", name=re.compile("^Body of POST"))).to_be_visible()
    expect(live_page).to_have_url(re.compile("#post-api-v1-commands$"))
    live_page.reload()

    expect(endpoint).to_have_attribute("open", "")
    expect(endpoint.get_by_text("behavior", exact=True).first).to_be_visible()


def test_finding_an_endpoint_leaves_only_what_matches(live_page: Page):
    live_page.goto("/api-docs")
    field = live_page.get_by_role("searchbox", name="Find an endpoint")
    field.fill("tsq cancel")
    expect(live_page.locator("[data-endpoint]:visible")).to_have_count(2)
    expect(live_page.locator("#endpoint-count")).to_contain_text("2 of")
    field.fill("nothing like this")

    expect(live_page.get_by_text("No endpoint matches")).to_be_visible()
    field.fill("")
    expect(live_page.locator("#endpoint-none")).to_be_hidden()


def test_an_example_is_copied(live_page: Page):
    live_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    live_page.goto("/api-docs#get-api-v1-stats")
    live_page.get_by_role("button", name="Copy the example for GET /api/v1/stats").first.click()

    copied = live_page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("curl http://127.0.0.1:")


# Colours depend on the theme alone, and layout on the width.
@pytest.mark.parametrize(
    ("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop-light", "phone-dark"]
)
def test_axe_finds_nothing_and_nothing_scrolls_sideways_with_all_open(
    make_live_page: Callable[..., Page], size, theme
):
    page = make_live_page(size, theme=theme)
    page.goto("/api-docs")
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    results = Axe().run(page)

    assert results.violations_count == 0, results.generate_report()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("document.documentElement.clientWidth")
