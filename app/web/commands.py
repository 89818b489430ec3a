"""Commands: the list with its filters, and everything about one of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from flask import redirect, request, url_for
from flask.typing import ResponseReturnValue

from app.actions.addressed import domains_named, unknown_command
from app.models import (
    CommandDetail,
    CommandFilters,
    CommandRow,
    Listing,
    TroubledFilters,
    TroubledRow,
    Window,
    domains,
    get_command_detail,
    list_commands,
    list_troubled,
)
from app.models.explanations import clock, day_and_clock
from app.models.load_test_runs import get_run
from app.models.search import CANDIDATE_LIMIT
from app.models.search_texts import id_text
from app.server import access
from app.server.portal import call, current_portal
from app.settings.configuration import ConfigStore
from app.web import bp
from app.web.listing import (
    choice_arg,
    pager_of,
    parsed_arg,
    period_args,
    text_arg,
    window,
    zone_arg,
)
from app.web.rendering import PARTIAL, render_page
from app.web.run_texts import title_of
from app.web.timeline import outcomes_of, sections_of
from app.web.vocabulary import STATUSES
from commandbus.models import CommandStatus

FILTER_NAMES = ("status", "domain", "command_type", "created_from", "created_before", "q", "run")
TROUBLED_NAMES = ("domain", "command_type", "q")
"""The filters that the troubleshooting queue has, too."""
MOVING_SECONDS = 2
RESTING_SECONDS = 15


class Moment(NamedTuple):
    """A moment that a sentence names, and how it does so: its text, and its form in `times.js`."""

    at: datetime
    text: str
    form: str


@bp.get("/commands")
@access.viewer
def commands() -> ResponseReturnValue:
    context = commands_context()
    if PARTIAL not in request.args and (found := _meant(context)) is not None:
        return redirect(url_for("web.command", command_id=found.command_id, domain=found.domain))
    return render_page("pages/commands.html", context, partials=("commands_list",))


@bp.get("/commands/<uuid:command_id>")
@access.viewer
def command(command_id: UUID) -> ResponseReturnValue:
    domain = one_domain(command_id)
    if domain is None:
        return redirect(url_for("web.commands", q=str(command_id)))
    return render_page(
        "pages/command.html",
        command_context(command_id, domain),
        partials=("command_head", "command_detail"),
    )


def _meant(context: dict[str, Any]) -> CommandRow | None:
    """The command whose id was searched for, and nothing else; None where a list is the answer."""
    listing, ids = context["listing"], id_text(text_arg("q") or "")
    is_alone = len(listing.rows) == 1 and listing.next_cursor is None
    if not is_alone or ids is None or not ids.names_one:
        return None
    return listing.rows[0] if context["is_search_only"] else None


def commands_context() -> dict[str, Any]:
    """The list that the address asks for."""
    period = period_args("created_from", "created_before")
    filters = CommandFilters(
        status=choice_arg("status", CommandStatus),
        domain=text_arg("domain"),
        command_type=text_arg("command_type"),
        created_after=period.since,
        created_before=period.until,
        q=text_arg("q"),
        run_id=parsed_arg("run", UUID),
    )
    listing = list_commands(filters, window())
    return {
        "filters": {name: text_arg(name) or "" for name in FILTER_NAMES} | period.values,
        "notes": period.notes,
        "is_filtered": filters != CommandFilters(),
        "is_search_only": filters == CommandFilters(q=filters.q),
        "troubled": _troubled_instead(filters, listing),
        "candidate_limit": CANDIDATE_LIMIT,
        "zone": zone_arg()[0],
        "zone_given": text_arg("tz") or "",
        "status_choices": [("", "Any"), *((s.value, s.label) for s in STATUSES.values())],
        "domain_choices": domain_choices(),
        "troubled_filters": {
            name: text for name in TROUBLED_NAMES if (text := text_arg(name)) is not None
        },
        "run": None if filters.run_id is None else get_run(filters.run_id),
        "title_of": title_of,
        "listing": listing,
        "pager": pager_of(listing, "command"),
    }


def _troubled_instead(
    filters: CommandFilters, listing: Listing[CommandRow]
) -> Listing[TroubledRow] | None:
    """What the troubleshooting queue's own search finds, where the search here found nothing."""
    if not filters.q or listing.rows:
        return None
    same = TroubledFilters(domain=filters.domain, command_type=filters.command_type, q=filters.q)
    found = list_troubled(same, Window(1))
    return found if found.rows else None


def command_context(command_id: UUID, domain: str) -> dict[str, Any]:
    """Everything about one command. Raises Problem 404 where there is none."""
    found = get_command_detail(command_id, domain, default_max_attempts=configured_attempts())
    if found is None:
        raise unknown_command(command_id)
    in_motion = found.status in (CommandStatus.PENDING, CommandStatus.IN_PROGRESS)
    return {
        "command": found,
        "key": f"{domain}:{command_id}",
        "explanation": explained(found),
        "sections": sections_of(found.events, found.attempt_list),
        "running_since": found.started_at if found.status is CommandStatus.IN_PROGRESS else None,
        "live_seconds": MOVING_SECONDS if in_motion else RESTING_SECONDS,
        "ATTEMPT_OUTCOMES": outcomes_of(found.attempt_list),
        "back": request.script_root + request.path,
    }


def one_domain(command_id: UUID) -> str | None:
    """The domain of the command that the address names; None where it could be several.

    Raises Problem 404 where there is no such command.
    """
    found = domains_named(command_id, text_arg("domain"))
    return found[0] if len(found) == 1 else None


def configured_attempts() -> int:
    """The budget of commands that have none of their own."""
    retry = call(ConfigStore(current_portal().pool).get_retry_config)
    return retry.max_attempts


def domain_choices() -> list[tuple[str, str]]:
    """What a filter by domain offers."""
    return [("", "Any"), *((name, name) for name in domains())]


def explained(found: CommandDetail) -> list[str | Moment]:
    """The explanation in pieces: its text, and its times as times, for the viewer's zone."""
    pieces: list[str | Moment] = [found.explanation]
    for at in (found.due_at, found.lease_until, found.finished_at):
        if at is not None:
            # The longer text first: it ends like the other.
            for moment in (
                Moment(at, day_and_clock(at), "absolute"),
                Moment(at, clock(at), "clock"),
            ):
                pieces = [part for piece in pieces for part in _split(piece, moment)]
    return pieces


def _split(piece: str | Moment, moment: Moment) -> Sequence[str | Moment]:
    if isinstance(piece, Moment):
        return (piece,)
    before, found, after = piece.partition(moment.text)
    return (before, moment, after) if found else (piece,)
