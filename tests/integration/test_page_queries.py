"""How many statements each page and each of its parts costs the database."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from app import create_app, web
from app.models import statistics
from tests.applications import close
from tests.integration.api.conftest import client, conn, got, run_all, send
from tests.statements import Recorder, recording

__all__ = ["client", "conn", "run_all", "send"]

MOST_OF_A_PART = 7
# These run in the background, once in a second or a few, however many look.
BACKGROUND = ("command_bus.fold_deltas", "update public.operator_job")
# The row of a run that goes on is read again once the ends of runs are recorded.
ASKED_TWICE = "FROM public.load_test_run WHERE public.load_test_run.run_id ="
TEMPLATES = Path(web.__file__).parent.parent / "templates"


class Cost(NamedTuple):
    """What one answer cost."""

    url: str
    statements: list[str]

    def __str__(self) -> str:
        lines = [f"{len(self.statements):3} {self.url}", *(f"      {s}" for s in self.statements)]
        return "\n".join(line[:160] for line in lines)


@pytest.fixture
def recorder(database_url: str) -> Iterator[Recorder]:
    """It stands between the application and its database."""
    with recording(database_url) as opened:
        yield opened


@pytest.fixture
def app(recorder: Recorder) -> Iterator[Flask]:
    """The application, with a recorder before its database."""
    made = create_app({"database_url": recorder.url, "secret_key": "for tests only"})
    yield made
    close(made)


@pytest.fixture
def pages(
    client: FlaskClient,
    conn: psycopg.Connection[TupleRow],
    send: Callable[..., str],
    run_all: Callable[..., None],
) -> dict[str, list[str]]:
    """Every page with the parts that refresh, while something of everything is there."""
    done = send()
    run_all()
    troubled = [send(), send()]
    run_all("permanent")
    for key in troubled[:1]:
        answer = client.post(f"/api/v1/tsq/{key}/retry?domain=test", json={"operator": "somebody"})
        assert answer.status_code == 200, answer.text
    run_all("permanent")
    ended = got(client.post("/api/v1/commands/bulk", json={"count": 3}))["run_id"]
    run_all()
    running = got(client.post("/api/v1/commands/bulk", json={"count": 20}))["run_id"]
    conn.execute(
        """
        update public.load_test_run
        set state = 'generating', generated_at = null, heartbeat_at = clock_timestamp()
        where run_id = %s
        """,
        (running,),
    )
    held = send()
    conn.execute(
        "select command_bus.claim_commands('test', max(worker_id), 1000, 30, 3)"
        " from public.command_bus_worker"
    )
    pending = send()
    conn.execute("select pgmq.send('test__commands', '{}') from generate_series(1, 3)")
    job = _action(client, troubled[0])
    return {
        "/": [
            "database_findings",
            "dashboard_held",
            "dashboard_counts",
            "dashboard_run",
            "dashboard_activity",
        ],
        "/pauses": ["pauses_list"],
        "/workers": ["workers_list"],
        "/lanes": ["lanes_list"],
        "/load-tests": ["load_test_rows"],
        f"/load-tests/{running}": ["load_test_run"],
        f"/load-tests/{ended}": ["load_test_run"],
        "/commands": ["commands_list"],
        "/commands?status=PENDING": ["commands_list"],
        "/commands?status=IN_TSQ": ["commands_list"],
        f"/commands/{pending}": ["command_head", "command_detail"],
        f"/commands/{held}": ["command_head", "command_detail"],
        f"/commands/{done}": ["command_head", "command_detail"],
        f"/commands/{troubled[1]}": ["command_head", "command_detail"],
        "/troubleshooting": ["tsq_commands"],
        "/troubleshooting?view=groups": ["tsq_groups"],
        "/troubleshooting?view=rejected": ["tsq_rejected"],
        "/troubleshooting?view=actions": ["tsq_actions"],
        job: ["tsq_job"],
        "/settings": ["settings_news", "settings_activity"],
        "/invariants": ["database_checks"],
        "/audit": ["audit_events"],
        f"/audit/{done}": ["audit_trail"],
    }


@pytest.fixture
def ask(client: FlaskClient, recorder: Recorder) -> Callable[[str], Cost]:
    """Asks for an address, and says what the answer cost."""
    client.get("/")
    client.get("/settings")  # both sides have a connection now

    def get(url: str) -> Cost:
        recorder.take()
        answer = client.get(url)
        assert answer.status_code == 200, (url, answer.text)
        statements = [
            statement
            for statement in recorder.take()
            if not any(name in statement for name in BACKGROUND)
        ]
        return Cost(url, statements)

    return get


def test_a_part_of_a_page_costs_no_more_than_it_shows(
    pages: dict[str, list[str]], ask: Callable[[str], Cost], monkeypatch: pytest.MonkeyPatch
) -> None:
    # More messages wait than are counted, as in a load test.
    monkeypatch.setattr(statistics, "DEPTH_LIMIT", 2)

    costs = [ask(_of(page, part)) for page, parts in pages.items() for part in parts]

    dear = [cost for cost in costs if not 1 <= len(cost.statements) <= MOST_OF_A_PART]
    assert not dear, "\n" + "\n".join(map(str, dear))


def test_a_page_costs_no_more_than_its_parts_and_its_filters(
    pages: dict[str, list[str]], ask: Callable[[str], Cost]
) -> None:
    dear = []
    for page, parts in pages.items():
        whole = ask(page)
        # The choices of a filter, and what tabs say, stand on the page alone.
        most = sum(len(ask(_of(page, part)).statements) for part in parts) + 3
        if len(whole.statements) > most and page != "/invariants":  # it checks every row
            dear.append(f"at most {most}: {whole}")
    assert not dear, "\n" + "\n".join(dear)


def test_a_page_asks_for_each_fact_once(
    pages: dict[str, list[str]], ask: Callable[[str], Cost]
) -> None:
    again = []
    for page in pages:
        cost = ask(page)
        times = Counter(cost.statements)
        again += [
            f"{page}: {statement[:200]}"
            for statement, count in times.items()
            if count > 1 and ASKED_TWICE not in statement
        ]
    assert not again, "\n" + "\n".join(again)


def test_every_part_that_refreshes_is_counted(pages: dict[str, list[str]]) -> None:
    texts = [path.read_text() for path in (TEMPLATES / "pages").glob("*.html")]
    named = {
        name
        for text in texts
        for pattern in (r"live_url\(['\"](\w+)['\"]\)", r"partial=['\"](\w+)['\"]")
        for name in re.findall(pattern, text)
    }
    views = {path.stem for path in (TEMPLATES / "partials").glob("tsq_*.html")}

    assert {part for parts in pages.values() for part in parts} == named | views


def _of(page: str, part: str) -> str:
    return f"{page}{'&' if '?' in page else '?'}partial={part}"


def _action(client: FlaskClient, command_id: str) -> str:
    """The address of an operator's action, which the pages have recorded."""
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get("/troubleshooting").text)
    assert token is not None
    form = {
        "csrf_token": token[1],
        "keys": f"test:{command_id}",
        "operator": "somebody",
        "confirmed": "yes",
    }
    assert client.post("/troubleshooting/retry", data=form).status_code == 303
    listed = client.get("/troubleshooting?view=actions").text
    found = re.search(r'href="(/troubleshooting/actions/[^"]+)"', listed)
    assert found is not None
    return found[1]
