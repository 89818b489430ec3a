"""Load-test runs: list them, follow and cancel one, compare two."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from app.actions import inputs, load_tests
from app.actions.inputs import Id, Query
from app.api import bp
from app.api.answers import PageOfList
from app.api.commands import paging, window
from app.api.routing import Answer, RunPath
from app.loadtest.comparison import Comparison, compare, differences
from app.loadtest.runs import request_cancel
from app.models.load_test_runs import RunRow, get_run, list_runs, series_of
from app.models.statistics import run_progress
from app.server import access
from app.server.errors import Problem
from app.server.portal import call, current_portal


class RunItem(Answer):
    """A load-test run as it is recorded."""

    run_id: UUID
    name: str | None
    origin: str = Field(description="Where it was started: cli, api or page")
    started_by: str
    state: str = Field(description="generating, running, finished, cancelled or failed")
    count: int = Field(description="How many commands were ordered")
    generated_count: int
    generation_ms: int = Field(description="Making ids and rows")
    queue_ms: int = Field(description="Writing and queueing them")
    settings: dict[str, Any]
    versions: dict[str, Any]
    created_at: datetime
    generated_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    outcome: dict[str, Any] | None = Field(
        description="Counts, rates and percentiles, once every command has ended"
    )


class RunDetail(RunItem):
    """A run with its commands as they stand now, and what its domain did while it ran."""

    counts: dict[str, int] = Field(description="Commands by status, now")
    series: dict[str, Any] = Field(description="Columns for a chart; latencies in milliseconds")


class RunList(PageOfList):
    """A page of runs, the latest first."""

    runs: list[RunItem]


class Figure(Answer):
    """One figure of two runs."""

    name: str
    unit: str
    first: float | None
    second: float | None
    ratio: float | None = Field(description="second / first")
    change_percent: float | None
    verdict: str | None = Field(description="better, worse or same, of the second; null if unclear")


class Difference(Answer):
    """A setting or version in which two runs differ."""

    name: str
    first: str
    second: str


class ComparedRuns(Answer):
    """Two runs side by side."""

    first: RunItem
    second: RunItem
    figures: list[Figure]
    differences: list[Difference] = Field(description="Settings and versions that differ")


class CompareQuery(Query):
    """Which run it is measured against."""

    against: Id


@bp.get("/load-tests", responses={200: RunList})
@access.viewer
def list_load_tests(query: inputs.PageQuery) -> Any:
    """The load-test runs, the latest first."""
    load_tests.settle()
    page = list_runs(window(query))
    return RunList(
        runs=[RunItem.model_validate(row) for row in page.rows],
        **paging(query, page),
    )


@bp.get("/load-tests/<command_id:run_id>", responses={200: RunDetail})
@access.viewer
def show_load_test(path: RunPath) -> Any:
    """One run: how far it is, its settings, and what came of it."""
    load_tests.settle()
    run = _found(path.run_id)
    progress = run_progress(run.run_id)
    counts = {} if progress is None else {s.value: n for s, n in progress.counts.items()}
    item = RunItem.model_validate(run).model_dump()
    return RunDetail(**item, counts=counts, series=series_of(run))


@bp.post("/load-tests/<command_id:run_id>/cancel", responses={202: RunItem})
@access.operator
def cancel_load_test(path: RunPath, body: inputs.ByWhom) -> Any:
    """Let the generation of a run end; what was sent is processed."""
    run = _found(path.run_id)
    if not call(request_cancel, current_portal().pool, run.run_id, body.operator):
        raise Problem(409, "not_generating", f"The run is {run.state}.", current_state=run.state)
    return RunItem.model_validate(_found(path.run_id)), 202


@bp.get("/load-tests/<command_id:run_id>/compare", responses={200: ComparedRuns})
@access.viewer
def compare_load_tests(path: RunPath, query: CompareQuery) -> Any:
    """The figures of a run beside those of another, which is the one it is measured against."""
    load_tests.settle()
    second, first = _found(path.run_id), _found(query.against)
    for run in (first, second):
        if run.outcome is None:
            raise Problem(409, "run_not_finished", f"Run {run.run_id} has no outcome yet.")
    return _compared(first, second, compare(first.outcome or {}, second.outcome or {}))


def _compared(first: RunRow, second: RunRow, comparison: Comparison) -> ComparedRuns:
    return ComparedRuns(
        first=RunItem.model_validate(first),
        second=RunItem.model_validate(second),
        figures=[Figure.model_validate(figure) for figure in comparison.figures],
        differences=[
            Difference.model_validate(difference)
            for difference in differences(first.conditions, second.conditions)
        ],
    )


def _found(run_id: UUID) -> RunRow:
    run = get_run(run_id)
    if run is None:
        raise Problem(404, "unknown_run", f"There is no run {run_id}.")
    return run
