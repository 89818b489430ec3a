"""Load tests: the runs, one of them while it goes on and afterwards, and two side by side."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue

from app.actions import load_tests
from app.loadtest.comparison import compare, differences
from app.loadtest.runs import RunState, request_cancel
from app.models.load_test import elapsed_seconds
from app.models.load_test_runs import RunRow, get_run, list_runs, series_of
from app.models.statistics import RunProgress, run_progress
from app.server import access
from app.server.clock import now
from app.server.errors import Problem
from app.server.portal import call, current_portal
from app.web import bp
from app.web.listing import limit_arg, pager_of, window
from app.web.remembered import current_operator
from app.web.rendering import ask_to_confirm, render_page
from app.web.run_texts import RunView, overlay, title_of

MOVING_SECONDS, RESTING_SECONDS = 1, 5
"""How often the pages refresh by themselves: while a run goes on, and else."""


@bp.get("/load-tests")
@access.viewer
def load_test_runs() -> ResponseReturnValue:
    return render_page("pages/load_tests.html", runs_context(), partials=("load_test_rows",))


@bp.get("/load-tests/<uuid:run_id>")
@access.viewer
def load_test_run(run_id: UUID) -> ResponseReturnValue:
    return render_page("pages/load_test.html", run_context(run_id), partials=("load_test_run",))


@bp.post("/load-tests/<uuid:run_id>/cancel")
@access.operator
def cancel_run(run_id: UUID) -> ResponseReturnValue:
    """Let the generation end; the commands that were sent are processed."""
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
    return render_page("pages/load_test_comparison.html", comparison_context(older, newer))


def runs_context() -> dict[str, Any]:
    """The page of the list that the address asks for."""
    load_tests.settle()
    listing = list_runs(window())
    moment = now()
    views = [
        _view(run, run_progress(run.run_id) if run.is_open else None, moment)
        for run in listing.rows
    ]
    is_moving = any(view.is_moving for view in views)
    return {
        "views": views,
        "pager": pager_of(listing, "run"),
        "limit": limit_arg(),
        "live_seconds": MOVING_SECONDS if is_moving else RESTING_SECONDS,
    }


def _view(run: RunRow, progress: RunProgress | None, moment: datetime) -> RunView:
    moment = moment if progress is None else progress.now
    return RunView(run, progress, moment, elapsed_seconds(run, progress, moment))


def run_context(run_id: UUID) -> dict[str, Any]:
    """One run."""
    load_tests.settle()
    current_portal().fold_soon()
    run = _found(run_id)
    view = _view(run, run_progress(run_id), now())
    series = series_of(run)
    return {
        "view": view,
        "run": run,
        "series": series,
        "times": [int(moment) for moment in series["at"] or []],
        "has_series": any(series["processed_per_second"] or []),
        "live_seconds": MOVING_SECONDS if view.is_moving else RESTING_SECONDS * 12,
        "may_cancel": run.state == RunState.GENERATING and run.cancel_requested_at is None,
    }


def comparison_context(older: RunRow, newer: RunRow) -> dict[str, Any]:
    """Two runs that have ended."""
    seconds, (before, after) = overlay(series_of(older), series_of(newer))
    return {
        "older": older,
        "newer": newer,
        "names": _distinct_names(older, newer),
        "figures": compare(older.outcome or {}, newer.outcome or {}).figures,
        "differences": differences(older.conditions, newer.conditions),
        "seconds": seconds,
        "before": before,
        "after": after,
    }


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
