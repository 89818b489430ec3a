"""What lists read from the address, and the pager below them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from typing import Any, ClassVar, TypeVar
from zoneinfo import ZoneInfo

from flask import request
from pydantic import TypeAdapter, ValidationError

from app.actions import strict_json
from app.actions.inputs import Search
from app.actions.moments import MomentError, is_repeated, is_skipped, parse_moment
from app.models import Cursor, CursorError, Listing, Window, domains
from app.models.search_texts import trimmed
from app.server.errors import Problem, refusals
from app.web.formats import count_text
from app.web.rendering import PageContext, url_with

LIMITS = (10, 20, 50, 100)
DEFAULT_LIMIT = 20
_LARGEST_PAGE = 10**9
_TEXT: TypeAdapter[str] = TypeAdapter(Search)

EnumT = TypeVar("EnumT", bound=StrEnum)
T = TypeVar("T")


def text_arg(name: str) -> str | None:
    """A text without what surrounds it unseen, or None where there is nothing in it.

    Raises Problem 422 for what the API refuses: too long a text, and one that cannot be stored.
    """
    text = request.args.get(name, "")
    if not strict_json.is_storable(text):
        raise _refused(name, strict_json.unstorable(name).message)
    try:
        return _TEXT.validate_python(trimmed(text)) or None
    except ValidationError as exc:
        raise _refused(name, refusals(exc)[0]["message"]) from exc


def _refused(name: str, reason: str) -> Problem:
    return Problem(422, detail=f"The value of {name} in the address cannot be used. {reason}.")


def choice_arg(name: str, choices: type[EnumT]) -> EnumT | None:
    """One of *choices*; None where nothing or something else is given."""
    text = text_arg(name)
    return choices(text) if text in list(choices) else None


def parsed_arg(name: str, parse: Callable[[str], T]) -> T | None:
    """What *parse* makes of the text; None where it raises ValueError."""
    text = text_arg(name)
    try:
        return None if text is None else parse(text)
    except ValueError:
        return None


def zone_arg() -> tuple[str, ZoneInfo | None]:
    """The zone in which the times of the address are meant: its name, and what knows of it.

    A browser with scripts gives the viewer's; else they are UTC.
    """
    name = text_arg("tz")
    try:
        return (name, ZoneInfo(name)) if name else ("UTC", None)
    except (ValueError, OSError, LookupError):
        return "UTC", None


@dataclass(frozen=True, slots=True)
class Period:
    """The time range of a list, as the address gives it in the zone of the address."""

    since: datetime | None
    until: datetime | None
    values: dict[str, str]
    """The same for the fields of the form, in its zone."""
    notes: list[str]
    """What was not used as given."""


def period_args(since: str, until: str) -> Period:
    """The two times of these names; an invalid one is left out and noted."""
    name, zone = zone_arg()
    known = zone or UTC
    moments: list[datetime | None] = []
    values: dict[str, str] = {}
    notes: list[str] = []
    if (given := text_arg("tz")) and name != given:
        notes.append(f"Unknown time zone {given}: times are read as UTC.")
    for field in (since, until):
        text = text_arg(field)
        try:
            moment = None if text is None else parse_moment(text, known, is_end=field == until)
        except MomentError:
            moment = None
            notes.append(
                f"{text} is not a valid time and was ignored. Write a time like 2026-01-31T14:00."
            )
        moments.append(moment)
        values[field] = ""
        if moment is not None and text is not None:
            local = moment.astimezone(known).replace(tzinfo=None)
            values[field] = local.isoformat(
                timespec="milliseconds" if local.microsecond else "seconds"
            )
            notes += _clock_notes(text, local, known, name, is_end=field == until)
    return Period(moments[0], moments[1], values, notes)


def _clock_notes(text: str, local: datetime, zone: tzinfo, name: str, *, is_end: bool) -> list[str]:
    """What is to be said of a local time that a change of the clocks makes unclear."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        return []
    if given.tzinfo is not None:
        return []
    if is_skipped(given, zone):
        return [f"Clocks in {name} never show {given}, so {local} is used."]
    if is_repeated(given, zone):
        which = "second" if is_end else "first"
        return [f"Clocks in {name} show {given} twice; the {which} is used."]
    return []


def limit_arg() -> int:
    """How many rows a page has."""
    limit = parsed_arg("limit", int)
    return limit if limit in LIMITS else DEFAULT_LIMIT


def window() -> Window:
    """The part of the list that the address names; the first page where its cursor is unknown."""
    try:
        cursor = Cursor.parse(request.args["cursor"]) if "cursor" in request.args else None
    except CursorError:
        cursor = None
    return Window(limit_arg(), cursor=cursor)


@dataclass(frozen=True, slots=True)
class Pager:
    """What the macro `pagination` needs."""

    summary: str
    previous_url: str
    next_url: str
    limit: int


def pager_of(listing: Listing[Any], noun: str) -> Pager:
    """The pager below *listing*: a page number where one goes step by step."""
    limit = limit_arg()
    page = parsed_arg("page", int) or 1
    is_first = listing.previous_cursor is None
    page = 1 if is_first else min(max(page, 2), _LARGEST_PAGE)
    total = count_text(listing.total, listing.total_is_exact)
    plural = "" if listing.total == 1 else "s"
    where = f"page {page:,}"
    pages = -(-listing.total // limit)
    is_last = listing.next_cursor is None
    if listing.total_is_exact and (is_last or page < pages):
        # Commands come and go while one pages; a page is never beyond the last one.
        where = f"page {page:,} of {max(pages, page, 1):,}"
    previous_url = ""
    if page == 2:
        previous_url = url_with(cursor=None, page=None)
    elif not is_first:
        previous_url = url_with(cursor=listing.previous_cursor, page=page - 1)
    next_url = ""
    if listing.next_cursor is not None:
        next_url = url_with(cursor=listing.next_cursor, page=page + 1)
    summary = f"{total} {noun}{plural}, {where}"
    return Pager(summary[:1].upper() + summary[1:], previous_url, next_url, limit)


def domain_choices() -> list[tuple[str, str]]:
    """What a filter by domain offers."""
    return [("", "Any"), *((name, name) for name in domains())]


class PeriodPage(PageContext):
    """The values of a page that lists what happened in a period: those of its filters."""

    filter_names: ClassVar[tuple[str, ...]]

    def __init__(self, since: str, until: str) -> None:
        self._period = period_args(since, until)

    @property
    def filters(self) -> dict[str, str]:
        """The filters as the form shows them."""
        return {name: text_arg(name) or "" for name in self.filter_names} | self._period.values

    @property
    def notes(self) -> list[str]:
        """The times that were not taken as they were given."""
        return self._period.notes

    @property
    def zone(self) -> str:
        """The time zone of the times in the address."""
        return zone_arg()[0]

    @property
    def zone_given(self) -> str:
        """The time zone as the address names it."""
        return text_arg("tz") or ""

    @property
    def domain_choices(self) -> list[tuple[str, str]]:
        """What the filter by domain offers."""
        return domain_choices()
