"""What a troubled command and its operators can hold is shown as text, word for word; what nobody
would see is written out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest
from playwright.sync_api import Page, expect

from app.models.search_texts import trimmed
from app.visible import visible
from tests.browser.acting import call_me

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

MakePage = Callable[..., Page]

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</textarea><script>alert(1)</script>",
    "</pre><iframe src=javascript:alert(1)></iframe>",
    "<style>*{display:none}</style>",
    "<a href=javascript:alert(1)>click</a>",
    "{{ 7 * 7 }}{% raw %}",
    "${7*7}#{7*7}<%= 7*7 %>",
    "<!-- comment --><![CDATA[ x ]]>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#x3C;img src=x onerror=alert(1)&#x3E;",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input name=csrf_token>",
    "<body onload=alert(1)>",
    "'; drop table command_bus_command; --",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "\u202eright-to-left\u202c and \u200bzero width",
    "\N{PILE OF POO} \N{WOMAN}\u200d\N{PERSONAL COMPUTER} \u0301\u0302\u0303 z\u0351\u036b\u0343",
    "line\nbreak\ttab\rreturn",
    "../../../../etc/passwd",
    "%3Cscript%3Ealert(1)%3C/script%3E %00 %n %s",
    "=cmd|' /C calc'!A0",
    "`backtick` ${alert(1)} \u2028 \u2029",
    "W" * 190,
)
PAGES = (
    "/commands?limit=100",
    "/troubleshooting?limit=100",
    "/troubleshooting?view=groups",
    "/troubleshooting?view=rejected&limit=100",
    "/troubleshooting?view=actions&limit=100",
    "/audit?limit=100&event_type=FAILED",
)


def test_there_are_thirty() -> None:
    assert len(set(HOSTILE)) == 30


@pytest.fixture
def stored(database_url: str) -> list[str]:
    """A command for each hostile string, with it in every field that can hold it; their ids."""
    ids = [str(uuid4()) for _ in HOSTILE]
    with psycopg.connect(database_url, autocommit=True) as conn:
        for command_id, text in zip(ids, HOSTILE, strict=True):
            held = json.dumps({text: [text], "behavior": {"type": text}})
            parts = {"id": command_id, "text": text, "json": held, "operator": text[:60]}
            for statement in _STATEMENTS:
                conn.execute(statement, parts)
    return ids


# As the bus's own functions would leave a command that failed, had they been given such texts.
_STATEMENTS = (
    """
    insert into command_bus_command (
        command_id, created_at, updated_at, started_at, attempts, status, domain, command_type,
        reply_to, data, result, last_error_type, last_error_code, last_error_message, worker_id
    )
    values (
        %(id)s, now(), now(), now(), 1, 'IN_TSQ', 'test', %(text)s, %(text)s, %(json)s, %(json)s,
        %(text)s, %(text)s, %(text)s, 1
    )
    """,
    """
    insert into command_bus_tsq (
        command_id, entered_at, created_at, first_failed_at, last_failed_at, group_id, attempts,
        domain, command_type, error_type, error_code, error_message
    )
    values (
        %(id)s, now(), now(), now(), now(), %(id)s, 1,
        'test', %(text)s, %(text)s, %(text)s, %(text)s
    )
    """,
    """
    insert into command_bus_tsq_group (
        group_id, domain, error_type, error_code, message, in_tsq, entered, first_seen_at,
        last_seen_at
    )
    values (%(id)s, 'test', %(text)s, %(text)s, %(text)s, 1, 1, now(), now())
    """,
    """
    insert into command_bus_audit (
        command_id, created_at, worker_id, attempt, event_type, domain, details
    )
    select %(id)s, now(), 1, 1, event::command_bus.audit_event, 'test', jsonb_build_object(
        'error_type', %(text)s::text, 'error_code', %(text)s::text, 'error_message', %(text)s::text,
        'operator', %(text)s::text, 'reason', %(text)s::text, 'notes', %(text)s::text,
        %(text)s::text, %(text)s::text
    )
    from unnest(array['SENT', 'RECEIVED', 'FAILED', 'MOVED_TO_TSQ', 'OPERATOR_CANCEL']) as event
    """,
    """
    insert into command_bus_rejected (domain, queue, msg_id, reason, message, rejected_at)
    values ('test', %(text)s, 1, %(text)s, %(text)s, now())
    """,
    "insert into test_command (command_id, payload, behavior) values (%(id)s, %(json)s, %(json)s)",
    """
    insert into operator_job (
        job_id, action, operator, arguments, chosen, expected, state, done, undone_at, undone_by,
        changed, skipped
    )
    values (
        %(id)s::uuid, 'cancel', %(operator)s,
        jsonb_build_object('reason', %(text)s::text, 'result', %(text)s::text),
        jsonb_build_array(jsonb_build_array('test', %(id)s::uuid::text)), 1, 'finished', 0, now(),
        %(operator)s, '{"COMPLETED": 1}',
        jsonb_build_array(jsonb_build_object(
            'domain', 'test', 'command_id', %(id)s::uuid::text, 'status', 'COMPLETED'))
    )
    """,
    """
    insert into command_bus_worker (
        domain, host, pid, version, concurrency, started_at, heartbeat_at, heartbeat_seconds
    )
    select 'test', %(text)s, 1, '0', 1, now(), now(), 1
    where not exists (select from command_bus_worker)
    """,
)


def shown(page: Page) -> str:
    """The whole text of the page, opened or not."""
    return str(page.evaluate("document.body.textContent"))


@pytest.mark.parametrize("path", PAGES)
def test_lists_show_them_as_text(make_live_page: MakePage, stored, path):
    page = make_live_page()
    page.goto(path)
    page.evaluate("document.querySelectorAll('main details').forEach((each) => each.open = true)")
    page.get_by_role("button", name="Refresh now").click()
    page.wait_for_load_state("networkidle")

    assert page.locator("iframe, base, main form[action*=evil], main style").count() == 0
    assert page.locator("main script, main img:not([src^='/'])").count() == 0
    text = " ".join(shown(page).split())
    for hostile in HOSTILE[:-1]:
        part = hostile[:60] if "actions" in path else hostile
        if "actions" in path or part == "line\nbreak\ttab\rreturn":
            part = " ".join(part.split())
        assert " ".join(visible(part).split()) in text, (path, hostile)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("document.documentElement.clientWidth")


@pytest.mark.parametrize("where", ["/commands/{}", "/audit/{}", "/troubleshooting/actions/{}"])
def test_single_pages_show_them_as_text(make_live_page: MakePage, stored, where):
    page = make_live_page((360, 740))
    for command_id, hostile in zip(stored, HOSTILE, strict=True):
        page.goto(where.format(command_id), wait_until="domcontentloaded")
        assert page.locator("iframe, base, main style, main script, main img").count() == 0
        words = " ".join(visible(hostile).split())[:55]
        assert words in " ".join(shown(page).split()), hostile
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= page.evaluate("document.documentElement.clientWidth"), hostile


def test_what_one_types_into_filters_and_forms_comes_back_as_text(make_live_page: MakePage, stored):
    page = make_live_page()
    for hostile in HOSTILE:
        line = " ".join(hostile.split())
        page.goto("/commands", wait_until="domcontentloaded")
        page.get_by_label("Search", exact=True).fill(line)
        page.get_by_label("Type", exact=True).fill(line)
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_label("Search", exact=True)).to_have_value(trimmed(line))
    call_me(page, "Ada")
    page.goto("/troubleshooting?limit=100")
    page.locator(f"#tsq-test-{stored[0]}").get_by_role("button", name="Complete…").click()
    page.get_by_label("Result").fill(json.dumps(HOSTILE))
    page.get_by_label("Notes").fill("\n".join(HOSTILE))
    page.get_by_role("button", name="Complete 1 command").click()
    expect(page.get_by_text("1 completed.")).to_be_visible()
    page.goto(f"/commands/{stored[0]}")

    expect(page.get_by_text("Completed manually by Ada")).to_be_visible()
    assert page.locator("main script, main img, iframe, main style").count() == 0
