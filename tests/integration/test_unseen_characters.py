"""Pages show what would hide in a text or move its neighbours, wherever somebody's text stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import psycopg
from flask.testing import FlaskClient

from tests.integration.api.conftest import app, client, conn, got, run_all, send

__all__ = ["app", "client", "conn", "run_all", "send"]

TEXT = "invoice\u202egpj.exe\u200b\x1b[2J"
SHOWN = "invoice<U+202E>gpj.exe<U+200B><U+001B>[2J"
HIDDEN = re.compile("[\u202e\u200b\x1b]")
VALUES = re.compile(r'(?:value|data-copy)="[^"]*"|<textarea.*?</textarea>', re.DOTALL)


def test_no_page_shows_text_that_hides(
    client: FlaskClient,
    conn: psycopg.Connection[Any],
    send: Callable[..., str],
    run_all: Callable[..., None],
) -> None:
    command_id = send("fail_permanent", payload={TEXT: [TEXT]})
    run_all("permanent", TEXT[:20], TEXT)
    cancelled = send("fail_permanent")
    answer = client.post(
        f"/api/v1/commands/{cancelled}/cancel", json={"reason": TEXT, "operator": TEXT}
    )
    assert answer.status_code == 200
    got(client.post("/api/v1/commands/bulk", json={"count": 1, "operator": TEXT}))
    conn.execute("update load_test_run set name = %s", (TEXT,))
    worker = {
        "domain": "test", "host": TEXT, "pid": 1, "version": TEXT, "concurrency": 1,
        "settings": {"concurrency": {"value": TEXT, "source": "flag"}}, "heartbeat_seconds": 600,
    }  # fmt: skip
    conn.execute("select command_bus.register_worker(%s)", (json.dumps(worker),))
    conn.execute(
        "insert into command_bus_rejected (domain, queue, msg_id, reason, message, rejected_at)"
        " values ('test', 'test__commands', 1, %s, %s, now())",
        (TEXT, TEXT),
    )
    found = conn.execute("select run_id from load_test_run").fetchone()
    assert found is not None
    asked = {"q": TEXT, "command_type": TEXT}

    for path, query, has_text in (
        (f"/commands/{command_id}", {}, True),
        (f"/commands/{cancelled}", {}, True),
        ("/commands", {}, True),
        ("/commands", {"created_from": TEXT}, True),
        ("/troubleshooting", {}, True),
        ("/troubleshooting", asked, False),
        ("/troubleshooting?view=groups", {}, True),
        ("/troubleshooting?view=rejected", {}, True),
        ("/audit", {}, True),
        (f"/audit/{cancelled}", {}, True),
        ("/workers", {}, True),
        ("/settings", {}, True),
        ("/load-tests", {}, True),
        (f"/load-tests/{found[0]}", {}, True),
        ("/", {}, False),
    ):
        page = client.get(path, query_string=query or None).text
        text = VALUES.sub("", page)
        assert HIDDEN.search(text) is None, (path, HIDDEN.search(text))
        if has_text:
            escapes = SHOWN in unescape(page) or "\\u202egpj.exe\\u200b\\u001b[2J" in unescape(page)
            assert escapes or SHOWN[:21] in unescape(page), path

    # What a form sends again stays as it was given.
    page = client.get("/troubleshooting", query_string={"q": TEXT}).text
    assert f'name="filter_q" value="{TEXT}"' in page
