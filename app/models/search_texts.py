"""What people type or paste to find something: an id in any of the forms in which it is shown.

An id may come whole or as its beginning, in either case, with or without hyphens, in quotes or
brackets, as a URN, in the address of its page, with its name before it, as lists show it
(`01a21f44…89ab`: its beginning and its end), and with what copying brings along: blanks, line ends,
invisible characters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from uuid import UUID

LONGEST_ID = 32
LONGEST_TEXT = 200
"""How many characters a filter or a search may have."""
SHORTEST_TAIL = 4
"""The end of an id identifies it from this many digits on."""

_SHAPE = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
_HEX = re.compile(r"[0-9a-f]*", re.ASCII)
_WRAPPING = "\"'`<>(){}[],;:\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
_PREFIX = re.compile(r"(?:urn:)?uuid:", re.IGNORECASE)
_GAP = re.compile(r"\u2026|\.{2,}")
# A page's own address, and an id with its name, as code and JSON have it.
_NAMED = re.compile(
    r"(?:\S*/(?:commands|audit)/|[\"']?(?:command_id|id|uuid)[\"']?\s*[:=(]\s*[\"']?)"
    r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:[/?#]\S*|[\"')},]*)",
    re.IGNORECASE,
)
_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"))


@dataclass(frozen=True, slots=True)
class IdText:
    """The ids that a text can mean: between *first* and *last*, ending with *tail*."""

    first: UUID
    last: UUID
    tail: str = ""
    """Hexadecimal digits; empty: any end."""
    digits: int = LONGEST_ID
    """How many digits of the id are known."""

    @property
    def whole(self) -> UUID | None:
        """The only id that is meant; None where there can be others."""
        return self.first if self.first == self.last else None

    @property
    def names_one(self) -> bool:
        """Whether it is an id as it is written or shown somewhere, and no mere beginning."""
        return self.whole is not None or bool(self.tail)


def trimmed(text: str) -> str:
    """*text* without blanks and unseen characters at its ends."""
    start, end = 0, len(text)
    while start < end and _is_unseen(text[start]):
        start += 1
    while start < end and _is_unseen(text[end - 1]):
        end -= 1
    return text[start:end]


def id_text(text: str) -> IdText | None:
    """The ids that *text* can mean, or None where it is no id nor a part of one."""
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    if named := _NAMED.fullmatch(text.strip()):
        text = named[1]
    text = text.strip().strip(_WRAPPING + " \t\r\n").translate(_HYPHENS).lower()
    text = _PREFIX.sub("", text, count=1).strip(_WRAPPING + " ")
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1]
    head, *rest = _GAP.split(text)
    if len(rest) > 1:
        return None
    tail = rest[0] if rest else ""
    first, last = _digits(head), _digits(tail[::-1], _SHAPE[::-1])
    if first is None or last is None or not (first or last):
        return None
    last = last[::-1]
    known = len(first) + len(last)
    if known > LONGEST_ID or (not first and len(last) < SHORTEST_TAIL):
        return None
    if known == LONGEST_ID:
        first, last = first + last, ""
    return IdText(
        UUID(first.ljust(LONGEST_ID, "0")), UUID(first.ljust(LONGEST_ID, "f")), last, known
    )


def _digits(text: str, shape: str = _SHAPE) -> str | None:
    """The hexadecimal digits of *text*, whose hyphens, if any, stand where they belong."""
    if "-" in text:
        if len(text) > len(shape):
            return None
        if any((char == "-") != (place == "-") for char, place in zip(text, shape, strict=False)):
            return None
    digits = text.replace("-", "")
    return digits if _HEX.fullmatch(digits) else None


def _is_unseen(char: str) -> bool:
    return char.isspace() or unicodedata.category(char) in ("Cf", "Cc")
