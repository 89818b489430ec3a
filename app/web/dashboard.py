"""The dashboard: how the bus is doing, at a glance."""

from __future__ import annotations

from typing import Any

from flask.typing import ResponseReturnValue

from app import access
from app.web import bp
from app.web.rendering import render_page
from app.web.vocabulary import STATUSES


@bp.get("/")
@access.viewer
def dashboard() -> ResponseReturnValue:
    return render_page(
        "pages/dashboard.html",
        dashboard_context(),
        partials=("dashboard_counts", "dashboard_activity"),
    )


def dashboard_context() -> dict[str, Any]:
    """Everything that the dashboard and its partials show."""
    return {
        "counts": dict.fromkeys(STATUSES, 0),
        "metrics": {
            "processing_rate_per_minute": 0,
            "avg_processing_time_ms": None,
            "queue_depth": 0,
            "oldest_pending_seconds": None,
            "active_workers": 0,
        },
        "history": [],
        "recent_created": [],
        "recent_completed": [],
    }
