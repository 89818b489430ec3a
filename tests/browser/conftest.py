"""Pages in Chromium, served by the application's own server; the CDN as each test wants it."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, render_template
from jinja2 import ChoiceLoader, FileSystemLoader
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Playwright,
    Route,
    expect,
    sync_playwright,
)
from waitress.server import create_server

from app import create_app, models
from app.server import access, assets

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "app" / "static"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = (1440, 900)
PHONE = (360, 740)
# A page of ours on which scripts are allowed, and have not taken over yet.
NOT_READY = "html[data-js]:not([data-ready]):has(head > script[src*='/main.js'])"
# What the browser reports and tests bring about: a blocked CDN, and requests that are refused.
EXPECTED_ERRORS = re.compile("ERR_FAILED|server responded with a status of (401|409|422|429)")


# Long enough for a page that refreshes by itself every 5 seconds, on a machine that is busy.
expect.set_options(timeout=15_000)


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    """Playwright, for as long as tests of this package follow each other.

    Its synchronous form keeps an event loop running, beside which no asynchronous test can run.
    """
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """The system's Chromium where there is one, else the one that Playwright installs.

    The shell without windows takes a third of the time for a page in a context of its own.
    """
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    system = next(filter(None, map(shutil.which, names)), None)
    browser = playwright.chromium.launch(executable_path=system, args=CHROMIUM_FLAGS)
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def vendor() -> dict[str, Path]:
    """The files of the CDN, by the address that pages load them from."""
    return {assets.FLOWBITE.url: STATIC / assets.FLOWBITE.vendor_path}


@pytest.fixture(scope="session")
def foundation_app(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[Flask]:
    """The application with a page that shows every macro once."""
    app = create_app(
        {
            "database_url": shared_database_url,
            "data_dir": tmp_path_factory.mktemp("web"),
            "secret_key": "not a secret",
        }
    )
    assert app.jinja_env.loader is not None
    app.jinja_env.loader = ChoiceLoader(
        [app.jinja_env.loader, FileSystemLoader(HERE / "templates")]
    )
    ticks = iter(range(1_000_000))

    @app.route("/gallery", methods=["GET", "POST"])
    @access.operator
    def gallery():
        return render_template("gallery.html", **_gallery_context(0))

    @app.get("/gallery/rows")
    @access.viewer
    def gallery_rows():
        return render_template("gallery_rows.html", **_gallery_context(next(ticks) + 1))

    yield app
    close_app(app)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Flask], str]]:
    """Serve an application on a free port and give its address, until the tests are over."""
    with ExitStack() as servers:
        yield lambda app: servers.enter_context(served(app))


@pytest.fixture(scope="session")
def base_url(foundation_app: Flask, serve: Callable[[Flask], str]) -> str:
    return serve(foundation_app)


@pytest.fixture
def make_page(
    browser: Browser, base_url: str, vendor: dict[str, Path]
) -> Iterator[Callable[..., Page]]:
    """Make pages of any size; what the browser complains about fails the test."""
    with pages_of(browser, base_url, vendor) as make_page:
        yield make_page


@pytest.fixture
def page(make_page: Callable[..., Page]) -> Page:
    return make_page()


@pytest.fixture
def live_app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """The whole application on a database of its own."""
    app = create_app(
        {"database_url": database_url, "data_dir": tmp_path, "secret_key": "not a secret"}
    )
    yield app
    close_app(app)


@pytest.fixture
def live_url(live_app: Flask) -> Iterator[str]:
    """Where the whole application is served."""
    with served(live_app) as url:
        yield url


@pytest.fixture
def make_live_page(
    browser: Browser, live_url: str, vendor: dict[str, Path]
) -> Iterator[Callable[..., Page]]:
    """The same as make_page, of the whole application."""
    with pages_of(browser, live_url, vendor) as make_page:
        yield make_page


@pytest.fixture
def live_page(make_live_page: Callable[..., Page]) -> Page:
    return make_live_page()


@pytest.fixture
def start_live_worker(database_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start real worker processes on the test's database; options as of `python -m app.worker`."""
    with ExitStack() as workers:

        def start(*options: str) -> subprocess.Popen[bytes]:
            return workers.enter_context(worker_process(database_url, options))

        yield start


@pytest.fixture
def live_worker(
    start_live_worker: Callable[..., subprocess.Popen[bytes]],
) -> subprocess.Popen[bytes]:
    """A real worker process on the test's database, with short delays between attempts."""
    return start_live_worker("--base-delay-ms", "50", "--poll-interval", "0.2")


def close_app(app: Flask) -> None:
    """Give back what *app* holds: connections, its loop, worker processes that it started."""
    with app.app_context():
        models.db.engine.dispose()
    if processes := app.extensions.get("worker_processes"):
        processes.stop(seconds=10)
    app.extensions["portal"].close()


@contextmanager
def worker_process(
    database_url: str, options: tuple[str, ...]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "app.worker", *options],
        cwd=HERE.parent.parent,
        env={**os.environ, "DATABASE_URL": database_url, "LOG_LEVEL": "WARNING"},
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        # A second signal ends a worker that waits for handlers; sent at once, both would be one.
        for seconds in (0.5, 10):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """*app* on a free port; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server: Any = create_server(app, sockets=[listener], threads=8)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()

    def end() -> None:
        for channel in list(server.active_channels.values()):
            channel.handle_close()
        server.close()  # with nothing left to serve, the loop of run() ends

    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.task_dispatcher.shutdown()  # requests under way are answered first
        # By the serving thread itself: a socket closed by another breaks the call that waits on it.
        server.trigger.pull_trigger(end)
        thread.join(10)
        assert not thread.is_alive(), "the web server did not end"


@contextmanager
def pages_of(
    browser: Browser, base_url: str, vendor: dict[str, Path]
) -> Iterator[Callable[..., Page]]:
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def make_page(
        size: tuple[int, int] = DESKTOP,
        *,
        cdn: str = "works",
        theme: str = "system",
        **options: Any,
    ) -> Page:
        context = browser.new_context(
            base_url=base_url, viewport={"width": size[0], "height": size[1]}, **options
        )
        contexts.append(context)
        context.add_cookies([{"name": "theme", "value": theme, "url": base_url}])
        context.route(re.compile(r"^https://"), lambda route: _answer_for_cdn(route, cdn, vendor))
        page = context.new_page()
        # Nothing is clicked or looked at before its scripts are there, after any navigation.
        page.add_locator_handler(page.locator(NOT_READY), lambda: None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "dialog",
            lambda dialog: (
                None  # what a form asks before it is left; the test answers
                if dialog.type == "beforeunload"
                else complaints.append(f"dialog: {dialog.message}")
            ),
        )
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type == "error" and not EXPECTED_ERRORS.search(message.text)
                else None
            ),
        )
        return page

    yield make_page
    for context in contexts:
        context.close()
    assert complaints == []


def _answer_for_cdn(route: Route, cdn: str, vendor: dict[str, Path]) -> None:
    """Nothing ever leaves for the network: the CDN works, is blocked, or never answers."""
    if cdn == "stalls":
        return
    path = vendor.get(route.request.url)
    if cdn == "blocked" or path is None:
        route.abort()
    else:
        headers = {"Access-Control-Allow-Origin": "*"}
        route.fulfill(path=path, content_type="text/javascript", headers=headers)


def _gallery_context(ticks: int) -> dict[str, Any]:
    moments = range(1_800_000_000, 1_800_000_900, 15)
    return {
        "ticks": ticks,
        "now": datetime.now(UTC) - timedelta(seconds=ticks),
        "times": list(moments),
        "series": [
            {
                "label": "Completed",
                "tone": "completed",
                "fill": True,
                "values": [round(240 + 60 * math.sin(i / 7) + 20 * math.sin(i)) for i in range(60)],
            },
            {
                "label": "To the TSQ",
                "tone": "tsq",
                "values": [round(20 + 12 * math.sin(i / 5)) for i in range(60)],
            },
        ],
    }
