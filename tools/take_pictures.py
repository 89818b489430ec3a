"""Take the README's pictures from a real run: ``python -m tools.take_pictures``.

Starts the application with two workers on an empty embedded database in a temporary folder, sends
what fills its pages, and photographs four of them in Chromium while it works. Takes about a minute
and needs the packages of requirements-dev.lock and ``make css``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, Playwright, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1360, 850
START_SECONDS = 120.0
SETTLE_SECONDS = 120.0
SHOWN_SECONDS = 1.0  # until a page has drawn what it was told last

ORDERS: tuple[dict[str, Any], ...] = (
    {"type": "fail_permanent", "error_code": "CARD_DECLINED", "error_message": "Card {} refused"},
    {"type": "fail_transient", "error_code": "BANK_AWAY", "error_message": "No answer in {} ms"},
    {"type": "fail_permanent", "error_code": "NO_SUCH_SKU", "error_message": "SKU {} is unknown"},
    {"type": "fail_business", "error_code": "OUT_OF_STOCK", "error_message": "Nothing left"},
    {"type": "fail_transient_then_succeed", "transient_failures": 1},
)


def main() -> int:
    """Take the pictures; 0 when all of them were written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=PICTURES, help="folder for the pictures")
    folder: Path = parser.parse_args().into
    folder.mkdir(parents=True, exist_ok=True)
    with application() as url, sync_playwright() as playwright:
        photographer = Photographer(playwright, url, folder)
        photographer.take_all()
    return 0


@contextmanager
def application() -> Iterator[str]:
    """The application on a free port, with data of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="commandbus-pictures-") as data:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            "DATA_DIR": data,
            "LOCAL_ASSETS": "true",
            "LOG_LEVEL": "ERROR",
        }
        process = subprocess.Popen(
            [sys.executable, "run.py", "--port", str(port), "--workers", "2"],
            cwd=ROOT,
            env=environment,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


class Photographer:
    """A browser in front of one application."""

    def __init__(self, playwright: Playwright, url: str, folder: Path) -> None:
        self._folder = folder
        names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
        self._browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, names)), None),
            args=["--no-sandbox", "--disable-gpu"],
        )
        self._context = self._browser.new_context(
            base_url=url, viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light"
        )
        self._context.add_cookies([{"name": "operator", "value": "Ada", "url": url}])
        self._api = self._context.request

    def take_all(self) -> None:
        """Fill the application, then take one picture after the other."""
        _until(self._is_ready, START_SECONDS, "the application did not start")
        self._put(
            "/api/v1/config",
            {"worker": {"concurrency": 20, "batch_size": 50}, "retry": {"base_delay_ms": 200}},
        )
        command_id = self._send_orders()
        self._order_load(12_000, "Before the new index")
        _until(lambda: self._open() == 0, SETTLE_SECONDS, "the workers did not finish")

        run_id = self._order_load(100_000, "With the new index")
        self._picture("load-test", f"/load-tests/{run_id}", when=lambda: self._ended(run_id) > 0.5)
        self._picture("dashboard", "/", when=lambda: self._ended(run_id) > 0.7)
        _until(lambda: self._open() == 0, SETTLE_SECONDS, "the workers did not finish")
        self._picture("troubleshooting", "/troubleshooting?view=groups")
        self._picture("command", f"/commands/{command_id}")
        self._browser.close()

    def _send_orders(self) -> str:
        """Some orders that go wrong; the id of one that ends in the troubleshooting queue."""
        number, followed = 4711, ""
        for behavior in ORDERS:
            for _ in range(7):
                number += 1
                text = behavior.get("error_message")
                filled = {**behavior, "error_message": text.format(number)} if text else behavior
                answer = self._post(
                    "/api/v1/commands",
                    {"behavior": filled, "payload": {"order": number, "lines": [{"sku": "A-1"}]}},
                )
                if behavior["type"] == "fail_transient":
                    followed = str(answer["command_id"])
        return followed

    def _order_load(self, count: int, name: str) -> str:
        """Generate a load of commands; the id of its run."""
        mix = {"success": 94, "fail_transient_then_succeed": 4, "fail_business": 2}
        answer = self._post(
            "/api/v1/commands/bulk",
            {
                "count": count,
                "name": name,
                "behavior_distribution": mix,
                "delay_ms": 2,
                "operator": "Ada",
            },
        )
        return str(answer["run_id"])

    def _picture(self, name: str, path: str, *, when: Callable[[], bool] = lambda: True) -> None:
        page: Page = self._context.new_page()
        page.goto(path)
        page.reload()  # the page's font is at hand by now; a page does not wait for it
        _until(when, SETTLE_SECONDS, f"it never was the time to take {name}")
        page.wait_for_timeout(SHOWN_SECONDS * 1000)
        page.screenshot(path=self._folder / f"{name}.png")
        page.close()

    def _is_ready(self) -> bool:
        try:
            return self._api.get("/health/ready").ok
        except PlaywrightError:  # nobody listens yet
            return False

    def _ended(self, run_id: str) -> float:
        """The part of a run's commands that has ended."""
        run = self._api.get(f"/api/v1/load-tests/{run_id}").json()
        counts: dict[str, int] = run["counts"]
        open_ = counts.get("PENDING", 0) + counts.get("IN_PROGRESS", 0)
        return (int(run["generated_count"]) - open_) / int(run["count"])

    def _open(self) -> int:
        counts = self._api.get("/api/v1/stats").json()["counts"]
        return int(counts["PENDING"]) + int(counts["IN_PROGRESS"])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._api.post(path, data=body)
        if not answer.ok:
            raise RuntimeError(f"{path}: {answer.status} {answer.text()}")
        return answer.json()

    def _put(self, path: str, body: dict[str, Any]) -> None:
        answer = self._api.put(path, data=body)
        if not answer.ok:
            raise RuntimeError(f"{path}: {answer.status} {answer.text()}")


def _until(holds: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
