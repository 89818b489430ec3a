"""Text of people and programs as it is shown: invisible characters, and those that move other text,
is written out.

A right-to-left override turns `gpj.exe` into `exe.jpg`, a zero-width space makes two names look
alike, and an escape sequence rewrites a terminal. Pages show each as `<U+202E>`; JSON, logs and
terminals as an escape. Stored text stays as it was given.
"""

from __future__ import annotations

import json
import re

from commandbus.errors import one_line

_UNSEEN = (
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e"
    r"\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f"
)
# Joiners belong into words of some scripts and into emoji; beside ASCII they only deceive.
_JOINER = r"(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
_HIDDEN = re.compile(f"[{_UNSEEN}]|{_JOINER}")
_HIDDEN_OR_BREAK = re.compile(f"[{_UNSEEN}\\t\\n\\r]|{_JOINER}")


def visible(text: str) -> str:
    """*text* for a page, in its own lines: what cannot be seen as `<U+202E>`."""
    return _HIDDEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def visible_json(text: str) -> str:
    """JSON *text* for a page: what cannot be seen as an escape, which means the same."""
    return _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


def escaped(text: str) -> str:
    """*text* for one line of a log: what cannot be seen, or ends a line, as an escape."""
    return _HIDDEN_OR_BREAK.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def terminal_line(said: BaseException | str) -> str:
    """A text, or an error's, for a terminal: one line, without anything that a terminal obeys."""
    return escaped(one_line(said))
