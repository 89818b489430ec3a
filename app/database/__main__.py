"""`python -m app.database`: look at, prepare and stop the database of the application."""

from __future__ import annotations

from app.settings.signals import end_at_interrupts
from app.settings.streams import run_program, set_up_streams

if __name__ == "__main__":
    end_at_interrupts()
    set_up_streams()

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.database.errors import DatabaseError
from app.database.opening import embedded_server, ensure_database
from app.database.urls import without_password
from app.database.waiting import open_patiently
from app.settings.configuration import ConfigurationError, LogFormat, Settings
from app.settings.logs import configure_logging
from app.visible import terminal_line
from commandbus.migrating import (
    connect,
    examine,
    find_obstacles,
    install_pgmq,
    installed_pgmq,
    migration_lock,
    refuse_obstacles,
    validate,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 where it did what it says, else 1 and one line on stderr."""
    options = _parser().parse_args(arguments)
    configure_logging(LogFormat.TEXT, "WARNING")
    run: Callable[[Settings, argparse.Namespace], int] = options.run
    try:
        return run(Settings.from_env(), options)
    except (ConfigurationError, DatabaseError) as exc:
        print(f"error: {terminal_line(exc)}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.database",
        description="The database is the one of DATABASE_URL (environment or .env); without it the"
        " embedded server under DATA_DIR, which is started where a command needs it and stopped"
        " again when no one else uses it. Only migrate leaves it running, for status, url and what"
        " is done with that, until stop or until the last program that used it has ended.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("migrate", _migrate, "Create the database if missing, install PGMQ, apply migrations/.")
    add("status", _status, "Show the server, PGMQ and how each migration stands; starts nothing.")
    add("validate", _validate, "Succeed only if the database is exactly what migrations/ says.")
    add("url", _url, "Print the URI for psql and other tools, password included; starts nothing.")
    add("install-pgmq", _install_pgmq, "Only create the database if missing and install PGMQ.")
    add("recount", _recount, "Set counters and lists right, where somebody truncated them.")
    delete = add(
        "delete-domain",
        _delete_domain,
        "Delete a domain with its queues; refused while work is open. What has ended stays.",
    )
    delete.add_argument("name", metavar="NAME", help="the domain")
    delete.add_argument("--with-replies", action="store_true", help="also delete unread replies")
    stop = add("stop", _stop, "Stop the embedded server, unless another process uses it.")
    stop.add_argument("--force", action="store_true", help="stop it under its users, too")
    return parser


def _migrate(settings: Settings, _: argparse.Namespace) -> int:
    with open_patiently(settings, on_step=print) as database:
        done = database.preparation
        if not done.applied:
            print("Migrations are up to date")
        print(f"Ready: {database}")
        if database.is_embedded:
            print("The embedded server keeps running; `python -m app.database stop` ends it")
        database.leave_running()
    return 0


def _status(settings: Settings, _: argparse.Namespace) -> int:
    url = _running_url(settings)
    if url is None:
        return 0
    with connect(url) as conn:
        print(f"PostgreSQL {conn.info.server_version // 10000}: {without_password(url)}")
        print(f"PGMQ: {installed_pgmq(conn) or 'not installed'}")
        comparison = examine(conn)
        for standing in comparison.standings:
            when = f"{standing.installed_on:%Y-%m-%d %H:%M:%S}" if standing.installed_on else ""
            print(
                f"  {standing.version or 'R':<6} {standing.description:<40}"
                f" {standing.state:<15} {when}".rstrip()
            )
        obstacles = find_obstacles(conn)
    for text in obstacles:
        print(f"Not usable: {text}")
    comparison.refuse_problems()
    return 1 if obstacles else 0


def _validate(settings: Settings, _: argparse.Namespace) -> int:
    with _url_in_use(settings) as url, connect(url) as conn:
        refuse_obstacles(conn)
        validate(conn)
    print("The database is what migrations/ says")
    return 0


def _url(settings: Settings, _: argparse.Namespace) -> int:
    if settings.database_url is not None:
        print(settings.database_url)
        return 0
    server = embedded_server(settings)
    print(server.url())
    if server.running() is None:
        print(
            "The embedded server is not running now; `python -m app.database migrate` starts it",
            file=sys.stderr,
        )
    return 0


def _install_pgmq(settings: Settings, _: argparse.Namespace) -> int:
    with _url_in_use(settings) as url:
        if ensure_database(url):
            print("Created the database")
        with connect(url) as conn, migration_lock(conn):
            pgmq = install_pgmq(conn)
    print(f"Installed PGMQ {pgmq.version} by {pgmq.source}" if pgmq else "PGMQ was there already")
    return 0


def _recount(settings: Settings, _: argparse.Namespace) -> int:
    with _url_in_use(settings) as url, connect(url) as conn:
        corrected = conn.execute("select * from command_bus.recount()").fetchall()
    for what, subject, detail in corrected:
        print(f"Corrected: {what}: {subject}: {detail}")
    if not corrected:
        print("Everything was right")
    return 0


def _delete_domain(settings: Settings, options: argparse.Namespace) -> int:
    with _url_in_use(settings) as url, connect(url) as conn:
        conn.execute(
            "select command_bus.delete_domain(%s, %s)", (options.name, options.with_replies)
        )
    print(f"Deleted the domain {options.name} with its queues; what has ended in it stays")
    return 0


def _stop(settings: Settings, options: argparse.Namespace) -> int:
    if settings.database_url is not None:
        raise DatabaseError("DATABASE_URL is set: the server is not ours to stop")
    stopped = embedded_server(settings).stop(force=options.force)
    print("The embedded server is stopped" if stopped else "The embedded server was not running")
    return 0


def _running_url(settings: Settings) -> str | None:
    """The database's URI; None, with a word to the user, where the embedded server is stopped."""
    if settings.database_url is not None:
        return settings.database_url
    server = embedded_server(settings)
    if server.running() is None:
        print(f"The embedded server is stopped; its data is in {server.data_dir}")
        return None
    return server.url()


@contextmanager
def _url_in_use(settings: Settings) -> Iterator[str]:
    """The database's URI; an embedded server runs as long as the block."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    with embedded_server(settings) as server:
        yield server.url()


if __name__ == "__main__":
    sys.exit(run_program(main))
