"""Whatever people and programs store is shown as text, on every page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from playwright.sync_api import Page, expect

from tests.browser import everywhere
from tests.browser.conftest import PHONE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<style>*{display:none}</style>",
    "<b style='position:fixed;inset:0'>over</b>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<base href='https://example.com/'>",
    "<meta http-equiv=refresh content='0;url=https://example.com'>",
    "<form action='https://example.com'><button>go</button></form>",
    "<!-- --><details open ontoggle=alert(1)>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %}{{ config }}",
    "${alert(1)} #{alert(1)} <%= 7 * 7 %>",
    "'; drop table command_bus_command; --",
    "%s %(x)s %n {0} {x!r}",
    "../../../../etc/passwd%00",
    "=cmd|' /C calc'!A0",
    "\u202etxt.exe \u2066left\u2069 \u200bzero\u200dwidth",
    "Z\u0351\u0363a\u0329\u0325l\u0334\u0321g\u0321\u0322o\u0354",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "line\nbreak\ttab\r\nand more",
    "W" * 190,
    "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#x3C;",
)
assert len(HOSTILE) == 30
# What holds any text gets three of them at once, so that fewer pages show them all.
TOGETHER = ["\n".join(HOSTILE[start : start + 3]) for start in range(0, len(HOSTILE), 3)]

# Markup that came from the strings, and the innermost parts that make the page scroll sideways.
WHAT_IS_WRONG = """() => {
    const shown = (element) => element.outerHTML.slice(0, 160);
    const foreign = [...document.querySelectorAll(
        `script:not([src]), iframe, base, style, math, [onerror], [onload], [onfocus],
        [onmouseover], [style], form[action^=https], a[href^='javascript:'], meta[http-equiv]`
    )].filter((element) => !element.closest('.chart-plot, [role=tooltip]'));
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return foreign.map(shown);
    const isOver = (element) => element.getBoundingClientRect().right > width + 0.5;
    const over = [...document.querySelectorAll('main *')].filter((element) => isOver(element)
        && ![...element.children].some(isOver) && !element.closest('.table-scroll'));
    return [...foreign, ...over.slice(0, 3)].map(shown);
}"""


def store(page: Page, database_url: str) -> list[str]:
    """Each string in every field that somebody can fill: by the API where it takes it, else by
    hand, as a worker or another program could. Gives the ids of commands that hold them all."""
    for text in HOSTILE:
        _send(page, text)
        operator = " ".join(text.split())[:80]
        changed = page.request.put(
            "/api/v1/config",
            data={"worker": {"batch_size": HOSTILE.index(text) + 20}, "operator": operator},
        )
        assert changed.ok, (text, changed.text())
        generated = page.request.post(
            "/api/v1/commands/bulk", data={"count": 1, "name": "hostile", "operator": operator}
        )
        assert generated.ok, (text, generated.text())
    shown = [_send(page, text) for text in TOGETHER]
    with psycopg.connect(database_url, autocommit=True) as conn:
        runs = conn.execute("select run_id from load_test_run order by run_id").fetchall()
        for text, (run_id,) in zip([*TOGETHER, *HOSTILE[10:]], runs, strict=True):
            conn.execute(
                "update load_test_run set name = %s where run_id = %s", (text[:200], run_id)
            )
        for text in HOSTILE:
            _add_worker(conn, text)
            conn.execute(
                "insert into command_bus_rejected"
                " (domain, queue, msg_id, reason, message, rejected_at)"
                " values ('test', 'test__commands', 1, %s, %s, clock_timestamp())",
                (text, text),
            )
            conn.execute(
                "select command_bus.send_commands('test', %s)",
                (json.dumps([_command(text)]),),
            )
        for text in TOGETHER:
            command = _command(text)
            conn.execute("select command_bus.send_commands('test', %s)", (json.dumps([command]),))
            shown.append(command["command_id"])
    return shown


def _send(page: Page, text: str) -> str:
    behavior = {"type": "fail_permanent", "error_code": text[:80], "error_message": text}
    sent = page.request.post(
        "/api/v1/commands", data={"behavior": behavior, "payload": {text: [text]}}
    )
    assert sent.ok, (text, sent.text())
    return str(sent.json()["command_id"])


def _add_worker(conn: psycopg.Connection[Any], text: str) -> None:
    worker = {
        "domain": "test",
        "host": text,
        "pid": 1,
        "version": text,
        "concurrency": 2,
        "settings": {"concurrency": {"value": text, "source": "flag"}},
        "heartbeat_seconds": 3600,
    }
    row = conn.execute("select command_bus.register_worker(%s)", (json.dumps(worker),)).fetchone()
    assert row is not None
    running = [{"command_id": text, "command_type": text, "attempt": 1, "seconds": 1.5}]
    conn.execute(
        "update command_bus_worker set running = %s, running_count = 1, stop_requested_by = %s"
        " where worker_id = %s",
        (json.dumps(running), text, row[0]),
    )


def _command(text: str) -> dict[str, Any]:
    return {
        "command_id": str(uuid4()),
        "command_type": text[:200],
        "data": {text: text},
    }


@pytest.mark.parametrize("scripts", [True, False])
def test_hostile_strings_stay_text(
    make_live_page: Callable[..., Page], live_app: Flask, live_worker, database_url, scripts
):
    page = make_live_page(PHONE, java_script_enabled=scripts)
    ids = store(page, database_url)
    for _ in range(200):
        counts = page.request.get("/api/v1/stats").json()["counts"]
        if counts["IN_TSQ"] >= 2 * len(HOSTILE + tuple(TOGETHER)):
            break
        page.wait_for_timeout(100)
    places = everywhere.paths(live_app, database_url)
    with psycopg.connect(database_url) as conn:
        runs = [
            str(row[0])
            for row in conn.execute("select run_id from load_test_run order by run_id limit 10")
        ]
    places += [f"/commands/{each}" for each in ids] + [f"/audit/{each}" for each in ids[::3]]
    places += [f"/load-tests/{each}" for each in runs]

    # A dialog, a refused script or style, or an error of our own modules fails the test by itself.
    wrong = {}
    for path in places:
        page.goto(path)
        expect(page.locator("h1")).to_be_visible()
        if found := page.evaluate(WHAT_IS_WRONG):
            wrong[path] = found

    assert wrong == {}


def test_hostile_text_is_there_to_read(make_live_page: Callable[..., Page], database_url):
    page = make_live_page()
    store(page, database_url)
    page.goto("/settings")
    expect(page.locator("#settings-activity")).to_contain_text("&lt;script&gt;alert(1)")
    page.goto("/workers")
    expect(page.locator("#workers")).to_contain_text("<img src=x onerror=alert(1)>")
