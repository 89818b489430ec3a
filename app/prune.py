"""`python -m app.prune`: delete finished commands that are too old or too many."""

from __future__ import annotations

from app.settings.signals import end_at_interrupts, stop_signals
from app.settings.streams import run_program, set_up_streams

if __name__ == "__main__":
    end_at_interrupts()
    set_up_streams()

import argparse
import asyncio
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import psycopg
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.database import DatabaseError
from app.database.waiting import open_patiently
from app.retention import (
    RetentionConfig,
    RetentionSchedule,
    connect,
    prune_history,
    rules_for,
    with_test_commands,
)
from app.settings.configuration import ConfigurationError, Settings, environment
from app.settings.logs import configure_logging
from app.settings.options import InvalidOptionError, whole_number
from app.visible import terminal_line
from commandbus import CommandBusError, CommandStatus
from commandbus.retention import BATCH_SIZE, FINISHED, Pruned, Pruner, RetentionRule

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
MAX_BATCH_SIZE = 10_000
MAX_NUMBER = 1_000_000_000
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_ERRORS: tuple[type[Exception], ...] = (DatabaseError, CommandBusError, psycopg.Error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune once, or on schedule; returns the exit code.

    0: done, or its time was over. 1: failed, with one line that says why. 2: wrong options. 130: a
    signal ended it after the batch that was under way; what it had deleted stays deleted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    rules = rules_for(options.status, options.older_than, options.keep)
    if options.scheduled and (rules or options.history is not None or options.dry_run):
        parser.error("--scheduled takes its limits from the RETENTION_ settings")
    if not (options.scheduled or rules or options.history is not None):
        parser.error("nothing to prune: give --older-than, --keep, --history or --scheduled")
    try:
        settings = Settings.from_env()
        config = RetentionConfig.from_environment(environment())
    except (ConfigurationError, InvalidOptionError) as exc:
        return _complain(exc, MISUSED)
    if options.scheduled and not config.is_on:
        parser.error("--scheduled, and no RETENTION_ setting says what to prune")
    try:
        with open_patiently(settings) as database:
            if options.scheduled:
                configure_logging(settings.log_format, settings.log_level)
                return asyncio.run(
                    _prune_on_schedule(database.url, config, settings.answer_timeout)
                )
            return asyncio.run(_prune_once(database.url, options, rules, settings.answer_timeout))
    except psycopg.errors.InsufficientPrivilege as exc:
        hint = "pruning is granted to the owner and to the maintenance role"
        return _complain(f"{exc.diag.message_primary} ({hint})", FAILED)
    except _ERRORS as exc:
        return _complain(exc, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(error: object, code: int) -> int:
    sys.stderr.write(f"error: {terminal_line(str(error))}\n")
    return code


async def _prune_once(
    url: str, options: argparse.Namespace, rules: Sequence[RetentionRule], answer_timeout: int
) -> int:
    console = Console(highlight=False, soft_wrap=True)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    history: Counter[str] = Counter()
    interrupted = False
    async with await connect(url, answer_timeout) as conn:
        with progress:
            task = progress.add_task("Looking for finished commands", total=None)
            pruner = Pruner(
                conn,
                domain=options.domain,
                batch_size=options.batch_size,
                on_pruned=with_test_commands,
                on_batch=lambda done: progress.update(task, description=_so_far(done)),
            )

            def stop() -> None:
                nonlocal interrupted
                interrupted = True
                pruner.stop()

            _on_signals(stop)
            pruned = await pruner.prune(
                rules, max_seconds=options.max_seconds, dry_run=options.dry_run
            )
            if options.history is not None and pruned.complete and not options.dry_run:
                history = await prune_history(pruner, conn, options.history)
    for line in _summary(pruned, history, dry_run=options.dry_run):
        console.print(line)
    if interrupted:
        console.print("Stopped by a signal; more may be left.")
        return INTERRUPTED
    if not pruned.complete:
        console.print(f"Stopped after {options.max_seconds:g} s; more may be left.")
    return DONE


async def _prune_on_schedule(url: str, config: RetentionConfig, answer_timeout: int) -> int:
    running = asyncio.current_task()
    assert running is not None  # asyncio.run() made it
    _on_signals(running.cancel)
    with suppress(asyncio.CancelledError):
        await RetentionSchedule(url, config, answer_timeout).run()
        return FAILED  # its log says why
    return DONE


def _on_signals(stop: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, stop)


def _so_far(pruned: Pruned) -> str:
    return f"Deleted {pruned.commands.total():,} commands"


def _summary(pruned: Pruned, history: Counter[str], *, dry_run: bool) -> list[str]:
    found = [f"{n:,} {status.lower()}" for status, n in pruned.commands.items() if n]
    commands = ", ".join(found) or "no"
    if dry_run:
        return [f"Would delete {commands} commands."]
    events, seconds = f"{pruned.events:,}", f"{pruned.seconds:.1f}"
    lines = [f"Deleted {commands} commands with {events} events in {seconds} s."]
    if history:
        lines.append(f"Deleted {', '.join(f'{n:,} {kind}' for kind, n in history.items())}.")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.prune",
        description="Delete finished commands with their audit trail and all that hangs on them,"
        " in small batches, the oldest first, while the bus goes on. Each limit stands for itself:"
        " a command goes when it is too old, or when there are too many. What has not ended is"
        " never deleted. The id of a deleted command is forgotten and can be sent again.",
        epilog="An age is a number with s, m, h, d or w: 12h, 30d. The database is the one of"
        " DATABASE_URL; its role needs to be the owner or a member of the maintenance role. Exit"
        " codes: 0 done, 1 failed, 2 wrong options, 130 stopped by a signal.",
    )
    parser.add_argument(
        "--older-than",
        type=_age,
        metavar="AGE",
        help="delete commands that ended at least this long ago",
    )
    parser.add_argument(
        "--keep",
        type=whole_number(0, MAX_NUMBER),
        metavar="N",
        help="keep at most the N newest commands of each status",
    )
    parser.add_argument(
        "--status",
        type=_statuses,
        default=FINISHED,
        metavar="LIST",
        help="of which statuses, separated by commas (default: COMPLETED,FAILED,CANCELLED)",
    )
    parser.add_argument("--domain", metavar="NAME", help="of which domain (default: all)")
    parser.add_argument(
        "--history",
        type=_age,
        metavar="AGE",
        help="also delete statistics, workers that are gone, ended jobs of operators and rejected"
        " messages that are older",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell how many commands it would delete"
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1, MAX_BATCH_SIZE),
        default=BATCH_SIZE,
        metavar="N",
        help=f"how many commands one transaction deletes at most (default: {BATCH_SIZE})",
    )
    parser.add_argument(
        "--max-seconds",
        type=whole_number(1, MAX_NUMBER),
        metavar="N",
        help="stop after so long, done or not",
    )
    parser.add_argument(
        "--scheduled",
        action="store_true",
        help="go on until stopped, with the limits and the interval of the RETENTION_ settings",
    )
    return parser


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"must be like 30d, 12h or 90s, not {text!r}")
    try:
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        raise argparse.ArgumentTypeError(f"is too long: {text!r}") from None


def _statuses(text: str) -> tuple[CommandStatus, ...]:
    wanted = {part.strip().upper() for part in text.split(",") if part.strip()}
    unknown = wanted - {status.value for status in FINISHED}
    if unknown or not wanted:
        names = ", ".join(FINISHED)
        raise argparse.ArgumentTypeError(f"must be some of {names}, not {text!r}")
    return tuple(status for status in FINISHED if status.value in wanted)


if __name__ == "__main__":
    sys.exit(run_program(main))
