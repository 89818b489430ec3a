"""What pages and API say of actions on more commands than are counted in a list."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from app import create_app
from app.models import TroubledFilters, count_troubled, list_groups, list_troubled
from app.models.paging import TOTAL_LIMIT, Window
from app.web.job_texts import commands_text
from tests.applications import close
from tests.conftest import databases
from tests.integration.api.conftest import got
from tests.waiting import eventually_now

MANY = TOTAL_LIMIT + 60
SENT = (
    """
    select count(*) from (
        select jsonb_agg(jsonb_build_object('command_id', gen_random_uuid(),
            'command_type', 'DoIt', 'data', '{}'::jsonb)) as chunk
        from generate_series(1, %(count)s) as n group by n / 1000
    ) as chunks, lateral command_bus.send_commands('test', chunk)"""
    ""
)
FAILED = """
    with claimed as materialized (
        select * from command_bus.claim_commands('test', %(worker)s, %(count)s, 60, 3)
    ),
    ends as (
        select jsonb_agg(jsonb_build_object('command_id', command_id, 'msg_id', msg_id,
            'claim_no', claim_no, 'run_us', 2000, 'kind', 'permanent', 'error_type', 'PERMANENT',
            'error_code', %(code)s::text, 'error_message', 'Card was refused', 'max_attempts',
            max_attempts, 'retry_delay_ms', 0)) as all_of_them
        from claimed
    )
    select command_bus.settle_commands('test', %(worker)s, '[]', all_of_them) from ends"""
WORKER = """
    select command_bus.register_worker('{"domain": "test", "host": "here", "pid": 1,
        "version": "1", "concurrency": 1, "heartbeat_seconds": 60}')"""

Fill = Callable[[int, str], None]


def fill(conn: psycopg.Connection[TupleRow], count: int, code: str) -> None:
    """Bring *count* commands into the troubleshooting queue, by the bus's own functions."""
    [worker] = conn.execute(WORKER).fetchone() or (0,)
    conn.execute(SENT, {"count": count})
    conn.execute(FAILED, {"worker": worker, "count": count, "code": code})


@pytest.fixture(scope="module")
def filled(server_url: str, template_database: str) -> Iterator[tuple[str, str]]:
    """Two databases with MANY commands of one group in the queue, and five of another: one to look
    at, one to act on.
    """
    with databases(server_url) as make:
        url = make(template_database)
        with psycopg.connect(url, autocommit=True) as conn:
            fill(conn, MANY, "REFUSED")
            fill(conn, 5, "OTHER")
        yield url, make(url.partition("?")[0].rsplit("/", 1)[1])


@contextmanager
def opened(url: str) -> Iterator[Flask]:
    app = create_app({"database_url": url, "secret_key": "for tests only"})
    try:
        yield app
    finally:
        close(app)


@pytest.fixture(scope="module")
def app(filled: tuple[str, str]) -> Iterator[Flask]:
    with opened(filled[0]) as made:
        yield made


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def token_of(client: FlaskClient) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/troubleshooting").text)
    assert found is not None
    return found[1]


def ask(client: FlaskClient, action: str, **fields: str) -> str:
    """The form that an action on everything that matches begins with."""
    data = {"csrf_token": token_of(client), "scope": "filter", **fields}
    answer = client.post(f"/troubleshooting/{action}", data=data)
    assert answer.status_code == 200, answer.text
    return unescape(answer.text)


def hidden(form: str) -> dict[str, str]:
    """The hidden fields of the action's form."""
    [body] = re.findall(r"<form[^>]*data-operation-form.*?</form>", form, re.DOTALL)
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', body))


def group_of(app: Flask, code: str) -> str:
    with app.app_context():
        groups, _ = list_groups()
        return str(next(group.group_id for group in groups if group.error_code == code))


@pytest.mark.parametrize("action", ["retry", "cancel", "complete"])
@pytest.mark.parametrize("by", ["group_id", "error_code", "domain", "q", "nothing"])
def test_a_question_names_the_exact_number_of_commands(
    app: Flask, client: FlaskClient, action: str, by: str
) -> None:
    fields, number = {
        "group_id": ({"filter_group_id": group_of(app, "REFUSED")}, MANY),
        "error_code": ({"filter_error_code": "REFUSED"}, MANY),
        "domain": ({"filter_domain": "test"}, MANY + 5),
        "q": ({"filter_q": "card was"}, MANY + 5),
        "nothing": ({}, MANY + 5),
    }[by]

    form = ask(client, action, **fields)

    words = f"{action.capitalize()} {number:,} commands"
    assert f'data-title="{words}"' in form
    assert form.count(words) >= 3  # title, heading, button
    assert "10,000 commands" not in form


@pytest.mark.parametrize(
    ("query", "text", "kind"),
    [
        ("", f"{MANY + 5:,}", "exact"),
        ("?error_code=REFUSED", f"{MANY:,}", "exact"),
        ("?error_code=REFUSED&domain=test", f"{MANY:,}", "exact"),
        ("?error_code=UNKNOWN", "0", "exact"),
        ("?q=card", "more than 10,000", "bound"),
        ("?command_type=DoIt", "more than 10,000", "bound"),
        ("?error_code=OTHER&q=card", "5", "exact"),
    ],
)
def test_the_selection_bar_says_what_is_known(
    client: FlaskClient, query: str, text: str, kind: str
) -> None:
    page = client.get(f"/troubleshooting{query}").text

    assert f'data-select-total-text="{text}" data-select-total-is="{kind}"' in page
    if kind == "bound":
        assert "Select all that match (more than 10,000)" in page
        assert "More than 10,000 commands" in page
        assert "10,000+" not in page


def test_a_groups_total_is_exact_over_the_api(app: Flask, client: FlaskClient) -> None:
    found = got(client.get(f"/api/v1/tsq?group_id={group_of(app, 'REFUSED')}"))

    assert (found["total"], found["total_is_exact"]) == (MANY, True)


def test_a_number_that_cannot_be_counted_in_time_is_a_lower_bound(
    app: Flask, client: FlaskClient
) -> None:
    filters = TroubledFilters(command_type="DoIt")
    with app.app_context():
        listed = list_troubled(filters, Window(10))
        counted = count_troubled(filters)

    assert (listed.total, listed.total_is_exact) == (TOTAL_LIMIT, False)
    assert (counted.count, counted.is_exact) == (MANY + 5, True)
    words = f"all commands that match (more than {TOTAL_LIMIT:,})"
    assert commands_text(TOTAL_LIMIT, is_exact=False) == words


@pytest.mark.parametrize(("action", "field"), [("cancel", "reason"), ("complete", "notes")])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * 2_001, "At most 2,000 characters, not 2,001"),
        ("no\x00thing", "Text must not hold NUL characters or lone surrogates"),
    ],
    ids=["too long", "not storable"],
)
def test_a_text_that_the_api_refuses_is_refused_at_its_field_and_nothing_is_done(
    app: Flask, client: FlaskClient, action: str, field: str, text: str, said: str
) -> None:
    """It was changed silently, where the API refuses it."""
    fields = {**hidden(ask(client, action, filter_error_code="OTHER")), "operator": "Ada"}
    fields["csrf_token"] = token_of(client)
    fields[field] = text

    answer = client.post(f"/troubleshooting/{action}", data=fields)

    assert said in answer.text
    assert got(client.get("/api/v1/tsq?error_code=OTHER"))["total"] == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * 201, "At most 200 characters, not 201."),
        ("no\x00thing", "Text must not hold NUL characters or lone surrogates"),
        ("\x00", "Text must not hold NUL characters or lone surrogates"),
    ],
    ids=["too long", "not storable", "nothing else"],
)
def test_a_filter_that_the_api_refuses_acts_on_no_other_set(
    client: FlaskClient, text: str, said: str
) -> None:
    data = {"csrf_token": token_of(client), "scope": "filter", "filter_q": text}

    answer = client.post("/troubleshooting/cancel", data=data)

    assert answer.status_code == 422
    assert f"A filter cannot be used. {said}" in answer.text


def test_a_job_says_how_many_it_was_meant_for_and_leaves_later_ones_alone(
    filled: tuple[str, str],
) -> None:
    """What came into the queue after the question was asked is no part of the answer."""
    with opened(filled[1]) as app:
        client = app.test_client()
        group = group_of(app, "REFUSED")
        form = ask(client, "cancel", filter_group_id=group)
        with psycopg.connect(filled[1], autocommit=True) as conn:
            fill(conn, 7, "REFUSED")
        fields = {**hidden(form), "reason": "closed", "operator": "Ada"}
        fields["csrf_token"] = token_of(client)

        answer = client.post("/troubleshooting/cancel", data=fields)

        page = answer.headers["Location"]
        job_url = f"/api/v1/tsq/jobs/{page.rsplit('/', 1)[1]}"
        eventually_now(lambda: got(client.get(job_url))["state"] == "finished", seconds=60)
        job = got(client.get(job_url))
        assert (job["expected"], job["expected_is_exact"], job["done"]) == (MANY, True, MANY)
        assert (job["gone"], job["changed"]) == (0, {})
        words = f"Cancel {MANY:,} commands"
        assert words in client.get(page).text
        assert words in client.get("/troubleshooting?view=actions").text
        left = got(client.get(f"/api/v1/tsq?group_id={group}"))
        assert left["total"] == 7


def test_the_depth_of_a_long_queue_is_without_what_is_not_due(filled: tuple[str, str]) -> None:
    with psycopg.connect(filled[1], autocommit=True) as conn:
        conn.execute(SENT, {"count": MANY})
        conn.execute(
            """
            select command_bus.send_commands('test', jsonb_agg(jsonb_build_object('command_id',
                gen_random_uuid(), 'command_type', 'DoIt', 'data', '{}'::jsonb,
                'delay_seconds', 3600)))
            from generate_series(1, 40)
            """
        )
        waiting = conn.execute("select count(*) from command_bus_waiting").fetchone()
        queued = conn.execute("select count(*) from pgmq.q_test__commands").fetchone()
    assert waiting is not None
    assert queued is not None
    assert waiting[0] >= 40
    with opened(filled[1]) as app:
        metrics = got(app.test_client().get("/api/v1/stats"))["metrics"]

    assert metrics["queue_depth"] == queued[0]
