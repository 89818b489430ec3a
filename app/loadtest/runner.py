"""Carrying out a load test: generate, start worker processes, wait, stop them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from app.database.pools import Pool, new_pool, opened
from app.loadtest.cleanup import cancel_waiting, delete_commands
from app.loadtest.recorded_runs import RecordedRun, count_rows, find_run, get_recorded
from app.loadtest.report import Plan, Run
from app.loadtest.runs import Origin, create_run, generate_run
from app.processes import WorkerProcesses
from app.settings.configuration import WORKER_OPTIONS, ConfigStore, Settings, environment
from app.settings.options import Chosen, Source, choose
from app.settings.people import login_name
from commandbus import BatchProgress, CommandBus, CommandStatus
from commandbus.errors import INFRASTRUCTURE_ERRORS, one_line

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
AWAY_SECONDS = 1.0
ASSUMED = "the default of load tests"
WIDTH = ("concurrency", "batch_size")
_SOURCES = {
    Source.FLAG: "as given",
    Source.ENVIRONMENT: "from the environment",
    Source.STORED: "stored",
    Source.DEFAULT: "the default, as nobody has stored another",
}


class ComparisonError(Exception):
    """There is nothing to compare with; the message is one line for the user."""


def load_test_pool(url: str, settings: Settings) -> Pool:
    """Connections for one load test; it opens and closes them."""
    return new_pool(
        url,
        application_name="commandbus load test",
        name="load-test",
        answer_timeout=settings.answer_timeout,
        max_size=3,
        timeout=settings.answer_timeout,
    )


async def run_load_test(
    plan: Plan,
    pool: Pool,
    workers: WorkerProcesses,
    console: Console,
    is_stopped: Callable[[], bool],
) -> Run:
    """Do what *plan* says, recorded as a run; the workers have ended when this returns.

    Once *is_stopped* says so, what was begun is left as it is and reported. Raises ComparisonError
    or RunNotFoundError before anything is done, and what sending raises.
    """
    run = Run(plan)
    try:
        async with opened(pool):
            if plan.compare_with is not None:
                run.other = await _found(pool, plan.compare_with)
            run.worker_settings = await _worker_settings(pool, plan)
            console.print(_settings_text(run), soft_wrap=True)
            await create_run(
                pool,
                plan.order,
                origin=Origin.CLI,
                name=plan.name,
                started_by=login_name(),
                workers={
                    "processes": plan.workers,
                    **{
                        name.replace("_", "-"): chosen.value
                        for name, chosen in run.worker_settings.items()
                    },
                },
            )
            await _generate_and_process(run, pool, workers, console, is_stopped)
            run.ended += await asyncio.to_thread(workers.stop)
            # What was running when the workers were told to drain has ended since.
            run.progress = await CommandBus(pool).get_batch(plan.order.batch_id)
            run.rows = await count_rows(pool, plan.order.batch_id)
            run.recorded = await get_recorded(pool, plan.order.batch_id)
            if plan.delete:
                run.deletion = await delete_commands(pool, plan.order.batch_id, _operator())
    finally:
        workers.kill()
    return run


async def _worker_settings(pool: Pool, plan: Plan) -> dict[str, Chosen]:
    """The settings that decide how wide the workers run, chosen as the workers themselves do.

    Empty where those do the work that run already.
    """
    if not plan.workers:
        return {}
    stored = await ConfigStore(pool).load()
    flags = {name.replace("-", "_"): value for name, value in plan.flags.items()}
    options = [each for each in WORKER_OPTIONS if each.name in WIDTH]
    return choose(options, flags=flags, environ=environment(), stored=stored.set_values())


def _settings_text(run: Run) -> str:
    """Which settings the workers get, and why."""
    if not run.worker_settings:
        return "The workers that run have settings of their own"
    shown = ", ".join(
        f"{name.replace('_', ' ')} {chosen.value} ("
        + (ASSUMED if name in run.plan.assumed else _SOURCES[chosen.source])
        + ")"
        for name, chosen in run.worker_settings.items()
    )
    text = f"Workers of this load test: {shown}"
    if run.plan.assumed:
        options = " and ".join(
            f"--{name.replace('_', '-')} stored" for name in WIDTH if name in run.plan.assumed
        )
        text += f"; for the stored settings give {options}"
    return text


async def cancel_run(
    pool: Pool, text: str, is_stopped: Callable[[], bool]
) -> tuple[RecordedRun, int]:
    """Cancel what no worker has taken of the run that *text* names; the run, and how many.

    Ends early once *is_stopped* says so. Raises RunNotFoundError.
    """
    async with opened(pool):
        run = await find_run(pool, text)
        return run, await cancel_waiting(pool, run.run_id, _operator(), is_stopped)


async def _found(pool: Pool, text: str) -> RecordedRun:
    named = await find_run(pool, text)
    other = await get_recorded(pool, named.run_id)
    if other is None or other.outcome is None:
        raise ComparisonError(f"Run {named} has no outcome yet to compare with")
    return other


async def _generate_and_process(
    run: Run,
    pool: Pool,
    workers: WorkerProcesses,
    console: Console,
    is_stopped: Callable[[], bool],
) -> None:
    began = time.perf_counter()
    with _progress(console) as progress:
        await _generate(run, pool, progress, is_stopped)
        if is_stopped():
            run.stopped_by = "interrupted"
        else:
            for _ in range(run.plan.workers):
                workers.start(domain=run.plan.order.domain, flags=run.plan.flags)
            await _watch(run, CommandBus(pool), workers, progress, is_stopped)
    run.total_seconds = time.perf_counter() - began


async def _generate(
    run: Run, pool: Pool, progress: Progress, is_stopped: Callable[[], bool]
) -> None:
    order = run.plan.order
    bar = progress.add_task("Generating", total=order.count)
    began = time.perf_counter()
    run.generated = await generate_run(
        pool,
        order,
        on_progress=lambda result: progress.update(bar, completed=result.created),
        is_cancelled=is_stopped,
    )
    run.generation_seconds = time.perf_counter() - began
    by = f"{run.plan.workers} worker processes" if run.plan.workers else "the workers that run"
    progress.console.print(
        f"Generated {run.created:,} commands in {run.generation_seconds:.2f}s;"
        f" processing them with {by}"
    )


async def _watch(
    run: Run,
    bus: CommandBus,
    workers: WorkerProcesses,
    progress: Progress,
    is_stopped: Callable[[], bool],
) -> None:
    """Follow the batch until all commands have ended, or there is no point in waiting."""
    bar = progress.add_task("Processing", total=run.created)
    started: float | None = None
    generated = looked = moved = time.perf_counter()
    while run.created:
        before, seen = looked, run.finished
        await _look(run, bus)
        looked = time.perf_counter()
        progress.update(bar, completed=run.finished)
        if run.finished > seen:
            moved = looked
        if started is None and run.progress is not None and _has_begun(run.progress):
            started = before
        if started is not None:
            run.processing_seconds = looked - started
        run.waiting_seconds = (looked if started is None else started) - generated
        run.ended += workers.reap()
        if run.finished >= run.created:
            return
        if is_stopped():
            run.stopped_by = "interrupted"
        elif run.plan.workers and not workers.pids:
            run.stopped_by = "all worker processes have ended"
        elif looked - moved > run.plan.stall_seconds:
            run.stopped_by = f"no command ended for {run.plan.stall_seconds:g} s"
        if run.stopped_by is not None:
            return
        await asyncio.sleep(LOOK_SECONDS)


async def _look(run: Run, bus: CommandBus) -> None:
    """Read how far the run is; while the database cannot be asked it stays as it was.

    The workers wait for it too, so that is no reason to end them.
    """
    try:
        run.progress = await bus.get_batch(run.plan.order.batch_id)
    except INFRASTRUCTURE_ERRORS as exc:
        logger.warning(
            "progress_unknown",
            extra={"run_id": str(run.plan.order.batch_id), "error": one_line(exc)},
        )
        await asyncio.sleep(AWAY_SECONDS)


def _operator() -> str:
    return login_name() or "load test"


def _has_begun(progress: BatchProgress) -> bool:
    return progress.counts[CommandStatus.PENDING] < progress.sent or progress.retried > 0


class _RateColumn(TextColumn):
    """How many commands a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
