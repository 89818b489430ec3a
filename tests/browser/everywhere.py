"""Every page there is, found in the application itself, and data that fills them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from flask import Flask
from playwright.sync_api import APIRequestContext, Browser

from app import create_app
from tests.browser.conftest import close_app, pages_of, served, worker_process

# Addresses with these parts are visited with an id that exists; others with parts are no pages.
_KNOWN_PARTS = ("command_id", "run_id")
SETTLED_SECONDS = 30.0

BEHAVIORS: tuple[dict[str, Any], ...] = (
    {"type": "success", "execution_time_ms": 20},
    {"type": "success"},
    {"type": "fail_permanent", "error_code": "CARD_DECLINED", "error_message": "Card 4711 refused"},
    {"type": "fail_permanent", "error_code": "CARD_DECLINED", "error_message": "Card 4712 refused"},
    {"type": "fail_transient", "error_code": "BANK_AWAY", "error_message": "No answer in 5 s"},
    {"type": "fail_transient_then_succeed", "transient_failures": 1},
    {"type": "fail_business", "error_code": "OUT_OF_STOCK", "error_message": "Nothing left"},
)


@dataclass(frozen=True, slots=True)
class Site:
    """The whole application with data in it: its address, and that of every page."""

    url: str
    paths: list[str]


@contextmanager
def filled_site(
    database_url: str, folder: Path, browser: Browser, vendor: dict[str, Path]
) -> Iterator[Site]:
    """Serve the application on *database_url*, with a worker, and fill it."""
    app = create_app({"database_url": database_url, "data_dir": folder, "secret_key": "no secret"})
    try:
        with (
            served(app) as url,
            worker_process(database_url, ("--base-delay-ms", "50", "--poll-interval", "0.2")),
        ):
            with pages_of(browser, url, vendor) as make_page:
                fill(make_page().request, database_url)
            yield Site(url, paths(app, database_url))
    finally:
        close_app(app)


def fill(request: APIRequestContext, database_url: str) -> None:
    """Commands of every kind, processed by the workers that run; settings that somebody changed."""
    for number, behavior in enumerate(BEHAVIORS):
        answer = request.post(
            "/api/v1/commands",
            data={"behavior": behavior, "payload": {"order": number, "lines": [{"sku": "A-1"}]}},
        )
        assert answer.ok, answer.text()
    mix = {"success": 90, "fail_permanent": 10}
    for name in ("Before", "After"):
        run = request.post(
            "/api/v1/commands/bulk",
            data={"count": 20, "name": name, "behavior_distribution": mix},
        )
        assert run.ok, run.text()
    changed = request.put(
        "/api/v1/config", data={"retry": {"base_delay_ms": 500}, "operator": "Ada Lovelace"}
    )
    assert changed.ok, changed.text()
    deadline = time.monotonic() + SETTLED_SECONDS
    while _open_commands(request):
        assert time.monotonic() < deadline, "the workers did not finish"
        time.sleep(0.1)
    # One goes on for as long as anybody looks.
    running = {"type": "success", "execution_time_ms": 600_000}
    assert request.post("/api/v1/commands", data={"behavior": running}).ok
    with psycopg.connect(database_url, autocommit=True) as conn:
        for host, age in (("warehouse-2", "5 seconds"), ("warehouse-3", "10 minutes")):
            _add_worker(conn, host, age)


def paths(app: Flask, database_url: str, *, headers: Mapping[str, str] | None = None) -> list[str]:
    """The address of every page, those of single things with one that exists."""
    with psycopg.connect(database_url) as conn:
        row = conn.execute(
            "select command_id, batch_id from command_bus_command where status = 'IN_TSQ'"
            " order by batch_id nulls last limit 1"
        ).fetchone()
        runs = [
            str(run_id) for (run_id,) in conn.execute("select run_id from load_test_run limit 2")
        ]
    parts = dict(zip(_KNOWN_PARTS, row or (None, None), strict=True))
    found = [*_addresses(app, parts), f"/load-tests/compare?{urlencode({'run': runs}, True)}"]
    client = app.test_client()
    return [path for path in found if _is_page(client.get(path, headers=headers))]


def _addresses(app: Flask, parts: dict[str, Any]) -> Iterator[str]:
    for rule in app.url_map.iter_rules():
        if not rule.endpoint.startswith("web.") or "GET" not in (rule.methods or ()):
            continue
        if rule.arguments <= parts.keys() and all(parts[name] for name in rule.arguments):
            built = rule.build({name: parts[name] for name in rule.arguments})
            if built is not None:
                yield built[1]


def _is_page(response: Any) -> bool:
    return response.status_code == 200 and b'id="main"' in response.data


def _open_commands(request: APIRequestContext) -> int:
    counts = request.get("/api/v1/stats").json()["counts"]
    return int(counts["PENDING"] + counts["IN_PROGRESS"])


def _add_worker(conn: psycopg.Connection[Any], host: str, age: str) -> None:
    worker = {
        "domain": "test",
        "host": host,
        "pid": 314,
        "version": "1",
        "concurrency": 8,
        "settings": {"concurrency": {"value": 8, "source": "environment"}},
        "heartbeat_seconds": 1,
    }
    row = conn.execute("select command_bus.register_worker(%s)", (json.dumps(worker),)).fetchone()
    assert row is not None
    conn.execute(
        "update command_bus_worker set heartbeat_at = clock_timestamp() - %s::interval"
        " where worker_id = %s",
        (age, row[0]),
    )
