"""`python -m app.pause`: pause a domain or a command type, resume it, list what is paused."""

from __future__ import annotations

from app.settings.signals import end_at_interrupts
from app.settings.streams import run_program, set_up_streams

if __name__ == "__main__":
    end_at_interrupts()
    set_up_streams()

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence

import psycopg
from rich.console import Console

from app.database import DatabaseError
from app.database.pools import new_pool, opened
from app.database.waiting import open_patiently
from app.settings.configuration import ConfigurationError, Settings
from app.settings.people import login_name
from app.visible import terminal_line
from commandbus import CommandBusError, Pause, Pauses

DONE, FAILED, MISUSED = 0, 1, 2
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_ERRORS: tuple[type[Exception], ...] = (DatabaseError, CommandBusError, psycopg.Error, ValueError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Pause, resume or list; returns the exit code.

    0: done. 1: failed, with one line that says why. 2: wrong options.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.list or options.resume or options.reason):
        parser.error("a pause needs --reason; or give --resume or --list")
    try:
        settings = Settings.from_env()
    except ConfigurationError as exc:
        return _complain(exc, MISUSED)
    try:
        with open_patiently(settings) as database:
            return asyncio.run(_run(database.url, options, settings.answer_timeout))
    except _ERRORS as exc:
        return _complain(exc, FAILED)


def _complain(error: object, code: int) -> int:
    sys.stderr.write(f"error: {terminal_line(str(error))}\n")
    return code


async def _run(url: str, options: argparse.Namespace, answer_timeout: int) -> int:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    pool = new_pool(
        url,
        application_name="commandbus pause",
        name="pause",
        answer_timeout=answer_timeout,
        max_size=1,
        timeout=answer_timeout,
    )
    async with opened(pool):
        pauses = Pauses(pool, answer_timeout=answer_timeout)
        if options.list:
            for each in await pauses.list(options.domain):
                console.print(terminal_line(_line(each)))
            return DONE
        if options.resume:
            return await _resume(pauses, options, console)
        made = await pauses.pause(
            options.domain,
            options.type,
            reason=options.reason,
            operator=options.operator,
            seconds=options.duration,
        )
        console.print(terminal_line(_line(made)))
    return DONE


async def _resume(pauses: Pauses, options: argparse.Namespace, console: Console) -> int:
    chosen = [
        each
        for each in await pauses.list(options.domain)
        if options.type is None or each.command_type == options.type
    ]
    for each in chosen:
        if await pauses.resume(each.pause_id, operator=options.operator):
            console.print(terminal_line(f"resumed {each.command_type or 'domain ' + each.domain}"))
    if chosen:
        return DONE
    return _complain("nothing of that is paused", FAILED)


def _line(pause: Pause) -> str:
    what = f"type {pause.command_type} of " if pause.command_type else ""
    until = f" until {pause.ends_at:%Y-%m-%d %H:%M:%S %Z}" if pause.ends_at else ""
    return f"{what}domain {pause.domain} is paused by {pause.paused_by}{until}: {pause.reason}"


def _duration(text: str) -> float:
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError("a number with s, m, h or d, such as 15m")
    return float(found[1]) * _SECONDS[found[2]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.pause",
        description="Pause a domain, or one command type of it: nothing of it starts, what runs"
        " goes on, and no attempt is spent.",
    )
    parser.add_argument("domain", help="of which domain")
    parser.add_argument("--type", help="only this command type")
    parser.add_argument("--reason", help="why it is paused; others see it")
    parser.add_argument(
        "--duration", type=_duration, metavar="15m", help="until it goes on by itself"
    )
    parser.add_argument("--operator", default=login_name() or "terminal", help="who does it")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--resume", action="store_true", help="end all pauses of the domain, or that of --type"
    )
    action.add_argument("--list", action="store_true", help="what is paused now")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main))
