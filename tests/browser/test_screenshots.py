"""Pictures of every page for people to look at, in test-results/screenshots."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
from flask import Flask
from playwright.sync_api import Page

from tests.browser import everywhere
from tests.browser.acting import settled

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

FOLDER = Path(__file__).resolve().parent.parent.parent / "test-results" / "screenshots"
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(params=["filled", "empty"])
def paths(
    request, live_app: Flask, make_live_page: Callable[..., Page], start_live_worker, database_url
) -> list[str]:
    """Every page, with data and without."""
    if request.param == "filled":
        start_live_worker("--concurrency", "8", "--poll-interval", "0.2")
        everywhere.fill(make_live_page().request, database_url)
    return everywhere.paths(live_app, database_url)


def test_every_page_is_pictured(request, make_live_page: Callable[..., Page], paths):
    kind = request.node.callspec.params["paths"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    page = make_live_page()
    for path in paths:
        name = _ID.sub("one", path.partition("?")[0]).strip("/").replace("/", "-") or "dashboard"
        page.goto(path)
        for theme, (size_name, (width, height)) in product(THEMES, SIZES.items()):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": height})
            settled(page)
            picture = FOLDER / f"{name}-{kind}-{theme}-{size_name}.png"
            page.screenshot(path=picture, full_page=True)
            assert picture.stat().st_size > 5_000
