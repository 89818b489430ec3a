"""Audit trail: of one command, and a search over the events of all."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import redirect, url_for
from flask.typing import ResponseReturnValue

from app.models import (
    CursorError,
    EventFilters,
    command_row,
    domains_of,
    find_commands,
    get_trail,
    search_events,
)
from app.models.audit import TRAIL_LIMIT
from app.models.trail import attempts_of
from app.server import access
from app.web import bp
from app.web.commands import MOVING_SECONDS, RESTING_SECONDS, domain_choices
from app.web.listing import choice_arg, limit_arg, parsed_arg, period_args, text_arg, zone_arg
from app.web.rendering import render_page, url_with
from app.web.timeline import outcomes_of, sections_of, summary_of, total_ms
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
    return render_page("pages/audit.html", audit_context(), partials=("audit_events",))


@bp.get("/audit/<uuid:command_id>")
@access.viewer
def audit_trail(command_id: UUID) -> ResponseReturnValue:
    return render_page(
        "pages/audit_trail.html", trail_context(command_id), partials=("audit_trail",)
    )


@bp.get("/audit/<text>")
@access.viewer
def audit_search(text: str) -> ResponseReturnValue:
    """What is not a whole id is searched for."""
    return redirect(url_for("web.audit", id=text))


def audit_context() -> dict[str, Any]:
    """The events that the address asks for."""
    period = period_args("since", "until")
    filters = EventFilters(
        event_type=choice_arg("event_type", AuditEventType),
        domain=text_arg("domain"),
        since=period.since,
        until=period.until,
    )
    limit = limit_arg()
    cursor = text_arg("cursor")
    try:
        listing = search_events(filters, limit, cursor)
    except CursorError:
        cursor = None
        listing = search_events(filters, limit)
    page = max(parsed_arg("page", int) or 2, 2) if cursor else 1
    next_url = url_with(cursor=listing.next_cursor, page=page + 1) if listing.next_cursor else ""
    return {
        "filters": {name: text_arg(name) or "" for name in FILTER_NAMES} | period.values,
        "notes": period.notes,
        "is_filtered": filters != EventFilters(),
        "zone": zone_arg()[0],
        "zone_given": text_arg("tz") or "",
        "domain_choices": domain_choices(),
        "event_choices": [("", "Any"), *((e.value, e.label) for e in EVENTS.values())],
        "events": [(event, summary_of(event)) for event in listing.rows],
        "unseen": listing.unseen,
        "limit": limit,
        "page": page,
        "first_url": url_with(cursor=None, page=None) if cursor else "",
        "next_url": next_url,
    }


def trail_context(command_id: UUID) -> dict[str, Any]:
    """The trail of one command; empty for an unknown one."""
    names = domains_of(command_id)
    wanted = text_arg("domain")
    domain = wanted if wanted in names else (names[0] if names else None)
    events = [] if domain is None else get_trail(command_id, domain)
    found = None if domain is None else command_row(command_id, domain)
    attempts = attempts_of(events)
    is_moving = found is not None and not found.status.is_final and found.status != "IN_TSQ"
    return {
        "command_id": command_id,
        "domain": domain,
        "domains": [(name, url_with(domain=name), name == domain) for name in names],
        "command": found,
        "events": events,
        "sections": sections_of(events, attempts),
        "attempts": attempts,
        "total_ms": total_ms(events),
        "is_cut": len(events) >= TRAIL_LIMIT,
        "live_seconds": MOVING_SECONDS if is_moving else RESTING_SECONDS,
        "ATTEMPT_OUTCOMES": outcomes_of(attempts),
    }
