"""Audit trail: the events of one command, and a search over those of all commands."""

from __future__ import annotations

from functools import cached_property
from uuid import UUID

from flask import redirect, url_for
from flask.typing import ResponseReturnValue

from app.models import (
    CommandRow,
    CursorError,
    EventFilters,
    EventListing,
    EventRow,
    command_row,
    domains_of,
    find_commands,
    get_trail,
    search_events,
)
from app.models.audit import TRAIL_LIMIT, parse_event_cursor
from app.models.paging import Unseen
from app.models.trail import Attempt, AttemptOutcome, attempts_of
from app.server import access
from app.web import bp
from app.web.commands import MOVING_SECONDS, RESTING_SECONDS
from app.web.listing import (
    PeriodPage,
    choice_arg,
    limit_arg,
    parsed_arg,
    text_arg,
)
from app.web.rendering import PageContext, render_page, url_with
from app.web.timeline import Section, outcomes_of, sections_of, summary_of, total_ms
from app.web.vocabulary import EVENTS
from commandbus.models import AuditEventType

FILTER_NAMES = ("event_type", "domain", "since", "until")
SHOWN_MATCHES = 20


@bp.get("/audit")
@access.viewer
def audit() -> ResponseReturnValue:
    text = text_arg("id")
    if text is not None:
        found = find_commands(text, SHOWN_MATCHES + 1)
        if len(found) == 1:
            [key] = found
            return redirect(url_for("web.audit_trail", command_id=key.command_id))
        matches = {"text": text, "found": found[:SHOWN_MATCHES], "more": len(found) > SHOWN_MATCHES}
        return render_page("pages/audit_matches.html", matches)
    return render_page("pages/audit.html", Events(), partials=("audit_events",))


@bp.get("/audit/<uuid:command_id>")
@access.viewer
def audit_trail(command_id: UUID) -> ResponseReturnValue:
    return render_page("pages/audit_trail.html", Trail(command_id), partials=("audit_trail",))


@bp.get("/audit/<text>")
@access.viewer
def audit_search(text: str) -> ResponseReturnValue:
    """Search for a text that is no whole id."""
    return redirect(url_for("web.audit", id=text))


class Events(PeriodPage):
    """The values of the search over all events: the page of it that the address asks for."""

    filter_names = FILTER_NAMES

    def __init__(self) -> None:
        super().__init__("since", "until")
        self._wanted = EventFilters(
            event_type=choice_arg("event_type", AuditEventType),
            domain=text_arg("domain"),
            since=self._period.since,
            until=self._period.until,
        )
        self._cursor = text_arg("cursor")
        try:
            parse_event_cursor(self._cursor)
        except CursorError:
            self._cursor = None

    @cached_property
    def _listing(self) -> EventListing:
        return search_events(self._wanted, self.limit, self._cursor)

    @property
    def events(self) -> list[tuple[EventRow, list[str]]]:
        """The events of this page, each with what its details say."""
        return [(event, summary_of(event)) for event in self._listing.rows]

    @property
    def unseen(self) -> Unseen | None:
        """What the search did not look at."""
        return self._listing.unseen

    @property
    def limit(self) -> int:
        """How many events a page has."""
        return limit_arg()

    @property
    def page(self) -> int:
        """The number of this page."""
        return max(parsed_arg("page", int) or 2, 2) if self._cursor else 1

    @property
    def first_url(self) -> str:
        """The address of the first page; empty on that page."""
        return url_with(cursor=None, page=None) if self._cursor else ""

    @property
    def next_url(self) -> str:
        """The address of the next page; empty on the last one."""
        cursor = self._listing.next_cursor
        return url_with(cursor=cursor, page=self.page + 1) if cursor else ""

    @property
    def is_filtered(self) -> bool:
        """Whether anything narrows the search."""
        return self._wanted != EventFilters()

    @property
    def event_choices(self) -> list[tuple[str, str]]:
        """What the filter by event offers."""
        return [("", "Any"), *((each.value, each.label) for each in EVENTS.values())]


class Trail(PageContext):
    """The values of the trail of one command; empty for an unknown one."""

    def __init__(self, command_id: UUID) -> None:
        self.command_id = command_id

    @cached_property
    def _names(self) -> list[str]:
        return domains_of(self.command_id)

    @property
    def domain(self) -> str | None:
        """The domain of the command whose trail is shown."""
        wanted = text_arg("domain")
        return wanted if wanted in self._names else (self._names[0] if self._names else None)

    @property
    def domains(self) -> list[tuple[str, str, bool]]:
        """The domains that have such a command, their addresses, and which one is shown."""
        return [(name, url_with(domain=name), name == self.domain) for name in self._names]

    @cached_property
    def command(self) -> CommandRow | None:
        """The command."""
        return None if self.domain is None else command_row(self.command_id, self.domain)

    @cached_property
    def events(self) -> list[EventRow]:
        """Its events, oldest first."""
        return [] if self.domain is None else get_trail(self.command_id, self.domain)

    @cached_property
    def attempts(self) -> list[Attempt]:
        """Its attempts, oldest first."""
        return attempts_of(self.events)

    @cached_property
    def sections(self) -> list[Section]:
        """The events by attempt."""
        return sections_of(self.events, self.attempts)

    @property
    def total_ms(self) -> float | None:
        """The time from the first event to the last."""
        return total_ms(self.events)

    @property
    def is_cut(self) -> bool:
        """Whether there are events behind those that are shown."""
        return len(self.events) >= TRAIL_LIMIT

    @property
    def live_seconds(self) -> int:
        """How often the page refreshes."""
        found = self.command
        is_moving = found is not None and not found.status.is_final and found.status != "IN_TSQ"
        return MOVING_SECONDS if is_moving else RESTING_SECONDS

    @cached_property
    def ATTEMPT_OUTCOMES(self) -> dict[AttemptOutcome, tuple[str, str]]:  # noqa: N802
        """The label and the tone of each outcome of an attempt."""
        return outcomes_of(self.attempts)
