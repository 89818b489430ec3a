"""The audit trail: of one command, and a search over all."""

from __future__ import annotations

from typing import Any

from app.actions import inputs
from app.actions.addressed import domain_of
from app.api import answers, bp
from app.api.routing import CommandPath
from app.models import EventFilters, command_row, get_trail, search_events
from app.models.trail import milliseconds
from app.server import access
from app.server.errors import Problem


@bp.get("/audit", responses={200: answers.EventList})
@access.viewer
def search(query: inputs.AuditQuery) -> Any:
    """The events of all commands that match every filter, newest first."""
    filters = EventFilters(
        event_type=query.event_type, domain=query.domain, since=query.since, until=query.until
    )
    page = search_events(filters, query.limit, query.cursor)
    return answers.EventList(
        events=[answers.FoundEvent.model_validate(row) for row in page.rows],
        next_cursor=page.next_cursor,
    )


@bp.get("/audit/<command_id:command_id>", responses={200: answers.Trail})
@access.viewer
def trail(path: CommandPath, query: inputs.DomainQuery) -> Any:
    """Everything that happened to a command, oldest first."""
    domain = domain_of(path.command_id, query.domain)
    command = command_row(path.command_id, domain)
    if command is None:
        raise Problem(404, "unknown_command", f"There is no command {path.command_id}.")
    events = get_trail(path.command_id, domain)
    return answers.Trail(
        command_id=command.command_id,
        domain=command.domain,
        command_type=command.command_type,
        current_status=command.status,
        events=[answers.EventItem.model_validate(event) for event in events],
        total_duration_ms=(
            milliseconds(events[0].timestamp, events[-1].timestamp) if events else None
        ),
    )
