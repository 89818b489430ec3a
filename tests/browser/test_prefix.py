"""The application below a path of another site, behind a proxy, with a browser."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from flask import Flask
from playwright.sync_api import Page, expect

from app import create_app
from app.web.navigation import GROUPS
from tests.browser.conftest import close_app, served
from tests.browser.test_login import sign_in
from tests.credentials import OPERATOR, credentials_file

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

PREFIX = "/bus"


@pytest.fixture
def live_app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """The whole application, which believes what the proxy says."""
    app = create_app(
        {
            "database_url": database_url,
            "data_dir": tmp_path / "data",
            "secret_key": "not a secret",
            "credentials_file": credentials_file(tmp_path),
            "trusted_proxies": ("127.0.0.1",),
        }
    )
    yield app
    close_app(app)


class Forwarding(BaseHTTPRequestHandler):
    """Passes on what lies below the prefix; nothing else is there."""

    protocol_version = "HTTP/1.1"
    backend = ""
    strayed: list[str]

    def do_GET(self) -> None:
        if not self.path.startswith(f"{PREFIX}/"):
            self.strayed.append(self.path)
            self.send_error(404)
            return
        connection = http.client.HTTPConnection(self.backend, timeout=60)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {**self.headers, "X-Forwarded-Prefix": PREFIX, "Connection": "close"}
        connection.request(self.command, self.path.removeprefix(PREFIX), body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name not in ("Connection", "Content-Length"):
                self.send_header(name, value)
        if answer.status != 304:
            self.send_header("Content-Length", str(len(content)))
        with suppress(ConnectionError):  # the browser went on to another page
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_: object) -> None:
        """The test looks at what strayed."""


@pytest.fixture
def strayed() -> list[str]:
    """What was asked for beside the prefix."""
    return []


@pytest.fixture
def live_url(live_app: Flask, strayed: list[str]) -> Iterator[str]:
    """Where the proxy serves the application."""
    with served(live_app) as url:
        attributes = {"backend": urlsplit(url).netloc, "strayed": strayed}
        handler = type("Handler", (Forwarding,), attributes)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
            thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
            proxy.shutdown()
            thread.join()


def test_everything_works_below_the_path_that_the_proxy_takes_away(
    make_live_page: Callable[..., Page], strayed: list[str]
) -> None:
    page = make_live_page()
    failed: list[str] = []
    page.on(
        "response",
        lambda answer: (
            failed.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
        ),
    )
    page.goto(f"{PREFIX}/commands?status=IN_TSQ")
    assert urlsplit(page.url).path == f"{PREFIX}/login"
    sign_in(page, OPERATOR)
    assert page.url.endswith(f"{PREFIX}/commands?status=IN_TSQ")

    for _, items in GROUPS:
        for item in items:
            page.get_by_role("link", name=item.label, exact=True).first.click()
            page.wait_for_url(f"**{PREFIX}{item.path}")
            expect(page.locator("html[data-ready]")).to_be_attached()
    page.get_by_role("button", name="Dark").click()
    page.keyboard.press("g")
    page.keyboard.press("d")
    page.wait_for_url(f"**{PREFIX}/")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    with page.expect_response("**partial=*"):
        page.get_by_role("button", name="Refresh now").click()
    page.goto(f"{PREFIX}/send")
    page.get_by_role("button", name="Send", exact=True).click()
    page.locator(f"main a[href^='{PREFIX}/commands/']").first.click()
    page.wait_for_url(f"**{PREFIX}/commands/*")
    page.get_by_role("search").get_by_role("searchbox").fill("nothing like it")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{PREFIX}/commands?q=*")

    paths = {(c["name"], c["path"]) for c in page.context.cookies() if c["name"] != "theme"}
    assert paths == {("commandbus_session", PREFIX)}
    assert ("theme", PREFIX) in {(c["name"], c["path"]) for c in page.context.cookies()}
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"**{PREFIX}/login")
    assert (failed, strayed) == ([], [])
