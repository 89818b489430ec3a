"""What a load test was to do, what it did, and how that is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from app.bulk import BulkOrder, BulkResult
from app.processes import EndedProcess
from commandbus import BatchProgress


@dataclass(frozen=True)
class Plan:
    """What to do."""

    order: BulkOrder
    name: str
    workers: int
    flags: dict[str, int]
    stall_seconds: float
    delete: bool


@dataclass
class Run:
    """What was done, filled in as it happens."""

    plan: Plan
    generated: BulkResult | None = None
    generation_seconds: float = 0.0
    processing_seconds: float = 0.0
    """From the first command seen to be taken to the last one seen to end."""
    total_seconds: float = 0.0
    progress: BatchProgress | None = None
    ended: list[EndedProcess] = field(default_factory=list)
    stopped_by: str | None = None

    @property
    def created(self) -> int:
        return 0 if self.generated is None else self.generated.created

    @property
    def finished(self) -> int:
        """Commands that a worker brought to an end, or to the troubleshooting queue."""
        return 0 if self.progress is None else self.progress.sent - self.progress.open

    @property
    def unaccounted(self) -> int:
        """Commands that were created and are in no state that the batch knows."""
        return self.created - sum(self.progress.counts.values()) if self.progress else self.created

    @property
    def is_complete(self) -> bool:
        return self.created == self.finished == self.plan.order.count and self.unaccounted == 0


def results(run: Run) -> dict[str, Any]:
    """Everything that is known of the run, for machines."""
    progress = run.progress
    return {
        "name": run.plan.name,
        "batch_id": str(run.plan.order.batch_id),
        "commands": run.plan.order.count,
        "created": run.created,
        "finished": run.finished,
        "unaccounted": run.unaccounted,
        "complete": run.is_complete,
        "stopped_by": run.stopped_by,
        "workers": run.plan.workers,
        "worker_options": run.plan.flags,
        "workers_ended": [{"pid": ended.pid, "code": ended.code} for ended in run.ended],
        "types": {kind.value: count for kind, count in run.plan.order.types().items()},
        "counts": {status.value: n for status, n in progress.counts.items()} if progress else {},
        "retried": progress.retried if progress else 0,
        "generation_seconds": round(run.generation_seconds, 3),
        "processing_seconds": round(run.processing_seconds, 3),
        "total_seconds": round(run.total_seconds, 3),
        "generated_per_second": _rate(run.created, run.generation_seconds),
        "processed_per_second": _rate(run.finished, run.processing_seconds),
        "throughput_per_second": _rate(run.finished, run.total_seconds),
        "latency_ms": {
            name: dataclasses.asdict(part)
            for name, part in (
                (
                    ("waiting", progress.wait_ms),
                    ("running", progress.run_ms),
                    ("total", progress.total_ms),
                )
                if progress
                else ()
            )
        },
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if seconds > 0 else None


def print_results(console: Console, run: Run) -> None:
    """The same for people."""
    report = results(run)
    table = Table(title="Load Test Results", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right")
    rows = [
        ("Name", run.plan.name),
        ("Total Commands", f"{run.plan.order.count:,}"),
        ("Workers", str(run.plan.workers)),
        ("Total Time", f"{run.total_seconds:.2f}s"),
        ("Throughput", _shown(report["throughput_per_second"], " commands/sec")),
        ("Generation", f"{run.generation_seconds:.2f}s"),
        ("Generated", _shown(report["generated_per_second"], " commands/sec")),
        ("Processing", f"{run.processing_seconds:.2f}s"),
        ("Processed", _shown(report["processed_per_second"], " commands/sec")),
        *((status, f"{count:,}") for status, count in report["counts"].items() if count),
        ("Retries", f"{report['retried']:,}"),
    ]
    for label, value in rows:
        table.add_row(label, value)
    console.print(table)
    latency = Table("", "p50", "p95", "p99", title="Latency Percentiles", title_justify="left")
    for name, part in report["latency_ms"].items():
        latency.add_row(name, *(_shown(part[each], "ms") for each in ("p50", "p95", "p99")))
    console.print(latency)
    for ended in run.ended:
        if ended.code != 0:
            console.print(f"{ended}", style="red")
    if run.stopped_by is not None:
        console.print(f"Stopped: {run.stopped_by}", style="red")
    if run.unaccounted:
        console.print(f"{run.unaccounted:,} commands are unaccounted for", style="bold red")
    elif not run.is_complete:
        missing = run.plan.order.count - run.finished
        console.print(f"{missing:,} commands did not come to an end", style="red")
    console.print(f"Run {run.plan.order.batch_id}")


def _shown(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.1f}{unit}"
