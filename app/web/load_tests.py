"""Load tests: the list of runs, the page of one run, and two runs side by side."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue

from app.actions import load_tests
from app.loadtest.comparison import Difference, compare, differences
from app.loadtest.runs import RunState, request_cancel
from app.models.load_test import elapsed_seconds
from app.models.load_test_runs import RunRow, get_run, list_runs, series_of
from app.models.paging import Listing
from app.models.statistics import RunProgress, run_progress, run_progresses
from app.server import access
from app.server.clock import now
from app.server.errors import Problem
from app.server.portal import call, current_portal
from app.web import bp
from app.web.listing import Pager, limit_arg, pager_of, window
from app.web.remembered import current_operator
from app.web.rendering import PageContext, ask_to_confirm, render_page
from app.web.run_texts import Columns, RunView, overlay, title_of

MOVING_SECONDS, RESTING_SECONDS = 1, 5
"""How often the pages refresh by themselves: while a run goes on, and otherwise."""


@bp.get("/load-tests")
@access.viewer
def load_test_runs() -> ResponseReturnValue:
    return render_page("pages/load_tests.html", Runs(), partials=("load_test_rows",))


@bp.get("/load-tests/<uuid:run_id>")
@access.viewer
def load_test_run(run_id: UUID) -> ResponseReturnValue:
    return render_page("pages/load_test.html", Run(run_id), partials=("load_test_run",))


@bp.post("/load-tests/<uuid:run_id>/cancel")
@access.operator
def cancel_run(run_id: UUID) -> ResponseReturnValue:
    """End the generation; the commands that were sent are still processed."""
    run = _found(run_id)
    back = url_for("web.load_test_run", run_id=run_id)
    if question := ask_to_confirm(
        title="Stop generating",
        message=f"Stop generating for {title_of(run)}?"
        " The commands already sent are still processed.",
        action="Stop generating",
        back=back,
    ):
        return question
    if call(request_cancel, current_portal().pool, run_id, current_operator()):
        flash("Generating stops. The commands already sent are still processed.", "success")
    else:
        flash("Generating had already ended.", "info")
    return redirect(back, 303)


@bp.get("/load-tests/compare")
@access.viewer
def compare_runs() -> ResponseReturnValue:
    ids = list(dict.fromkeys(request.args.getlist("run")))
    if len(ids) != 2:
        flash("Select exactly two runs.", "warning")
        return redirect(url_for("web.load_test_runs"), 303)
    load_tests.settle()
    older, newer = sorted((_named(text) for text in ids), key=lambda run: run.created_at)
    unfinished = [run for run in (older, newer) if run.outcome is None]
    if unfinished:
        flash(f"{title_of(unfinished[0])} has not ended yet; compare it when it has.", "warning")
        return redirect(url_for("web.load_test_runs"), 303)
    return render_page("pages/load_test_comparison.html", Comparison(older, newer))


class Runs(PageContext):
    """The values of the list of runs: the page of it that the address asks for."""

    @cached_property
    def _listing(self) -> Listing[RunRow]:
        load_tests.settle()
        return list_runs(window())

    @cached_property
    def views(self) -> list[RunView]:
        """The runs of this page."""
        rows = self._listing.rows
        progresses = run_progresses([run.run_id for run in rows if run.is_open])
        moment = now()
        return [_view(run, progresses.get(run.run_id), moment) for run in rows]

    @property
    def pager(self) -> Pager:
        """The way to the other pages."""
        return pager_of(self._listing, "run")

    @property
    def limit(self) -> int:
        """How many runs a page has."""
        return limit_arg()

    @property
    def live_seconds(self) -> int:
        """How often the page refreshes."""
        is_moving = any(view.is_moving for view in self.views)
        return MOVING_SECONDS if is_moving else RESTING_SECONDS


class Run(PageContext):
    """The values of the page of one run. Raises Problem 404 where there is no such run."""

    def __init__(self, run_id: UUID) -> None:
        run = _found(run_id)
        if run.is_open:
            load_tests.settle()
            current_portal().fold_soon()
            run = _found(run_id)
        self.run = run

    @cached_property
    def view(self) -> RunView:
        """The run with its figures."""
        # The figures of a run that has ended are recorded with it.
        progress = None if self.run.outcome is not None else run_progress(self.run.run_id)
        return _view(self.run, progress, now())

    @cached_property
    def series(self) -> dict[str, Any]:
        """The columns of the charts."""
        return series_of(self.run)

    @property
    def times(self) -> list[int]:
        """When each step of the charts begins."""
        return [int(moment) for moment in self.series["at"] or []]

    @property
    def has_series(self) -> bool:
        """Whether anything was processed while the run lasted."""
        return any(self.series["processed_per_second"] or [])

    @property
    def live_seconds(self) -> int:
        """How often the page refreshes."""
        return MOVING_SECONDS if self.view.is_moving else RESTING_SECONDS * 12

    @property
    def may_cancel(self) -> bool:
        """Whether its generation can be ended."""
        return self.run.state == RunState.GENERATING and self.run.cancel_requested_at is None


class Comparison(PageContext):
    """The values of the page that compares two runs; both have ended."""

    def __init__(self, older: RunRow, newer: RunRow) -> None:
        self.older, self.newer = older, newer
        self.names = _distinct_names(older, newer)
        self.figures = compare(older.outcome or {}, newer.outcome or {}).figures
        self.differences = _told(differences(older.conditions, newer.conditions))

    @cached_property
    def _overlay(self) -> tuple[list[int], list[Columns]]:
        return overlay(series_of(self.older), series_of(self.newer))

    @property
    def seconds(self) -> list[int]:
        """The common axis of the charts."""
        return self._overlay[0]

    @property
    def before(self) -> Columns:
        """The columns of the older run."""
        return self._overlay[1][0]

    @property
    def after(self) -> Columns:
        """The columns of the newer run."""
        return self._overlay[1][1]


def _view(run: RunRow, progress: RunProgress | None, moment: datetime) -> RunView:
    moment = moment if progress is None else progress.now
    return RunView(run, progress, moment, elapsed_seconds(run, progress, moment))


def _told(found: list[Difference]) -> list[Difference]:
    """The workers first. The counts of each type say what the distribution in percent says."""
    told = [each for each in found if not each.name.startswith("distribution")]
    return sorted(told, key=lambda each: (not each.name.startswith("workers"), each.name))


def _distinct_names(older: RunRow, newer: RunRow) -> tuple[str, str]:
    names = title_of(older), title_of(newer)
    if names[0] != names[1]:
        return names
    return f"{names[0]} {str(older.run_id)[:8]}", f"{names[1]} {str(newer.run_id)[:8]}"


def _named(text: str) -> RunRow:
    try:
        return _found(UUID(text))
    except ValueError as exc:
        raise Problem(404, "unknown_run", "There is no such run.") from exc


def _found(run_id: UUID) -> RunRow:
    run = get_run(run_id)
    if run is None:
        raise Problem(404, "unknown_run", f"There is no run {run_id}.")
    return run
