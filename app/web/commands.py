"""Commands: the list with its filters, and everything about one of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import NamedTuple
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
    WorkerRow,
    get_command_detail,
    get_worker,
    list_commands,
    list_troubled,
)
from app.models.explanations import clock, day_and_clock
from app.models.load_test_runs import RunRow, get_run
from app.models.relations import conversation as get_conversation
from app.models.search import CANDIDATE_LIMIT
from app.models.search_texts import id_text
from app.models.trail import AttemptOutcome
from app.server import access
from app.server.errors import Problem
from app.server.portal import call, current_portal
from app.settings.configuration import ConfigStore
from app.web import bp
from app.web.formats import pretty_json
from app.web.listing import (
    Pager,
    PeriodPage,
    choice_arg,
    pager_of,
    parsed_arg,
    text_arg,
    window,
)
from app.web.rendering import PARTIAL, PageContext, render_page
from app.web.run_texts import title_of
from app.web.timeline import Section, outcomes_of, sections_of
from app.web.vocabulary import STATUSES
from commandbus.models import CommandStatus

FILTER_NAMES = (
    "status", "domain", "command_type", "lane", "created_from", "created_before", "q", "run",
)  # fmt: skip
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
    context = Commands()
    if PARTIAL not in request.args and (found := context.meant) is not None:
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
        CommandPage(command_id, domain),
        partials=("command_head", "command_detail"),
    )


@bp.get("/conversations/<uuid:correlation_id>")
@access.viewer
def conversation(correlation_id: UUID) -> ResponseReturnValue:
    return render_page("pages/conversation.html", ConversationPage(correlation_id))


class ConversationPage(PageContext):
    """The commands of one correlation id. Raises Problem 404 where there is none."""

    def __init__(self, correlation_id: UUID) -> None:
        self.conversation = get_conversation(correlation_id)
        if not self.conversation.branches:
            raise Problem(
                404, "unknown_conversation", f"No command has the correlation id {correlation_id}."
            )


class Commands(PeriodPage):
    """The values of the list that the address asks for."""

    candidate_limit = CANDIDATE_LIMIT
    filter_names = FILTER_NAMES

    def __init__(self) -> None:
        super().__init__("created_from", "created_before")
        self._wanted = CommandFilters(
            status=choice_arg("status", CommandStatus),
            domain=text_arg("domain"),
            command_type=text_arg("command_type"),
            created_after=self._period.since,
            created_before=self._period.until,
            q=text_arg("q"),
            run_id=parsed_arg("run", UUID),
            lane=text_arg("lane"),
        )

    @property
    def meant(self) -> CommandRow | None:
        """The command whose id was searched for, and nothing else; None: the list is the answer."""
        ids = id_text(text_arg("q") or "")
        if ids is None or not ids.names_one or not self.is_search_only:
            return None
        is_alone = len(self.listing.rows) == 1 and self.listing.next_cursor is None
        return self.listing.rows[0] if is_alone else None

    @cached_property
    def listing(self) -> Listing[CommandRow]:
        """The commands of this page."""
        return list_commands(self._wanted, window())

    @cached_property
    def pager(self) -> Pager:
        """The way to the other pages."""
        return pager_of(self.listing, "command")

    @cached_property
    def troubled(self) -> Listing[TroubledRow] | None:
        """What the troubleshooting queue's own search finds, where this one found nothing."""
        wanted = self._wanted
        if not wanted.q or self.listing.rows:
            return None
        same = TroubledFilters(domain=wanted.domain, command_type=wanted.command_type, q=wanted.q)
        found = list_troubled(same, Window(1))
        return found if found.rows else None

    @cached_property
    def run(self) -> RunRow | None:
        """The load test whose commands are listed; None: those of all."""
        return None if self._wanted.run_id is None else get_run(self._wanted.run_id)

    @staticmethod
    def title_of(run: RunRow) -> str:
        """The name of a load test."""
        return title_of(run)

    @property
    def is_filtered(self) -> bool:
        """Whether anything narrows the list."""
        return self._wanted != CommandFilters()

    @property
    def is_search_only(self) -> bool:
        """Whether nothing but the search narrows the list."""
        return self._wanted == CommandFilters(q=self._wanted.q)

    @property
    def troubled_filters(self) -> dict[str, str]:
        """The same filters for the troubleshooting queue."""
        return {name: text for name in TROUBLED_NAMES if (text := text_arg(name)) is not None}

    @property
    def status_choices(self) -> list[tuple[str, str]]:
        """What the filter by status offers."""
        return [("", "Any"), *((each.value, each.label) for each in STATUSES.values())]


class CommandPage(PageContext):
    """The values of the page of one command. Raises Problem 404 where there is none."""

    def __init__(self, command_id: UUID, domain: str) -> None:
        found = get_command_detail(command_id, domain, default_max_attempts=configured_attempts)
        if found is None:
            raise unknown_command(command_id)
        self.command = found
        self.key = f"{domain}:{command_id}"

    @property
    def explanation(self) -> list[str | Moment]:
        """Why the command is where it is, in pieces."""
        return explained(self.command)

    @cached_property
    def sections(self) -> list[Section]:
        """The trail."""
        return sections_of(self.command.events, self.command.attempt_list)

    @property
    def live_seconds(self) -> int:
        """How often the page refreshes."""
        in_motion = self.command.status in (CommandStatus.PENDING, CommandStatus.IN_PROGRESS)
        return MOVING_SECONDS if in_motion else RESTING_SECONDS

    @cached_property
    def ATTEMPT_OUTCOMES(self) -> dict[AttemptOutcome, tuple[str, str]]:  # noqa: N802
        """The label and the tone of each outcome of an attempt."""
        return outcomes_of(self.command.attempt_list, self._worker)

    def _worker(self, worker_id: int) -> WorkerRow | None:
        known = self.command.worker
        return known if worker_id == self.command.worker_id else get_worker(worker_id)

    @property
    def curl(self) -> str:
        """The call that sends a command like this one; one that shows it, if the API sends none."""
        found, address = self.command, f"{request.url_root}api/v1/commands"
        if found.behavior is None:
            return f"curl {shlex.quote(f'{address}/{found.command_id}?domain={found.domain}')}"
        own = {"max_attempts": found.max_attempts, "reply_to": found.reply_to}
        body = {"behavior": found.behavior, "payload": found.payload or {}}
        body |= {name: value for name, value in own.items() if value is not None}
        return (
            f"curl -X POST {shlex.quote(address)} -H 'Content-Type: application/json'"
            f" -d {shlex.quote(pretty_json(body))}"
        )

    @property
    def back(self) -> str:
        """The address of this page."""
        return request.script_root + request.path


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


def explained(found: CommandDetail) -> list[str | Moment]:
    """The explanation in pieces: its text, and its times as times, for the viewer's zone."""
    pieces: list[str | Moment] = [found.explanation]
    pause_ends_at = None if found.pause is None else found.pause.ends_at
    for at in (found.due_at, found.lease_until, found.finished_at, pause_ends_at):
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
