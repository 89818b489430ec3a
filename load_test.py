"""Generate test commands, let real worker processes run them, and print how fast it went."""

from __future__ import annotations

from app.settings import preflight
from app.settings.signals import end_at_interrupts
from app.settings.streams import never_wait, run_program, set_up_streams

if __name__ == "__main__":
    end_at_interrupts()
    set_up_streams()
    preflight.check(preflight.LOAD_TEST)

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from app.database import DatabaseError
from app.database.waiting import open_patiently
from app.loadtest.generating import MAX_COUNT, BulkOrder
from app.loadtest.recorded_runs import RunNotFoundError
from app.loadtest.report import Plan, Run, print_results, results
from app.loadtest.runner import ComparisonError, cancel_run, load_test_pool, run_load_test
from app.loadtest.runs import LONGEST_NAME, RunGivenUpError, is_name
from app.processes import WorkerProcesses
from app.settings.configuration import MAX_WIDTH, ConfigurationError, Settings
from app.settings.logs import configure_logging
from app.settings.options import InvalidOptionError, whole_number
from app.testcommand.behaviors import MAX_EXECUTION_MS, PUBLIC_TYPES, BehaviorDistribution
from app.visible import terminal_line
from commandbus import CommandBusError
from commandbus.bus import MAX_ATTEMPTS_LIMIT
from commandbus.errors import INFRASTRUCTURE_ERRORS

# A worker of a load test is one of few on its machine and has short commands: it is run wider than
# the stored settings, which are made for any command.
WIDTHS = {"concurrency": 100, "batch_size": 100}
SUCCESS_PERCENT = 100
REGRESSION = 3
STORED = "stored"
STANDARD_OUTPUT = "-"
EXPECTED_ERRORS: tuple[type[Exception], ...] = (
    ConfigurationError,
    DatabaseError,
    CommandBusError,
    ComparisonError,
    InvalidOptionError,
    RunGivenUpError,
    RunNotFoundError,
    *INFRASTRUCTURE_ERRORS,
)


class _Stop:
    """The first Ctrl-C or SIGTERM asks to stop; the next one interrupts."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.default_int_handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one load test; 0 only where every command was generated and came to an end.

    REGRESSION where it did, but is not shown to be as fast as was asked for; see the epilog of
    --help for the others.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    plan = _plan(parser, options)
    stop = _Stop()
    has_begun = False
    # Names of runs come from anybody, so nothing that is printed is markup.
    console = Console(stderr=True, markup=False)
    try:
        settings = Settings.from_env()
        configure_logging(settings.log_format, "WARNING")
        with open_patiently(
            settings, on_step=console.print, is_stopped=lambda: stop.asked
        ) as database:
            if options.cancel is not None:
                pool = load_test_pool(database.url, settings)
                run, count = asyncio.run(cancel_run(pool, options.cancel, lambda: stop.asked))
                print(f"Cancelled {count:,} commands of run {run}")
                return 130 if stop.asked else 0
            # Commands that fail are part of the test; a warning for each would bury its results.
            quiet = dataclasses.replace(settings, log_level="ERROR")
            workers = WorkerProcesses(quiet)
            pool = load_test_pool(database.url, settings)
            has_begun = True
            done = asyncio.run(run_load_test(plan, pool, workers, console, lambda: stop.asked))
    except EXPECTED_ERRORS as exc:
        print(f"error: {terminal_line(exc)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        text = (
            "Interrupted: the workers were stopped; what they ran is delivered again later."
            f" The run is {plan.order.batch_id}"
        )
        print(text if has_begun else "Interrupted", file=sys.stderr)
        return 130
    code = _exit_code(done, is_stopped=stop.asked)
    report = json.dumps(results(done), indent=2)
    if options.json == STANDARD_OUTPUT:
        print(report, flush=True)
        print_results(console, done)
        return code
    if options.json is not None:
        try:
            Path(options.json).write_text(report + "\n")
        except OSError as exc:
            print(f"error: {options.json} cannot be written: {exc.strerror}", file=sys.stderr)
            code = code or 1
    print_results(Console(markup=False), done)
    return code


def _exit_code(done: Run, *, is_stopped: bool) -> int:
    if not done.is_complete:
        return 130 if is_stopped and not done.unaccounted else 1
    return REGRESSION if done.is_regression else 0


def _plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Plan:
    if options.mix is not None and options.success_pct is not None:
        parser.error("give --mix or --success-pct, not both")
    if options.max_regression is not None and options.compare is None:
        parser.error("--max-regression needs --compare")
    if options.json is not None and options.json != STANDARD_OUTPUT:
        _refuse_folder(parser, Path(options.json))
    percent = SUCCESS_PERCENT if options.success_pct is None else options.success_pct
    mix = options.mix or _success_mix(percent)
    try:
        distribution = BehaviorDistribution.model_validate(mix)
    except ValidationError as exc:
        complaints = [": ".join([*map(str, e["loc"][:1]), e["msg"]]) for e in exc.errors()]
        parser.error(f"argument --mix: {'; '.join(complaints)}")
    return Plan(
        order=BulkOrder(
            count=options.commands,
            distribution=distribution,
            delay_ms=options.delay_ms,
            max_attempts=options.max_attempts,
            lanes=options.lanes,
            groups=options.groups,
        ),
        name=options.name,
        workers=options.workers,
        # Those that run already have settings of their own.
        flags=_flags(options) if options.workers else {},
        assumed=frozenset(name for name in WIDTHS if getattr(options, name) is None),
        stall_seconds=options.stall_seconds,
        delete=options.delete,
        compare_with=options.compare,
        max_regression_percent=options.max_regression,
    )


def _flags(options: argparse.Namespace) -> dict[str, int]:
    """The options that the workers get; what is `stored` they find themselves."""
    given = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in WIDTHS.items()
    }
    return {name.replace("_", "-"): value for name, value in given.items() if value != STORED}


def _refuse_folder(parser: argparse.ArgumentParser, path: Path) -> None:
    if not path.parent.is_dir():
        parser.error(f"there is no folder {path.parent} for --json")
    if path.is_dir():
        parser.error(f"--json needs the name of a file, and {path} is a folder")


def _success_mix(percent: float) -> dict[str, float]:
    """The rest fails: 100 less the number as it was written, which a float would miss."""
    return {"success": percent, "fail_permanent": float(100 - Decimal(str(percent)))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python load_test.py",
        description=__doc__,
        epilog="The database is the one of DATABASE_URL; without it the embedded server, which is"
        " started or joined. Exit codes: 0 every command was generated and ended, 1 not so,"
        " 2 wrong options, 3 slower than --max-regression allows or not comparable,"
        " 130 interrupted.",
    )

    def add(name: str, kind: Callable[[str], Any], default: Any, text: str, **more: Any) -> None:
        shown = more.pop("shown", default)
        more.setdefault("metavar", "N")
        parser.add_argument(
            name, type=kind, default=default, help=f"{text} (default: {shown})", **more
        )

    add("--commands", whole_number(1, MAX_COUNT), 1_000, "how many commands")
    add("--workers", whole_number(0, 64), 4, "how many worker processes; 0: those that run already")
    add(
        "--delay-ms",
        whole_number(0, MAX_EXECUTION_MS),
        0,
        "how long each command runs, in milliseconds; those of the type timeout complete at once"
        " unless it exceeds the visibility timeout",
    )
    add(
        "--success-pct",
        _percent,
        None,
        "percent that succeed; the others fail for good",
        metavar="PCT",
        shown=SUCCESS_PERCENT,
    )
    add(
        "--max-attempts",
        whole_number(1, MAX_ATTEMPTS_LIMIT),
        None,
        "the budget of each command",
        shown="that of the workers' stored settings",
    )
    add(
        "--lanes",
        whole_number(0, MAX_COUNT),
        0,
        "into so many lanes the commands go, in turns; 0: none has a lane",
    )
    add("--groups", whole_number(1, MAX_COUNT), 1, "in so many groups these lanes are")
    for name, default, text in (
        ("--concurrency", WIDTHS["concurrency"], "commands that each worker runs at once"),
        ("--batch-size", WIDTHS["batch_size"], "the most commands that one claim takes"),
    ):
        add(
            name,
            _number_or_stored,
            None,
            f"{text}; `{STORED}`: as in the environment or the stored settings",
            metavar=f"N|{STORED}",
            shown=default,
        )
    add(
        "--stall-seconds",
        whole_number(1, 86_400),
        120,
        "give up when no command ends for this long",
    )
    add(
        "--mix",
        _mix,
        None,
        f"percent by behaviour type, 100 in total; types: {', '.join(PUBLIC_TYPES)}",
        metavar="TYPE=PCT,...",
        shown="what --success-pct says",
    )
    parser.add_argument(
        "--name",
        type=_name,
        help="what to call the run; shown where it is listed (default: no name)",
    )
    parser.add_argument(
        "--compare",
        metavar="RUN",
        help="compare with another run: its id or the beginning of it, its name"
        " (the latest of that name), or `last` (default: no comparison)",
    )
    parser.add_argument(
        "--max-regression",
        type=_percent,
        metavar="PCT",
        help="with --compare: exit with 3 when throughput or a 95th percentile is worse by more"
        " than PCT percent, or is missing in one of the runs (default: never)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write the results there; `-`: to standard output, and those for people to"
        " standard error (default: nowhere)",
    )
    parser.add_argument(
        "--delete",
        action="store_true",
        help="delete the run's commands and their trails afterwards, those in the troubleshooting"
        " queue included; its record stays (default: they stay)",
    )
    parser.add_argument(
        "--cancel",
        metavar="RUN",
        help="only cancel the commands of an earlier run that wait for a worker"
        " (default: run a new one)",
    )
    return parser


def _number_or_stored(text: str) -> int | str:
    if text == STORED:
        return STORED
    try:
        return whole_number(1, MAX_WIDTH)(text)
    except argparse.ArgumentTypeError as exc:
        raise argparse.ArgumentTypeError(f"{exc}, nor `{STORED}`") from None


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"must be 1 to {LONGEST_NAME} printable characters")
    return text


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError("must be a number from 0 to 100")
    return value


def _mix(text: str) -> dict[str, float]:
    parts = [part.partition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in parts):
        raise argparse.ArgumentTypeError("must be like success=90,fail_permanent=10")
    if len({name for name, _, _ in parts}) < len(parts):
        raise argparse.ArgumentTypeError("names a type twice")
    return {name.strip(): _percent(percent) for name, _, percent in parts}


if __name__ == "__main__":
    never_wait(output=False)
    sys.exit(run_program(main))
