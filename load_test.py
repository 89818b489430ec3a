"""Generate test commands, let real worker processes run them, and print how fast it went."""

from __future__ import annotations

from app.signals import end_at_interrupts, raise_interrupts

if __name__ == "__main__":
    end_at_interrupts()

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from app.behaviors import PUBLIC_TYPES, BehaviorDistribution
from app.bulk import MAX_COUNT, BulkOrder
from app.config import ConfigurationError, Settings
from app.database import DatabaseError, open_database
from app.load_results import Plan, print_results, results
from app.load_runner import ComparisonError, cancel_run, load_test_pool, run_load_test
from app.logs import configure_logging
from app.options import whole_number
from app.processes import WorkerProcesses
from app.recorded_runs import RunNotFoundError
from app.runs import LONGEST_NAME, RunGivenUpError, is_name
from commandbus import CommandBusError
from commandbus.errors import INFRASTRUCTURE_ERRORS

# A worker of a load test is one of few on its machine and has short commands: it is run wider than
# the stored settings, which are made for any command.
CONCURRENCY = 100
BATCH_SIZE = 100
REGRESSION = 3
EXPECTED_ERRORS: tuple[type[Exception], ...] = (
    ConfigurationError,
    DatabaseError,
    CommandBusError,
    ComparisonError,
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
    # Names of runs come from anybody, so nothing that is printed is markup.
    console = Console(stderr=True, markup=False)
    try:
        settings = Settings.from_env()
        configure_logging(settings.log_format, "WARNING")
        with open_database(settings, on_step=console.print) as database:
            if options.cancel is not None:
                pool = load_test_pool(database.url, settings)
                run, count = asyncio.run(cancel_run(pool, options.cancel, lambda: stop.asked))
                print(f"Cancelled {count:,} commands of run {run}")
                return 130 if stop.asked else 0
            # Commands that fail are part of the test; a warning for each would bury its results.
            quiet = dataclasses.replace(settings, log_level="ERROR")
            workers = WorkerProcesses(quiet)
            pool = load_test_pool(database.url, settings)
            done = asyncio.run(run_load_test(plan, pool, workers, console, lambda: stop.asked))
    except EXPECTED_ERRORS as exc:
        print(f"error: {' '.join(str(exc).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "Interrupted; the workers were ended, what they ran comes back with its lease."
            f" The run is {plan.order.batch_id}",
            file=sys.stderr,
        )
        return 130
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(results(done), indent=2) + "\n")
        except OSError as exc:
            print_results(Console(markup=False), done)
            print(f"error: {options.json} cannot be written: {exc.strerror}", file=sys.stderr)
            return 1
    print_results(Console(markup=False), done)
    if not done.is_complete:
        return 130 if stop.asked and not done.unaccounted else 1
    return REGRESSION if done.is_regression else 0


def _plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Plan:
    if options.mix is not None and options.success_pct is not None:
        parser.error("give --mix or --success-pct, not both")
    if options.max_regression is not None and options.compare is None:
        parser.error("--max-regression needs --compare")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} for --json")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json needs the name of a file, and {options.json} is a folder")
    mix = options.mix or _success_mix(100 if options.success_pct is None else options.success_pct)
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
        ),
        name=options.name,
        workers=options.workers,
        flags={"concurrency": options.concurrency, "batch-size": options.batch_size},
        stall_seconds=options.stall_seconds,
        delete=options.delete,
        compare_with=options.compare,
        max_regression_percent=options.max_regression,
    )


def _success_mix(percent: float) -> dict[str, float]:
    return {"success": percent, "fail_permanent": 100 - percent}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python load_test.py",
        description=__doc__,
        epilog="The database is the one of DATABASE_URL; without it the embedded server, which is"
        " started or joined. Exit codes: 0 every command was generated and ended, 1 not so,"
        " 2 wrong options, 3 slower than --max-regression allows or not comparable,"
        " 130 interrupted.",
    )

    def add(name: str, kind: Callable[[str], Any], default: Any, text: str) -> None:
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text + shown)

    add("--commands", whole_number(1, MAX_COUNT), 1_000, "how many commands")
    add("--workers", whole_number(0, 64), 4, "how many worker processes; 0: those that run already")
    add("--delay-ms", whole_number(0, 3_600_000), 0, "how long each command runs, in milliseconds")
    add("--success-pct", _percent, None, "percent that succeed; the others fail for good")
    add("--max-attempts", whole_number(1, 1_000), None, "the budget of each command")
    add(
        "--concurrency",
        whole_number(1, 1_000),
        CONCURRENCY,
        "commands that each worker runs at once",
    )
    add("--batch-size", whole_number(1, 1_000), BATCH_SIZE, "commands that one claim takes at most")
    add(
        "--stall-seconds",
        whole_number(1, 86_400),
        120,
        "give up when no command ends for this long",
    )
    parser.add_argument(
        "--mix",
        type=_mix,
        metavar="TYPE=PCT,...",
        help=f"percent by behaviour type, 100 in all; types: {', '.join(PUBLIC_TYPES)}",
    )
    parser.add_argument("--name", type=_name, help="what to call the run; shown where it is listed")
    parser.add_argument(
        "--compare",
        metavar="RUN",
        help="put the figures beside those of another run: its id or the beginning of it, its name"
        " (the latest of that name), or `last`",
    )
    parser.add_argument(
        "--max-regression",
        type=_percent,
        metavar="PCT",
        help="with --compare: exit with 3 when throughput or a 95th percentile is worse by more"
        " than PCT percent, or is missing in one of the runs",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument(
        "--delete",
        action="store_true",
        help="delete the run's commands and their trails afterwards, those in the troubleshooting"
        " queue included; its record stays",
    )
    parser.add_argument(
        "--cancel",
        metavar="RUN",
        help="do nothing but cancel the commands of an earlier run that wait for a worker",
    )
    return parser


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
    raise_interrupts()
    sys.exit(main())
