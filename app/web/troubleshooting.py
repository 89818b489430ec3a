"""Troubleshooting queue: what needs an operator, alone and in groups, and what operators did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from flask import request
from flask.typing import ResponseReturnValue

from app.actions.jobs import AT_ONCE, current_runner
from app.models import (
    TroubledFilters,
    Window,
    count_by_status,
    error_codes,
    find_commands,
    get_group_name,
    list_groups,
    list_rejected,
    list_troubled,
)
from app.models.operator_jobs import list_jobs
from app.models.paging import LARGEST_ID
from app.models.search_texts import id_text
from app.server import access
from app.server.portal import call, current_portal
from app.testcommand import store
from app.web import bp
from app.web.commands import domain_choices
from app.web.job_texts import looks_of
from app.web.listing import limit_arg, pager_of, parsed_arg, text_arg, window
from app.web.rendering import live_url, render_page, url_with
from commandbus.models import CommandStatus
from commandbus.pools import autocommit

VIEWS = {
    "commands": "Commands",
    "groups": "Groups",
    "rejected": "Rejected messages",
    "actions": "Actions",
}
FILTER_NAMES = ("domain", "command_type", "error_code", "group_id", "q")
TREND_HEIGHT = 24


@dataclass(frozen=True, slots=True)
class Bar:
    """One hour of a trend, as a rectangle of a drawing."""

    x: int
    y: float
    height: float
    is_empty: bool


@bp.get("/troubleshooting")
@access.viewer
def troubleshooting() -> ResponseReturnValue:
    current_runner().adopt()
    return render_page(
        "pages/troubleshooting.html",
        troubleshooting_context(),
        partials=tuple(f"tsq_{name}" for name in VIEWS),
    )


def troubleshooting_context() -> dict[str, Any]:
    """The frame of the page, and the view that the address asks for."""
    view = request.args.get("view", "commands")
    view = view if view in VIEWS else "commands"
    in_queue = count_by_status()[CommandStatus.IN_TSQ]
    return {
        "view": view,
        "partial": f"tsq_{view}",
        "live": live_url(f"tsq_{view}"),
        "in_queue": in_queue,
        "tabs": [
            (_tab(name, label, in_queue), _url(name), name == view) for name, label in VIEWS.items()
        ],
        "at_once": AT_ONCE,
        "back": url_with(),
        **_VIEW_CONTEXTS[view](),
    }


def troubled_filters() -> TroubledFilters:
    """The filters that the address names."""
    return TroubledFilters(
        domain=text_arg("domain"),
        command_type=text_arg("command_type"),
        error_code=text_arg("error_code"),
        group_id=parsed_arg("group_id", UUID),
        q=text_arg("q"),
    )


def trend_bars(trend: list[int]) -> list[Bar]:
    """The trend as bars; an hour with anything in it is seen."""
    top = max(trend, default=0) or 1
    bars = []
    for hour, count in enumerate(trend):
        height = max(round(count / top * TREND_HEIGHT, 2), 2.0) if count else 1.0
        bars.append(Bar(hour * 5, TREND_HEIGHT - height, height, count == 0))
    return bars


def _commands_context() -> dict[str, Any]:
    filters = troubled_filters()
    listing = list_troubled(filters, window())
    group = None if filters.group_id is None else get_group_name(filters.group_id)
    return {
        "filters": {name: text_arg(name) or "" for name in FILTER_NAMES},
        "is_filtered": filters != TroubledFilters(),
        "group": group,
        "elsewhere": _is_elsewhere(filters) if not listing.rows else False,
        "domain_choices": domain_choices(),
        "code_choices": _code_choices(filters.error_code),
        "listing": listing,
        "behaviors": _behaviors([row.command_id for row in listing.rows]),
        "pager": pager_of(listing, "command"),
    }


def _is_elsewhere(filters: TroubledFilters) -> bool:
    """Whether the id that is searched for is a command's that is not in the queue."""
    ids = id_text(filters.q or "")
    if filters.q is None or ids is None or not ids.names_one:
        return False
    return (
        bool(find_commands(filters.q, 1))
        and not list_troubled(TroubledFilters(q=filters.q), Window(1)).rows
    )


def _code_choices(current: str | None) -> list[tuple[str, str]]:
    """The codes in the queue, and the one that is filtered by in any case."""
    codes = error_codes()
    if current is not None and current not in codes:
        codes.insert(0, current)
    return [("", "Any"), *((code, code) for code in codes)]


def _behaviors(command_ids: list[UUID]) -> dict[UUID, Any]:
    """What the test commands among these shall do."""
    pool = current_portal().pool

    async def read() -> dict[UUID, store.TestCommandRow]:
        async with autocommit(pool) as conn:
            return await store.get_test_commands(conn, command_ids)

    return {command_id: row.behavior for command_id, row in call(read).items()}


def _groups_context() -> dict[str, Any]:
    groups, total = list_groups(text_arg("domain"))
    return {
        "groups": [(group, trend_bars(group.trend)) for group in groups],
        "total_groups": total,
    }


def _rejected_context() -> dict[str, Any]:
    before = parsed_arg("before", int)
    limit = limit_arg()
    usable = before if before is not None and 0 < before <= LARGEST_ID else None
    rows = list_rejected(limit + 1, usable)
    shown = rows[:limit]
    return {
        "rejected": shown,
        "limit": limit,
        "first_url": url_with(before=None) if usable else "",
        "next_url": url_with(before=shown[-1].rejected_id) if len(rows) > limit else "",
    }


def _actions_context() -> dict[str, Any]:
    before = parsed_arg("before", UUID)
    limit = limit_arg()
    jobs = list_jobs(limit + 1, before)
    shown = jobs[:limit]
    return {
        "jobs": [(job, looks_of(job)) for job in shown],
        "limit": limit,
        "first_url": url_with(before=None) if before else "",
        "next_url": url_with(before=shown[-1].job_id) if len(jobs) > limit else "",
    }


_VIEW_CONTEXTS = {
    "commands": _commands_context,
    "groups": _groups_context,
    "rejected": _rejected_context,
    "actions": _actions_context,
}


def _tab(name: str, label: str, in_queue: int) -> str:
    return f"{label} {in_queue:,}" if name == "commands" and in_queue else label


def _url(view: str) -> str:
    path = request.script_root + request.path
    return path if view == "commands" else f"{path}?view={view}"
