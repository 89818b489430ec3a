"""The dashboard: how the bus is doing, at a glance."""

from __future__ import annotations

from typing import Any

from flask import flash, redirect, url_for
from flask.typing import ResponseReturnValue

from app.actions import load_tests
from app.actions import workers as local_workers
from app.database.health import findings, look
from app.loadtest.generating import BulkOrder
from app.loadtest.runs import Origin, RunState
from app.models import count_by_status, send_test_command, statistics
from app.models.load_test import latest_load_test
from app.models.load_test_runs import get_run
from app.server import access
from app.server.errors import recent_faults
from app.server.portal import call, current_bus, current_portal
from app.testcommand.behaviors import DEFAULT_BEHAVIOR
from app.web import bp
from app.web.remembered import current_operator
from app.web.rendering import render_page

HISTORY_SECONDS = 15 * 60
HISTORY_STEP_SECONDS = 15
QUICK_LOAD = 100
IDLE_SECONDS, BUSY_SECONDS = 5, 1
"""How often the page refreshes by itself: at rest, and while a load test is on its way."""


@bp.get("/")
@access.viewer
def dashboard() -> ResponseReturnValue:
    return render_page(
        "pages/dashboard.html",
        dashboard_context(),
        partials=("database_findings", "dashboard_counts", "dashboard_run", "dashboard_activity"),
    )


@bp.post("/quick-send")
@access.operator
def quick_send() -> ResponseReturnValue:
    """Send one command that succeeds."""
    sent = call(send_test_command, current_bus(), DEFAULT_BEHAVIOR, {})
    flash(f"Command {sent.command_id} was sent.", "success")
    return redirect(url_for("web.dashboard"), 303)


@bp.post("/quick-load")
@access.operator
def quick_load() -> ResponseReturnValue:
    """Generate a hundred commands that succeed."""
    order = BulkOrder(count=QUICK_LOAD)
    load_tests.begin(order, origin=Origin.PAGE, started_by=current_operator())
    flash(f"{QUICK_LOAD} commands were sent.", "success")
    return redirect(url_for("web.dashboard"), 303)


def dashboard_context() -> dict[str, Any]:
    """Everything that the dashboard and its partials show."""
    current_portal().fold_soon()
    run = latest_load_test()
    recorded = None if run.run_id is None else get_run(run.run_id)
    still_generated = recorded is not None and recorded.state == RunState.GENERATING
    if still_generated:
        load_tests.settle()  # its process may have died; the next refresh knows
    metrics = statistics.metrics()
    points = statistics.history(HISTORY_SECONDS, HISTORY_STEP_SECONDS)
    return {
        "findings": [*findings(call(look, current_portal().pool)), *recent_faults()],
        "counts": {status.value: count for status, count in count_by_status().items()},
        "metrics": metrics,
        "can_start": local_workers.can_start(),
        "run": run if run.pending else None,
        "recorded": recorded,
        "still_generated": still_generated,
        "live_seconds": BUSY_SECONDS if run.pending else IDLE_SECONDS,
        "has_history": any(point.processed for point in points),
        "times": [int(point.at.timestamp()) for point in points],
        "rates": [round(point.processed / HISTORY_STEP_SECONDS, 2) for point in points],
        "latencies_p50": [point.total.p50 for point in points],
        "latencies_p95": [point.total.p95 for point in points],
        "recent_created": statistics.recent_created(),
        "recent_completed": statistics.recent_completed(),
    }
