"""Two load-test runs side by side: how their figures differ, and what counts as a regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ABSENT = "\u2013"
"""Stands for a setting that only one of two runs has."""
SAME_WITHIN_PERCENT = 2.0
"""The percentiles come from histograms that are that exact; a smaller change means nothing."""


class Verdict(StrEnum):
    """What the second run did with a figure."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of two runs."""

    name: str
    unit: str
    first: float | None
    second: float | None
    more_is_better: bool

    @property
    def ratio(self) -> float | None:
        """Second over first; None where there is nothing to divide."""
        if not self.first or self.second is None:
            return None
        return round(self.second / self.first, 4)

    @property
    def change_percent(self) -> float | None:
        """How much larger the second is, in percent of the first."""
        return None if self.ratio is None else round((self.ratio - 1) * 100, 2)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the second run was better."""
        change = self.change_percent
        if change is None:
            return None
        if abs(change) <= SAME_WITHIN_PERCENT:
            return Verdict.SAME
        return Verdict.BETTER if (change > 0) == self.more_is_better else Verdict.WORSE

    @property
    def is_unjudged(self) -> bool:
        """Whether nothing can be said, because one run has no such figure."""
        return self.change_percent is None and not self.first == self.second == 0

    def is_worse_by(self, percent: float) -> bool:
        """Whether the second run fell behind the first by more than *percent* of it."""
        change = self.change_percent
        if change is None:
            return False
        return (-change if self.more_is_better else change) > percent


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting in which two runs differ, and what it was in each."""

    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of two runs; the first is what the second is measured against."""

    figures: list[Figure]

    def regressions(self, percent: float) -> list[Figure]:
        """Throughput and 95th percentiles that are worse by more than *percent*."""
        return [
            figure
            for figure in self.figures
            if figure.name in _GUARDED and figure.is_worse_by(percent)
        ]

    def unjudged(self) -> list[Figure]:
        """Those of the same figures that cannot be compared: they must not pass for good."""
        return [f for f in self.figures if f.name in _GUARDED and f.is_unjudged]


_GUARDED = ("throughput", "total p95", "run p95")
_PERCENTILES = ("p50", "p95", "p99")


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Put the outcomes of two runs, as they are recorded, side by side."""
    figures = [
        Figure(
            "throughput",
            "commands/s",
            first.get("throughput_per_second"),
            second.get("throughput_per_second"),
            more_is_better=True,
        ),
        Figure(
            "elapsed",
            "s",
            first.get("elapsed_seconds"),
            second.get("elapsed_seconds"),
            more_is_better=False,
        ),
    ]
    for part in ("wait", "run", "total"):
        for position, percentile in enumerate(_PERCENTILES):
            figures.append(
                Figure(
                    f"{part} {percentile}",
                    "ms",
                    _percentile(first, part, position),
                    _percentile(second, part, position),
                    more_is_better=False,
                )
            )
    return Comparison(figures)


def _percentile(outcome: Mapping[str, Any], part: str, position: int) -> float | None:
    values = outcome.get(f"{part}_ms") or [None] * len(_PERCENTILES)
    value = values[position]
    return None if value is None else float(value)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """In which settings two runs differ; those within others are named with a colon."""
    flat = _flat(first), _flat(second)
    names = sorted(flat[0].keys() | flat[1].keys())
    each = [
        Difference(name, flat[0].get(name, ABSENT), flat[1].get(name, ABSENT)) for name in names
    ]
    return [difference for difference in each if difference.first != difference.second]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        label = f"{prefix}{name}".replace("_", " ").replace("-", " ")
        if isinstance(value, dict):
            flat |= _flat(value, f"{label}: ")
        else:
            flat[label] = ABSENT if value is None else str(value)
    return flat
