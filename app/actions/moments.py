"""Times as people and programs write them, for the pages and the API alike."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import LiteralString

FIRST_YEAR, LAST_YEAR = 1900, 2999

# A blank before the offset is a plus that an address has lost: there it stands for a blank, and a
# plus itself is written %2B.
_MOMENT = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](?P<clock>\d\d:\d\d(?::\d\d)?)(?:[.,](?P<fraction>\d{1,9}))?"
    r"(?P<zone> ?[Zz]| ?(?P<sign>[+-]| )(?P<hours>\d\d)(?::?(?P<minutes>\d\d))?)?)?",
    re.ASCII,
)


class MomentError(ValueError):
    """A text that is no time; *code* is for programs, the message for people."""

    def __init__(self, code: LiteralString, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse_moment(text: str, zone: tzinfo | None = None, *, is_end: bool = False) -> datetime:
    """The moment that *text* names; where it names no zone, it is meant in *zone*.

    Without a *zone* the text must name one. A local time that a clock shows twice is the first of
    both, or the second where it ends a period; one that clocks leap over is as much later as they
    leap. Raises MomentError.
    """
    found = _MOMENT.fullmatch(text.strip())
    own = None if found is None else found["zone"]
    if found is None or (zone is None and own is None):
        raise MomentError(
            "time_without_zone",
            "Must be a time with its zone, such as 2026-01-31T14:00:00Z; in an address the + of"
            " +01:00 is written %2B",
        )
    try:
        # Not time.fromisoformat: from Python 3.13 on that takes 24:00 for a midnight.
        hour, minute, second = map(int, f"{found['clock'] or '00:00'}:00"[:8].split(":"))
        moment = datetime.combine(date.fromisoformat(found["day"]), time(hour, minute, second))
        if own is not None:
            zone = _offset(found)
    except ValueError as exc:
        raise MomentError("time_impossible", "There is no such time") from exc
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise MomentError("time_out_of_range", "Must be between the years 1900 and 3000")
    fraction = (found["fraction"] or "").ljust(6, "0")[:6]
    fold = int(is_end and zone is not None and not is_skipped(moment, zone))
    return moment.replace(microsecond=int(fraction), tzinfo=zone, fold=fold).astimezone(UTC)


def is_skipped(local: datetime, zone: tzinfo) -> bool:
    """Whether the clocks of *zone* never show this time, as they are put forward past it."""
    shown = local.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
    return shown.replace(tzinfo=None) != local.replace(tzinfo=None)


def is_repeated(local: datetime, zone: tzinfo) -> bool:
    """Whether the clocks of *zone* show this time twice, as they are put back."""
    first, second = (local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    return first != second and not is_skipped(local, zone)


def _offset(found: re.Match[str]) -> tzinfo:
    if found["hours"] is None:
        return UTC
    hours, minutes = int(found["hours"]), int(found["minutes"] or 0)
    if hours > 23 or minutes > 59:
        raise ValueError("no such offset")
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if found["sign"] == "-" else offset)
