"""The page of the workers, with real worker processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from flask import Flask
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE
from tests.waiting import eventually_now

pytestmark = pytest.mark.browser

SOON = 15_000


@pytest.fixture
def conn(database_url):
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def register(conn: psycopg.Connection[Any], host: str = "elsewhere", **columns: Any) -> int:
    """A worker that sends no heartbeat of its own."""
    worker = {
        "domain": "test",
        "host": host,
        "pid": 4242,
        "version": "1",
        "concurrency": 4,
        "heartbeat_seconds": 1,
    }
    row = conn.execute("select command_bus.register_worker(%s)", (json.dumps(worker),)).fetchone()
    assert row is not None
    for name, value in columns.items():
        conn.execute(
            f"update command_bus_worker set {name} = {value} where worker_id = %s",
            row,
        )
    return int(row[0])


def send(page: Page, **behavior: Any) -> str:
    answer = page.request.post("/api/v1/commands", data={"behavior": behavior})
    assert answer.status == 201, answer.text()
    command_id: str = answer.json()["command_id"]
    return command_id


def test_without_a_worker_the_page_says_what_to_do(live_page: Page):
    live_page.goto("/workers")

    expect(live_page.get_by_role("heading", name="No worker is running")).to_be_visible()
    expect(live_page.get_by_role("button", name="Start a worker")).to_be_visible()
    expect(live_page.get_by_role("button", name="Stop all")).to_have_count(0)


def test_a_real_worker_shows_by_itself_with_what_it_runs(live_page: Page, start_live_worker):
    live_page.goto("/workers")
    process = start_live_worker("--concurrency", "3")
    command_id = send(live_page, type="success", execution_time_ms=20_000)

    row = live_page.get_by_role("listitem").filter(has_text=f"pid {process.pid}")
    expect(row).to_contain_text("Alive", timeout=SOON)
    expect(row).to_contain_text("1 of 3 busy", timeout=SOON)
    expect(row).to_contain_text("concurrency 3 (flag)")
    link = row.get_by_role("link", name=re.compile(command_id[:8]))
    expect(link).to_have_attribute("href", re.compile(f"/commands/{command_id}"))


def test_a_worker_is_started_and_stopped_from_the_page(live_page: Page):
    live_page.goto("/workers")
    live_page.get_by_label("Concurrency").fill("2")
    live_page.get_by_role("button", name="Start worker", exact=True).click()
    expect(live_page.get_by_text("is starting; it appears below")).to_be_visible()
    row = live_page.locator("li[id^=worker-]")
    expect(row).to_contain_text("0 of 2 busy", timeout=SOON)

    row.get_by_role("button", name="Stop w-1").click()
    dialog = live_page.get_by_role("dialog", name="Stop worker")
    expect(dialog).to_contain_text("ran nothing at its last heartbeat and stops soon")
    dialog.get_by_role("button", name="Stop worker").click()
    expect(live_page.get_by_text("w-1 was asked to stop")).to_be_visible()

    live_page.get_by_text("Stopped and gone").click(timeout=SOON)
    past = live_page.locator("#past-1")
    expect(past).to_contain_text("Stopped", timeout=SOON)
    expect(past).to_contain_text("web")


def test_a_worker_that_is_told_to_stop_finishes_what_it_runs(live_page: Page, live_worker):
    live_page.goto("/workers")
    command_id = send(live_page, type="success", execution_time_ms=8_000)
    row = live_page.locator("#worker-1")
    expect(row).to_contain_text("1 of 4 busy", timeout=SOON)
    live_page.get_by_role("button", name="Stop all").click()
    dialog = live_page.get_by_role("dialog", name="Stop all")
    expect(dialog).to_contain_text("finishes 1 running command and stops")
    dialog.get_by_role("button", name="Stop all").click()

    expect(row).to_contain_text("Stopping")
    expect(row.get_by_role("button", name="Stop w-1")).to_have_count(0)
    expect(live_page.locator("#past-workers")).to_be_visible(timeout=SOON)
    done = live_page.request.get(f"/api/v1/commands/{command_id}").json()
    assert done["status"] == "COMPLETED"


def test_all_of_it_works_without_scripts(make_live_page: Callable[..., Page], live_url: str):
    page = make_live_page(java_script_enabled=False)
    page.context.add_cookies([{"name": "operator", "value": "Ada", "url": live_url}])
    page.goto("/workers")
    page.get_by_role("button", name="Start a worker").click()
    stop = page.get_by_role("button", name="Stop w-1")

    def appeared() -> int:
        page.goto("/workers")
        return stop.count()

    eventually_now(appeared, every=0.25, message="workers that can be stopped")
    stop.click()
    expect(page.get_by_role("heading", name="Stop w-1")).to_be_visible()
    page.get_by_role("button", name="Stop worker").click()

    expect(page).to_have_url(re.compile("/workers$"))
    expect(page.locator("#main")).to_contain_text("w-1 was asked to stop")
    expect(page.locator("#main")).to_contain_text("Ada")


def test_the_age_of_the_heartbeat_decides(live_page: Page, conn):
    register(conn, "prompt", heartbeat_at="clock_timestamp() + interval '1 second'")
    register(conn, "dull", heartbeat_at="clock_timestamp() - interval '5 seconds'")
    register(conn, "silent", heartbeat_at="clock_timestamp() - interval '1 minute'")
    conn.execute("update command_bus_worker set heartbeat_seconds = 1.5")
    live_page.goto("/workers")

    expect(live_page.locator("#worker-1")).to_contain_text("Alive")
    expect(live_page.locator("#worker-2")).to_contain_text("Late")
    expect(live_page.get_by_text("w-3 on silent stopped responding")).to_be_visible()
    live_page.get_by_text("Stopped and gone").click()
    expect(live_page.locator("#past-3")).to_contain_text("Gone")


def test_rows_keep_their_place_and_details_stay_open(live_page: Page, start_live_worker):
    start_live_worker("--concurrency", "8")
    live_page.goto("/workers")
    for _ in range(8):
        send(live_page, type="success", execution_time_ms=30_000)
    more = live_page.get_by_text("5 more")
    more.click(timeout=SOON)
    with live_page.expect_response(re.compile("partial=workers_list")):
        pass

    expect(live_page.locator("#running-1")).to_have_attribute("open", "")


def test_a_process_that_ends_with_an_error_is_not_passed_over(live_page: Page, live_app: Flask):
    live_page.goto("/workers")  # which makes the processes
    live_app.extensions["worker_processes"].start(flags={"concurrency": 0})

    told = live_page.get_by_text("ended with exit code 2; it is not replaced")
    expect(told).to_be_visible(timeout=SOON)


def test_a_worker_from_the_page_that_is_killed_is_replaced(live_page: Page, live_app: Flask):
    live_page.goto("/workers")
    live_page.get_by_role("button", name="Start a worker").click()
    expect(live_page.locator("#worker-1")).to_contain_text("Alive", timeout=SOON)
    [pid] = live_app.extensions["worker_processes"].pids
    os.kill(pid, signal.SIGKILL)

    expect(live_page.locator("#worker-2")).to_contain_text("Alive", timeout=SOON)
    told = live_page.get_by_text("Its process ended (SIGKILL); w-2 replaces it")
    expect(told).to_be_visible(timeout=SOON)
    live_page.get_by_text("Stopped and gone").click()
    expect(live_page.locator("#past-1")).to_contain_text("SIGKILL; w-2 took its place")


def test_a_concurrency_that_no_worker_takes_is_refused(make_live_page: Callable[..., Page]):
    page = make_live_page(java_script_enabled=False)
    page.goto("/workers")
    page.get_by_label("Concurrency").evaluate("field => field.removeAttribute('max')")
    page.get_by_label("Concurrency").fill("5000")
    page.get_by_role("button", name="Start worker", exact=True).click()

    expect(page.locator("#main")).to_contain_text("Concurrency: Must be at most 1,000.")
    expect(page.get_by_role("heading", name="No worker is running")).to_be_visible()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "0.0.0.0"}, "listens on 0.0.0.0"),
        ({"start_workers": False}, "START_WORKERS=false"),
    ],
)
def test_where_others_reach_the_server_it_starts_nothing(
    live_page: Page, live_app: Flask, change, says
):
    settings = dataclasses.replace(live_app.config["SETTINGS"], **change)
    live_app.config["SETTINGS"] = settings
    live_page.goto("/workers")

    expect(live_page.locator("#start")).to_contain_text(says)
    expect(live_page.get_by_role("button", name=re.compile("^Start"))).to_have_count(0)
    assert live_page.request.post("/api/v1/workers", data={}).status == 403
    token = live_page.locator("meta[name=csrf-token]").get_attribute("content")
    refused = live_page.request.post("/workers/start", form={"csrf_token": token or ""})
    assert refused.status == 403


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation_with_workers_in_every_state(
    make_live_page: Callable[..., Page], conn, live_worker, theme
):
    page = make_live_page(PHONE, theme=theme)
    register(conn, "late", heartbeat_at="clock_timestamp() - interval '5 seconds'")
    register(conn, "gone", heartbeat_at="clock_timestamp() - interval '1 minute'")
    conn.execute("update command_bus_worker set heartbeat_seconds = 1.5")
    page.goto("/workers")
    page.get_by_text("Stopped and gone").click()
    send(page, type="success", execution_time_ms=10_000)
    expect(page.get_by_text("1 of 4 busy")).to_be_visible(timeout=SOON)
    results = Axe().run(page)

    assert results.violations_count == 0, results.generate_report()
