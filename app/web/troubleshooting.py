"""Troubleshooting queue: commands that need an operator, groups of like failures, and actions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from flask import request
from flask.typing import ResponseReturnValue

from app.actions.jobs import current_runner
from app.actions.troubled import AT_ONCE
from app.models import (
    TROUBLED_FILTER_NAMES,
    GroupRow,
    Listing,
    RejectedRow,
    TroubledFilters,
    TroubledRow,
    Window,
    count_by_status,
    error_codes,
    find_commands,
    get_group_name,
    list_groups,
    list_rejected,
    list_troubled,
)
from app.models.operator_jobs import JobSummary, list_jobs
from app.models.paging import LARGEST_ID, Total
from app.models.search_texts import id_text
from app.models.troubleshooting import GroupName
from app.server import access
from app.server.portal import call, current_portal
from app.testcommand import store
from app.web import bp
from app.web.job_texts import JobLooks, looks_of
from app.web.listing import Pager, domain_choices, limit_arg, pager_of, parsed_arg, text_arg, window
from app.web.rendering import PageContext, live_url, render_page, url_with
from commandbus.models import CommandStatus
from commandbus.pools import autocommit

VIEWS = {
    "commands": "Commands",
    "groups": "Groups",
    "rejected": "Rejected",
    "actions": "Actions",
}
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
    view = _VIEWS.get(request.args.get("view", ""), CommandsView)
    context = view()
    return render_page("pages/troubleshooting.html", context, partials=(context.partial,))


class Queue(PageContext):
    """The frame of the page. A subclass for each view holds the values of that view."""

    view: str
    at_once = AT_ONCE

    @property
    def partial(self) -> str:
        """The part that shows the view."""
        return f"tsq_{self.view}"

    @property
    def live(self) -> str:
        """The address of its refresh."""
        return live_url(self.partial)

    @cached_property
    def in_queue(self) -> int:
        """How many commands are in the queue."""
        return count_by_status()[CommandStatus.IN_TSQ]

    @property
    def tabs(self) -> list[tuple[str, str, bool]]:
        """The views with their addresses, and which one is open."""
        return [
            (_tab(name, label, self.in_queue), _url(name), name == self.view)
            for name, label in VIEWS.items()
        ]

    @property
    def back(self) -> str:
        """The address of this page."""
        return url_with()


class CommandsView(Queue):
    """The commands in the queue."""

    view = "commands"

    def __init__(self) -> None:
        self._wanted = troubled_filters()

    @cached_property
    def listing(self) -> Listing[TroubledRow]:
        """The commands of this page."""
        # The counters that say how many commands are in the queue are asked once.
        total = None if self.is_filtered else Total(self.in_queue, is_exact=True)
        return list_troubled(self._wanted, window(), total=total)

    @property
    def pager(self) -> Pager:
        """The way to the other pages."""
        return pager_of(self.listing, "command")

    @cached_property
    def behaviors(self) -> dict[UUID, Any]:
        """The behaviour of the test commands among these."""
        return _behaviors([row.command_id for row in self.listing.rows])

    @property
    def filters(self) -> dict[str, str]:
        """The filters as the form shows them."""
        return {name: text_arg(name) or "" for name in TROUBLED_FILTER_NAMES}

    @property
    def is_filtered(self) -> bool:
        """Whether anything narrows the list."""
        return self._wanted != TroubledFilters()

    @cached_property
    def group(self) -> GroupName | None:
        """The group whose commands are listed."""
        return None if self._wanted.group_id is None else get_group_name(self._wanted.group_id)

    @cached_property
    def elsewhere(self) -> bool:
        """Whether the command that was searched for exists and is not in the queue."""
        return not self.listing.rows and _is_elsewhere(self._wanted)

    @property
    def domain_choices(self) -> list[tuple[str, str]]:
        """What the filter by domain offers."""
        return domain_choices()

    @property
    def code_choices(self) -> list[tuple[str, str]]:
        """What the filter by error code offers."""
        return _code_choices(self._wanted.error_code)


class GroupsView(Queue):
    """Groups of like failures."""

    view = "groups"

    @cached_property
    def _found(self) -> tuple[list[GroupRow], int]:
        return list_groups(text_arg("domain"))

    @property
    def groups(self) -> list[tuple[GroupRow, list[Bar]]]:
        """The largest groups, each with its trend."""
        return [(group, trend_bars(group.trend)) for group in self._found[0]]

    @property
    def total_groups(self) -> int:
        """How many groups there are."""
        return self._found[1]


class RejectedView(Queue):
    """Messages that no command explains."""

    view = "rejected"

    def __init__(self) -> None:
        before = parsed_arg("before", int)
        self._before = before if before is not None and 0 < before <= LARGEST_ID else None
        self.limit = limit_arg()

    @cached_property
    def _found(self) -> list[RejectedRow]:
        return list_rejected(self.limit + 1, self._before)

    @property
    def rejected(self) -> list[RejectedRow]:
        """The messages of this page."""
        return self._found[: self.limit]

    @property
    def first_url(self) -> str:
        """The address of the first page; empty on that page."""
        return url_with(before=None) if self._before else ""

    @property
    def next_url(self) -> str:
        """The address of the next page; empty on the last one."""
        is_last = len(self._found) <= self.limit
        return "" if is_last else url_with(before=self.rejected[-1].rejected_id)


class ActionsView(Queue):
    """What operators did."""

    view = "actions"

    def __init__(self) -> None:
        self._before = parsed_arg("before", UUID)
        self.limit = limit_arg()

    @cached_property
    def _found(self) -> list[JobSummary]:
        return list_jobs(self.limit + 1, self._before)

    @property
    def jobs(self) -> list[tuple[JobSummary, JobLooks]]:
        """The actions of this page."""
        return [(job, looks_of(job)) for job in self._found[: self.limit]]

    @property
    def first_url(self) -> str:
        """The address of the first page; empty on that page."""
        return url_with(before=None) if self._before else ""

    @property
    def next_url(self) -> str:
        """The address of the next page; empty on the last one."""
        is_last = len(self._found) <= self.limit
        return "" if is_last else url_with(before=self._found[self.limit - 1].job_id)


_VIEWS: dict[str, type[Queue]] = {
    each.view: each for each in (CommandsView, GroupsView, RejectedView, ActionsView)
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
    """The behaviours of the test commands among these."""
    pool = current_portal().pool

    async def read() -> dict[UUID, store.TestCommandRow]:
        async with autocommit(pool) as conn:
            return await store.get_test_commands(conn, command_ids)

    return {command_id: row.behavior for command_id, row in call(read).items()}


def _tab(name: str, label: str, in_queue: int) -> str:
    return f"{label} {in_queue:,}" if name == "commands" and in_queue else label


def _url(view: str) -> str:
    path = request.script_root + request.path
    return path if view == "commands" else f"{path}?view={view}"
