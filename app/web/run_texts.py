"""Load-test runs as pages show them: states, figures and series in words and rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from app.loadtest.runs import Origin, RunState
from app.models.load_test_runs import RunRow
from app.models.statistics import RunProgress
from app.visible import visible
from commandbus.models import CommandStatus, Percentiles

ORIGINS = {Origin.CLI: "Command line", Origin.API: "API", Origin.PAGE: "Page"}
STATES = {
    RunState.GENERATING: ("Generating", "progress"),
    RunState.RUNNING: ("Running", "progress"),
    RunState.FINISHED: ("Finished", "completed"),
    RunState.CANCELLED: ("Cancelled", "cancelled"),
    RunState.FAILED: ("Failed", "failed"),
}
UNNAMED = "Unnamed run"
SERIES = ("processed_per_second", "sent_per_second", "total_p50_ms", "total_p95_ms")


class Latency(NamedTuple):
    """One row of the table of latencies, in milliseconds."""

    label: str
    average: float | None
    percentiles: Percentiles


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with everything that the pages say about it."""

    run: RunRow
    progress: RunProgress | None
    """Its commands now; None before the first one was sent, and once they were pruned."""
    now: datetime
    elapsed_seconds: float
    """How long it has lasted, or lasted in total."""

    @property
    def title(self) -> str:
        return title_of(self.run)

    @property
    def state(self) -> tuple[str, str]:
        """Word and tone."""
        return STATES[RunState(self.run.state)]

    @property
    def origin(self) -> str:
        return ORIGINS[Origin(self.run.origin)]

    @property
    def starter(self) -> str | None:
        """Who started it; None if only its origin is known."""
        name = self.run.started_by
        return None if name.lower() in ("", self.run.origin) else name

    @property
    def is_generating(self) -> bool:
        return self.run.state == RunState.GENERATING

    @property
    def is_moving(self) -> bool:
        """Whether it changes by itself from second to second."""
        return self.run.finished_at is None

    @property
    def counts(self) -> dict[str, int]:
        """Its commands by status: as recorded when the run ended, until then as they are."""
        if self.run.outcome is not None:
            return dict(self.run.outcome["counts"])
        if self.progress is None:
            return dict.fromkeys(CommandStatus, 0)
        return {status.value: count for status, count in self.progress.counts.items()}

    @property
    def generated(self) -> int:
        """How many were sent; the generator reports only twice a second."""
        return max(self.run.generated_count, sum(self.counts.values()))

    @property
    def open(self) -> int:
        return self.counts[CommandStatus.PENDING] + self.counts[CommandStatus.IN_PROGRESS]

    @property
    def done(self) -> int:
        return sum(self.counts.values()) - self.open

    @property
    def wanted(self) -> int:
        """How many will be processed: those ordered, or those sent if generating has stopped."""
        over = self.run.state in (RunState.CANCELLED, RunState.FAILED)
        return self.generated if over else self.run.count

    @property
    def commands(self) -> str:
        """1,000; 220 of 1,000 where no more will be sent."""
        if self.wanted == self.run.count:
            return f"{self.run.count:,}"
        return f"{self.wanted:,} of {self.run.count:,}"

    @property
    def rate(self) -> float:
        """Commands that workers did per second, from the first generated to the last one ended."""
        if self.run.outcome is not None:
            return float(self.run.outcome["throughput_per_second"])
        if self.progress is None or not self.elapsed_seconds:
            return 0.0
        return self.progress.processed / self.elapsed_seconds

    @property
    def generation_rate(self) -> float | None:
        """Commands generated per second; None before any was."""
        end = self.run.generated_at or self.now
        seconds = (end - self.run.created_at).total_seconds()
        return self.generated / seconds if seconds > 0 and self.generated else None

    @property
    def generation_left_seconds(self) -> float | None:
        rate = self.generation_rate
        return None if rate is None else (self.run.count - self.generated) / rate

    @property
    def left_seconds(self) -> float | None:
        """How long the rest takes at the rate so far; None while nothing is done."""
        return None if not self.rate else (self.wanted - self.done) / self.rate

    @property
    def latencies(self) -> list[Latency]:
        """Waiting, running and both; empty while nothing was measured."""
        if self.run.outcome is not None:
            return latencies_of(self.run.outcome)
        if self.progress is None or not self.progress.processed:
            return []
        return [
            Latency("Waiting", self.progress.avg_wait_ms, self.progress.wait),
            Latency("Running", self.progress.avg_run_ms, self.progress.run),
            Latency("Total", None, self.progress.total),
        ]

    @property
    def retried(self) -> int:
        if self.run.outcome is not None:
            return int(self.run.outcome["retried"])
        return 0 if self.progress is None else self.progress.retried


def title_of(run: RunRow) -> str:
    """The run's name, or what stands for one."""
    return visible(run.name or UNNAMED)


def latencies_of(outcome: dict[str, Any]) -> list[Latency]:
    """The latencies of a run that has ended; empty where nothing was processed."""
    if not outcome["processed"]:
        return []
    return [
        Latency("Waiting", outcome["avg_wait_ms"], Percentiles(*outcome["wait_ms"])),
        Latency("Running", outcome["avg_run_ms"], Percentiles(*outcome["run_ms"])),
        Latency("Total", None, Percentiles(*outcome["total_ms"])),
    ]


Columns = dict[str, list[float | None]]


def overlay(first: dict[str, Any], second: dict[str, Any]) -> tuple[list[int], list[Columns]]:
    """Two series over the seconds since their starts: the common axis, and the columns of each.

    The finer one is averaged over the steps of the coarser one.
    """
    step = max(first["step_seconds"], second["step_seconds"])
    parts = [_resampled(series, step) for series in (first, second)]
    length = max(len(part[SERIES[0]]) for part in parts)
    for part in parts:
        for name in SERIES:
            part[name] += [None] * (length - len(part[name]))
    return [position * step for position in range(length)], parts


def _resampled(series: dict[str, Any], step: int) -> Columns:
    at = series["at"] or []
    steps: list[list[int]] = []
    for position, moment in enumerate(at):
        index = int((moment - at[0]) // step)
        steps += [[] for _ in range(index + 1 - len(steps))]
        steps[index].append(position)
    return {name: [_average(series[name], each) for each in steps] for name in SERIES}


def _average(values: list[float | None], positions: list[int]) -> float | None:
    known = [value for position in positions if (value := values[position]) is not None]
    return round(sum(known) / len(known), 3) if known else None
