"""The plan of a load test, its results, and the report of them."""

from __future__ import annotations

import signal
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from app.loadtest.cleanup import Deletion
from app.loadtest.comparison import Comparison, Difference, Figure, Verdict, compare, differences
from app.loadtest.generating import BulkOrder, BulkResult
from app.loadtest.recorded_runs import RecordedRun, RowCount
from app.processes import EndedProcess
from app.settings.options import Chosen
from app.visible import terminal_line
from commandbus import BatchProgress, CommandStatus
from commandbus.models import Percentiles


@dataclass(frozen=True)
class Plan:
    """What to do."""

    order: BulkOrder
    name: str | None
    workers: int
    flags: dict[str, int]
    stall_seconds: float
    delete: bool
    compare_with: str | None = None
    max_regression_percent: float | None = None
    assumed: frozenset[str] = frozenset()
    """The default settings of the workers that a load test starts."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides how fast the run is."""
        return {
            "mix": {kind.value: count for kind, count in self.order.types().items() if count},
            "delay_ms": self.order.delay_ms,
            "max_attempts": self.order.max_attempts,
            "domain": self.order.domain,
            **self.order.lane_settings,
        }


@dataclass
class Run:
    """What was done, filled in as it happens."""

    plan: Plan
    generated: BulkResult | None = None
    generation_seconds: float = 0.0
    waiting_seconds: float = 0.0
    """From the end of the generation to the first command that was seen to be taken."""
    processing_seconds: float = 0.0
    """From there to the last command that was seen to end."""
    total_seconds: float = 0.0
    progress: BatchProgress | None = None
    ended: list[EndedProcess] = field(default_factory=list)
    stopped_by: str | None = None
    rows: RowCount | None = None
    """Its commands by their rows, at the end; None before anybody has counted."""
    recorded: RecordedRun | None = None
    """As it is recorded at the end; without an outcome where commands are on their way."""
    deletion: Deletion | None = None
    """What was deleted afterwards; None if that was not requested."""
    other: RecordedRun | None = None
    """The run that this one is compared with."""
    worker_settings: dict[str, Chosen] = field(default_factory=dict)
    """How wide its workers run, and why; empty where those do the work that run already."""

    @property
    def created(self) -> int:
        return 0 if self.generated is None else self.generated.created

    @property
    def finished(self) -> int:
        """Commands that a worker brought to an end, or to the troubleshooting queue."""
        return 0 if self.progress is None else self.progress.sent - self.progress.open

    @property
    def unaccounted(self) -> int:
        """Commands that were created and are not there: by their rows, or by the counters."""
        counted = sum(self.progress.counts.values()) if self.progress else 0
        there = counted if self.rows is None else min(counted, self.rows.there)
        return self.created - there

    @property
    def left(self) -> int:
        """Commands that are there and still on their way."""
        return 0 if self.rows is None else self.rows.open

    @property
    def is_complete(self) -> bool:
        return self.created == self.finished == self.plan.order.count and self.unaccounted == 0

    @property
    def comparison(self) -> Comparison | None:
        """Against the run that was asked for, where both have an outcome."""
        if self.other is None or self.other.outcome is None:
            return None
        if self.recorded is None or self.recorded.outcome is None:
            return None
        return compare(self.other.outcome, self.recorded.outcome)

    @property
    def differences(self) -> list[Difference]:
        """The settings and versions in which the other run was different."""
        if self.other is None or self.recorded is None:
            return []
        return differences(self.other.conditions, self.recorded.conditions)

    @property
    def regressions(self) -> list[Figure]:
        """What is worse than in the other run by more than was allowed."""
        percent = self.plan.max_regression_percent
        if percent is None or self.comparison is None:
            return []
        return self.comparison.regressions(percent)

    @property
    def unjudged(self) -> list[Figure]:
        """What should have been judged and cannot be: one of the runs has no such figure."""
        if self.plan.max_regression_percent is None or self.comparison is None:
            return []
        return self.comparison.unjudged()

    @property
    def is_regression(self) -> bool:
        """Whether it is not shown to be as fast as was asked for."""
        if self.plan.max_regression_percent is None:
            return False
        return self.comparison is None or bool(self.regressions or self.unjudged)


def results(run: Run) -> dict[str, Any]:
    """Everything that is known of the run, for machines; durations by their unit in the name.

    The percentiles at the top are those of the handlers, over every command of the run;
    `latency_ms` has them for waiting, running and both.
    """
    progress, plan = run.progress, run.plan
    processed = progress.processed if progress else 0
    running = progress.run_ms if progress else Percentiles(None, None, None)
    return {
        "commands": plan.order.count,
        "workers": plan.workers,
        "total_seconds": round(run.total_seconds, 3),
        "generation_seconds": round(run.generation_seconds, 3),
        "throughput_per_second": _rate(processed, run.total_seconds),
        "p50_ms": running.p50,
        "p95_ms": running.p95,
        "p99_ms": running.p99,
        "counts": {
            status.value: progress.counts[status] if progress else 0 for status in CommandStatus
        },
        "unaccounted": run.unaccounted,
        "settings": {
            **plan.settings,
            **{name: chosen.value for name, chosen in run.worker_settings.items()},
        },
        "run_id": str(plan.order.batch_id),
        "name": plan.name,
        "complete": run.is_complete,
        "stopped_by": run.stopped_by,
        "created": run.created,
        "finished": run.finished,
        "retried": progress.retried if progress else 0,
        "waiting_seconds": round(run.waiting_seconds, 3),
        "processing_seconds": round(run.processing_seconds, 3),
        "generated_per_second": _rate(run.created, run.generation_seconds),
        "processed_per_second": _rate(processed, run.processing_seconds),
        "latency_ms": {name: asdict(part) for name, part in _latencies(progress)},
        "left": run.left,
        "deletion": None if run.deletion is None else asdict(run.deletion),
        "workers_ended": [{"pid": ended.pid, "code": ended.code} for ended in run.ended],
        "comparison": _compared(run),
    }


def _compared(run: Run) -> dict[str, Any] | None:
    if run.other is None or run.comparison is None:
        return None
    return {
        "with": str(run.other.run_id),
        "name": run.other.name,
        "figures": [
            {
                "name": figure.name,
                "unit": figure.unit,
                "other": figure.first,
                "this": figure.second,
                "change_percent": figure.change_percent,
                "verdict": figure.verdict,
            }
            for figure in run.comparison.figures
        ],
        "max_regression_percent": run.plan.max_regression_percent,
        "regressions": [figure.name for figure in run.regressions],
        "unjudged": [figure.name for figure in run.unjudged],
        "differences": [
            {"name": each.name, "other": each.first, "this": each.second}
            for each in run.differences
        ],
    }


def _latencies(progress: BatchProgress | None) -> list[tuple[str, Percentiles]]:
    if progress is None:
        return []
    return [
        ("waiting", progress.wait_ms),
        ("running", progress.run_ms),
        ("total", progress.total_ms),
    ]


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if seconds > 0 else None


def print_results(console: Console, run: Run) -> None:
    """The same for people: tables in a terminal, else plain lines that are easy to search."""
    (_print_tables if console.is_terminal else _print_lines)(console, run)
    _print_comparison(console, run)
    for ended in run.ended:
        # One that was still starting when the others had done everything ends by the signal itself.
        if ended.code not in (0, -signal.SIGTERM):
            console.print(f"{ended}", style="red")
    if run.stopped_by is not None:
        console.print(f"Stopped: {run.stopped_by}", style="red")
    if run.unaccounted:
        console.print(f"{run.unaccounted:,} commands are unaccounted for", style="bold red")
    if run.created < run.plan.order.count:
        console.print(
            f"Only {run.created:,} of {run.plan.order.count:,} commands were generated", style="red"
        )
    _print_left(console, run)
    if run.deletion is not None:
        console.print(
            f"Cancelled {run.deletion.cancelled:,} commands in the troubleshooting queue; deleted"
            f" {run.deletion.deleted:,} commands with their trails; {run.left:,} stay",
            soft_wrap=True,
        )
    console.print(f"Run {run.plan.order.batch_id}")


def _rows(run: Run, comma: str) -> list[tuple[str, str]]:
    """The figures by their labels; *comma* separates thousands."""
    report = results(run)

    def rate(name: str) -> str:
        return _shown(report[name], " commands/sec", comma)

    return [
        *([("Name", run.plan.name)] if run.plan.name else []),
        ("Total Commands", f"{run.plan.order.count:{comma}}"),
        ("Workers", str(run.plan.workers)),
        ("Total Time", f"{run.total_seconds:.2f}s"),
        ("Throughput", rate("throughput_per_second")),
        ("Generation", f"{run.generation_seconds:.2f}s"),
        ("Generated", rate("generated_per_second")),
        ("Waiting for workers", f"{run.waiting_seconds:.2f}s"),
        ("Processing", f"{run.processing_seconds:.2f}s"),
        ("Processed", rate("processed_per_second")),
        *((status, f"{count:{comma}}") for status, count in report["counts"].items() if count),
        ("Retries", f"{report['retried']:{comma}}"),
    ]


def _print_tables(console: Console, run: Run) -> None:
    table = Table(title="Load Test Results", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right")
    for label, value in _rows(run, ","):
        table.add_row(label, value)
    console.print(table)
    latency = Table("", "p50", "p95", "p99", title="Latency Percentiles", title_justify="left")
    for name, part in _latencies(run.progress):
        latency.add_row(name, *(_shown(value, "ms") for value in astuple(part)))
    console.print(latency)


def _print_lines(console: Console, run: Run) -> None:
    """The percentiles without a name are those of the handlers, as in `results`."""
    rule = "=" * 50
    lines = [rule, "Load Test Results", rule]
    lines += [f"{label}: {value}" for label, value in _rows(run, "")]
    lines += ["", "Latency Percentiles:"]
    for name, part in sorted(_latencies(run.progress), key=lambda named: named[0] != "running"):
        prefix = "" if name == "running" else f"{name} "
        lines += [f"  {prefix}{of}: {_shown(ms, 'ms', '')}" for of, ms in asdict(part).items()]
    console.print("\n".join([*lines, ""]), soft_wrap=True, markup=False, highlight=False)


def _print_left(console: Console, run: Run) -> None:
    """What is still to be done, and how."""
    if not run.left:
        return
    run_id = run.plan.order.batch_id
    console.print(f"{run.left:,} commands did not come to an end", style="red")
    for what, how in (
        ("have them done", "python -m app.worker"),
        ("cancel them", f"python load_test.py --cancel {run_id}"),
        ("follow them", f"/load-tests/{run_id} in the web application"),
    ):
        console.print(f"  {what:<15} {how}", soft_wrap=True)


def _print_comparison(console: Console, run: Run) -> None:
    if run.other is None:
        return
    other = terminal_line(run.other.name or str(run.other.run_id))
    if run.comparison is None:
        console.print(f"Not compared with {other}: this run has no outcome yet", style="red")
        return
    table = Table(
        "", "that run", "this run", "change", "", title=f"Compared with {other}",
        title_justify="left",
    )  # fmt: skip
    styles = {Verdict.BETTER: "green", Verdict.WORSE: "red"}
    for figure in run.comparison.figures:
        verdict = figure.verdict
        table.add_row(
            figure.name,
            _shown(figure.first, f" {figure.unit}"),
            _shown(figure.second, f" {figure.unit}"),
            "-" if figure.change_percent is None else f"{figure.change_percent:+.1f}%",
            verdict or "-",
            style=styles.get(verdict) if verdict else None,
        )
    console.print(table)
    _print_differences(console, run.differences)
    for figure in run.unjudged:
        missing = "that run" if figure.first is None else "this run"
        console.print(
            f"Not judged: {figure.name} cannot be compared, {missing} has no figure for it",
            style="bold red",
        )
    for figure in run.regressions:
        console.print(
            f"Regression: {figure.name} is worse by {abs(figure.change_percent or 0):.1f}%,"
            f" more than the {run.plan.max_regression_percent:g}% allowed",
            style="bold red",
        )


def _shown(value: float | None, unit: str, comma: str = ",") -> str:
    return "-" if value is None else f"{value:{comma}.1f}{unit}"


def _print_differences(console: Console, found: list[Difference]) -> None:
    if not found:
        console.print("Both ran with the same settings and versions")
        return
    table = Table(
        "", "that run", "this run", title="Settings that differ", title_justify="left",
        title_style="bold yellow",
    )  # fmt: skip
    for each in found:
        table.add_row(*map(terminal_line, (each.name, each.first, each.second)))
    console.print(table)
