"""The command line of `python -m app.worker`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.database import DatabaseError
from app.processes import WorkerProcesses, tell_that_it_obeyed
from app.retention import RetentionConfig
from app.settings.configuration import (
    LOG_LEVELS,
    ConfigurationError,
    LogFormat,
    Settings,
    environment,
)
from app.settings.logs import configure_logging
from app.settings.options import (
    InvalidOptionError,
    Option,
    choose,
    option,
    options_of,
    plain_number,
    whole_number,
)
from app.settings.signals import EarlyStop, stop_signals
from app.visible import terminal_line
from app.worker.process import OPTIONS, run_in_loop, serve, wait_for_database
from app.worker.supervision import Supervisor
from commandbus import CommandBusError
from commandbus.errors import INFRASTRUCTURE_ERRORS

logger = logging.getLogger(__name__)

STOPPED, FAILED, MISUSED = 0, 1, 2
_EXPECTED_ERRORS: tuple[type[Exception], ...] = (
    DatabaseError,
    CommandBusError,
    InvalidOptionError,
    *INFRASTRUCTURE_ERRORS,
)
_CHILD_CHECK_SECONDS = 0.1
_LARGEST_ID = 2**63 - 1


@dataclass
class ProcessConfig:
    """Options of the process itself, which are not stored."""

    processes: int = option(
        1,
        "Processes",
        low=1,
        high=64,
        variable="WORKER_PROCESSES",
        help="How many worker processes to run; with several, this one only looks after them.",
    )
    drain_timeout: float = option(
        30.0,
        "Drain timeout",
        unit="seconds",
        low=0,
        high=3_600,
        variable="WORKER_DRAIN_TIMEOUT",
        help="How long running commands may go on after the first SIGTERM or Ctrl-C.",
    )
    database_wait: float = option(
        30.0,
        "Database wait",
        unit="seconds",
        low=0,
        high=86_400,
        variable="WORKER_DATABASE_WAIT",
        help="How long to wait at the start for a database that is away.",
    )


PROCESS_OPTIONS = options_of(ProcessConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker, or several; returns the exit code.

    0: stopped as asked. 1: failed, with one line that says why. 2: wrong options. 128 + n: ended
    at once by a second signal n.
    """
    options = _parser().parse_args(arguments)
    code = _run(options)
    if options.stop_with_parent and code not in (FAILED, MISUSED):
        tell_that_it_obeyed()
    return code


def _run(options: argparse.Namespace) -> int:
    early_stop = EarlyStop()
    early_stop.listen()  # until the worker listens itself
    try:
        environ = environment()
        settings = _settings(options)
        flags: dict[str, int | float | None] = {
            item.name: getattr(options, item.name) for item in (*OPTIONS, *PROCESS_OPTIONS)
        }
        # Refuse what is wrong before anything is started; the stored values come later.
        choose(OPTIONS, flags=flags, environ=environ, stored={})
        RetentionConfig.from_environment(environ)
        process = choose(PROCESS_OPTIONS, flags=flags, environ=environ, stored={})
        domain = options.domain or environ.get("WORKER_DOMAIN", "test")
    except (ConfigurationError, InvalidOptionError) as exc:
        return _complain(exc, MISUSED)
    configure_logging(settings.log_format, settings.log_level)
    try:
        with (
            wait_for_database(settings, process["database_wait"].value) as database,
            database.kept_running(),
        ):
            if process["processes"].value > 1:
                return _look_after(settings, int(process["processes"].value), domain, flags)
            return run_in_loop(
                serve(
                    database.url,
                    domain=domain,
                    flags=flags,
                    environ=environ,
                    drain_timeout=process["drain_timeout"].value,
                    answer_timeout=settings.answer_timeout,
                    stop_with_parent=options.stop_with_parent,
                    replaces=options.replaces,
                    early_stop=early_stop,
                )
            )
    except _EXPECTED_ERRORS as exc:
        return _complain(exc, FAILED)
    except KeyboardInterrupt:
        return STOPPED


def _complain(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"error: {terminal_line(error)}\n")
    return code


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings.from_env()
    if options.log_format is not None:
        settings = dataclasses.replace(settings, log_format=LogFormat(options.log_format))
    if options.log_level is not None:
        settings = dataclasses.replace(settings, log_level=options.log_level)
    return settings


def _look_after(
    settings: Settings, count: int, domain: str, flags: Mapping[str, int | float | None]
) -> int:
    """Keep *count* worker processes running; pass signals on, end with the last of them."""
    supervisor = Supervisor(WorkerProcesses(settings))
    passed_on = {
        name.replace("_", "-"): value
        for name, value in flags.items()
        if value is not None and name != "processes"
    }

    # From here on no signal may end this process without reaching its children, so the handler
    # only takes note, and the loop below passes on.
    signals: list[signal.Signals] = []
    for number in stop_signals():
        signal.signal(number, lambda number, _: signals.append(signal.Signals(number)))
    try:
        for _ in range(count):
            if not signals:
                supervisor.start(domain=domain, flags=passed_on, is_needed=True)
    except OSError as exc:
        supervisor.stop()
        return _complain(exc, FAILED)
    has_given_up = False
    while not supervisor.is_done:
        time.sleep(_CHILD_CHECK_SECONDS)
        while signals:
            supervisor.send_signal(signals.pop(0))
        if supervisor.given_up is not None and not has_given_up:
            has_given_up = True
            _complain(supervisor.given_up, FAILED)
            supervisor.send_signal(signal.SIGTERM)
    if supervisor.given_up is not None and not has_given_up:
        _complain(supervisor.given_up, FAILED)
    return supervisor.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.worker",
        description="Run the handlers of a domain. Each option comes from the first of: its flag,"
        " its environment variable (also in .env), the stored settings, its default. Stored"
        " settings are followed while the worker runs. The first SIGTERM or Ctrl-C lets running"
        " commands finish, the second one ends immediately.",
        epilog="The database is the one of DATABASE_URL; without it the embedded server under"
        " DATA_DIR, which is started or joined. Exit codes: 0 stopped as asked, 1 failed, 2 wrong"
        " options, 128+n ended at once by a second signal n.",
    )
    parser.add_argument(
        "--domain",
        metavar="NAME",
        help="the domain to work for (WORKER_DOMAIN; default: test)",
    )
    for item in (*OPTIONS, *PROCESS_OPTIONS):
        parser.add_argument(
            item.flag,
            dest=item.name,
            metavar="N" if item.whole else "X",
            type=_parse_with(item),
            help=f"{item.help} {item.range_text.capitalize()} ({item.variable};"
            f" default: {plain_number(item.default)})",
        )
    parser.add_argument(
        "--log-format",
        choices=[each.value for each in LogFormat],
        help="a readable line or a JSON object for each event (LOG_FORMAT; default: text)",
    )
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=LOG_LEVELS,
        help="what to leave out (LOG_LEVEL; default: INFO)",
    )
    parser.add_argument(
        "--stop-with-parent",
        action="store_true",
        help="stop when standard input ends, as it does with the process that started this one",
    )
    # Given by who starts it in place of another: the worker's id, and how its process ended.
    parser.add_argument("--replaces", type=_replaced, help=argparse.SUPPRESS)
    return parser


def _replaced(text: str) -> tuple[int, str]:
    worker_id, _, how = text.partition(":")
    return whole_number(1, _LARGEST_ID)(worker_id), how


def _parse_with(item: Option) -> Callable[[str], Any]:
    def parse(text: str) -> int | float:
        try:
            return item.parse(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None

    return parse


if __name__ == "__main__":
    sys.exit(main())
