"""Jobs and generations whose process stands still: others see to them, and it notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import TupleRow

from app.actions import jobs
from app.actions.abandoned import AbandonedWork
from app.actions.jobs import JobRunner
from app.models.operator_jobs import get_job
from app.settings.configuration import PROJECT_ROOT
from tests.integration.api.conftest import got
from tests.waiting import eventually_now

COUNT = 600
LEASE_SECONDS = 1.0
MANY = {"filter": {}, "reason": "closed"}

# A web process with a short lease that begins to cancel everything, and stops itself by SIGSTOP in
# its third chunk: where a chunk has been read ("read") or inside its transaction ("acted").
FREEZING = """
import signal, sys, threading
from pathlib import Path
from app import create_app
from app.actions import jobs, troubled

where = sys.argv[1]
app = create_app({"data_dir": Path(sys.argv[2]), "JOB_LEASE_SECONDS": float(sys.argv[3])})
jobs.CHUNK = 40
chunks = 0

def freeze(place):
    global chunks
    chunks += place == where
    if place == where and chunks == 3:
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

def troubled_keys(*arguments):
    found = real_keys(*arguments)
    freeze("read")
    return found

async def act(*arguments):
    await real_act(*arguments)
    freeze("acted")

real_keys, real_act = jobs.troubled_keys, jobs.act
jobs.troubled_keys, jobs.act = troubled_keys, act
troubled.AT_ONCE = 1
begun = app.test_client().post("/api/v1/tsq/bulk-cancel", json={"filter": {}, "reason": "closed"})
assert begun.status_code == 202, begun.text
for thread in threading.enumerate():
    if thread.name.startswith("operator-job-"):
        thread.join()
print(chunks)
app.extensions["portal"].close()
"""


@pytest.fixture
def app(app: Flask) -> Flask:
    """The process that looks after the others."""
    app.config["JOB_LEASE_SECONDS"] = LEASE_SECONDS
    return app


@pytest.fixture
def runner(app: Flask) -> JobRunner:
    with app.app_context():
        return jobs.current_runner()


@pytest.fixture
def in_trouble(client: FlaskClient, run_all: Callable[..., None]) -> int:
    """How many commands are in the troubleshooting queue."""
    behavior = {"type": "fail_permanent"}
    client.post("/api/v1/commands/bulk", json={"count": COUNT, "behavior": behavior})
    run_all("permanent")
    return COUNT


@contextmanager
def web_process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", *arguments],
        cwd=PROJECT_ROOT,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), process.communicate()


@pytest.mark.parametrize("where", ["read", "acted"])
def test_a_job_of_a_frozen_process_is_finished_by_another_and_each_command_handled_once(
    client: FlaskClient,
    runner: JobRunner,
    in_trouble: int,
    conn: psycopg.Connection[TupleRow],
    database_url: str,
    tmp_path: Any,
    where: str,
) -> None:
    arguments = (FREEZING, where, str(tmp_path), str(LEASE_SECONDS))
    with web_process(*arguments, DATABASE_URL=database_url) as frozen:
        wait_until_stopped(frozen)
        [job] = got(client.get("/api/v1/tsq/jobs"))["jobs"]
        assert (job["state"], job["done"]) == ("running", 80)
        portal = runner._portal
        watch = AbandonedWork(portal.pool, runner)
        portal.start("watch", lambda: watch.run(every=0.1), is_endless=True)

        eventually_now(lambda: got(client.get("/api/v1/tsq/jobs"))["jobs"][0]["state"] != "running")

        frozen.send_signal(signal.SIGCONT)
        said, errors = frozen.communicate(timeout=60)
        # It read or began no further chunk, for it lost the job meanwhile.
        assert (frozen.returncode, said.strip()) == (0, "3"), errors

    [job] = got(client.get("/api/v1/tsq/jobs"))["jobs"]
    assert (job["state"], job["done"], job["changed"]) == ("finished", in_trouble, {})
    handled = conn.execute(
        """
        select count(*), count(distinct command_id) from command_bus_audit
        where event_type = 'OPERATOR_CANCEL'
        """
    ).fetchone()
    assert handled == (in_trouble, in_trouble)


def test_a_chunk_that_was_read_before_another_process_went_on_is_not_dealt_with(
    app: Flask,
    client: FlaskClient,
    runner: JobRunner,
    in_trouble: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "CHUNK", 100)
    with monkeypatch.context() as held:
        held.setattr(runner, "start", lambda _: None)
        begun = client.post("/api/v1/tsq/bulk-cancel", json=MANY)
    job_id = UUID(got(begun)["job_id"])
    portal = runner._portal
    with app.app_context():
        before = get_job(job_id)
    assert before is not None
    assert runner._step(portal, job_id)

    # The same runner, so only the place where the job stands tells that this is old.
    goes_on = portal.call(jobs._continue, portal.pool, before, runner.id, [], None, LEASE_SECONDS)

    assert goes_on  # and looks again where the job stands
    with app.app_context():
        after = get_job(job_id)
    assert after is not None
    assert (after.summary.state, after.summary.done) == ("running", 100)


def test_a_process_works_on_a_few_jobs_at_once_and_on_the_others_after_them(
    client: FlaskClient, runner: JobRunner, in_trouble: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST_AT_ONCE", 1)
    with monkeypatch.context() as held:  # or the first may have dealt with all before the third
        held.setattr(runner, "start", lambda _: None)
        begun = [got(client.post("/api/v1/tsq/bulk-cancel", json=MANY)) for _ in range(3)]

    for job in begun:
        runner.start(UUID(job["job_id"]))

    eventually_now(lambda: not runner._running)

    listed = got(client.get("/api/v1/tsq/jobs"))["jobs"]
    assert [job["state"] for job in listed] == ["finished"] * 3
    assert sum(job["done"] for job in listed) == in_trouble


@pytest.mark.parametrize("work", ["jobs", "runs"])
def test_a_look_finds_only_abandoned_work(
    client: FlaskClient,
    runner: JobRunner,
    conn: psycopg.Connection[TupleRow],
    in_trouble: int,
    monkeypatch: pytest.MonkeyPatch,
    work: str,
) -> None:
    watch = AbandonedWork(runner._portal.pool, runner)
    with monkeypatch.context() as held:
        held.setattr(runner, "start", lambda _: None)
        client.post("/api/v1/tsq/bulk-cancel", json=MANY)
    conn.execute("update load_test_run set state = 'generating', generated_at = null")
    states = {
        "jobs": "select state from operator_job",
        "runs": "select state from load_test_run",
    }
    before = {name: conn.execute(query).fetchall() for name, query in states.items()}
    runner.lease_seconds = 60.0

    runner._portal.call(watch.look)

    assert before == {name: conn.execute(query).fetchall() for name, query in states.items()}
    table = {"jobs": "operator_job", "runs": "load_test_run"}[work]
    conn.execute(f"update {table} set heartbeat_at = now() - interval '10 minutes'")
    runner._portal.call(watch.look)
    expected = {"jobs": "finished", "runs": "failed"}[work]
    eventually_now(lambda: conn.execute(states[work]).fetchall() == [(expected,)])
