"""What an exception tells: which error of a group decides, and where it came from.

Everything here is bounded, and made of text that can be stored; nothing runs but what exceptions
say of themselves. The values of variables are never read.
"""

from __future__ import annotations

import linecache
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from commandbus.errors import (
    BusinessRuleError,
    HandlerError,
    PermanentCommandError,
    TransientCommandError,
)
from commandbus.payload import clean_text

# The gravest first: what an operator has to look at, what ends the command, what is tried again.
_GRAVITY = (PermanentCommandError, BusinessRuleError, TransientCommandError)

MAX_FRAMES = 10
MAX_FURTHER_FRAMES = 4
MAX_CAUSES = 5
MAX_ERRORS = 10
MAX_NOTES = 10
MAX_LINE = 300
MAX_MESSAGE = 1_000
MAX_CHARACTERS = 10_000
MAX_LEAVES = 10_000
SHOWN_IN_MESSAGE = 5

_OWN_FILES = {str(Path(__file__).with_name(name)) for name in ("attempt.py", "handlers.py")}


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group and of the groups in it, in their order; of any other error itself."""
    waiting = [error]
    for _ in range(MAX_LEAVES):
        if not waiting:
            return
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting += reversed(each.exceptions)
        else:
            yield each


def deciding(error: BaseException) -> BaseException:
    """The error that says how the command failed: *error* itself, or of a group the gravest in it.

    PermanentCommandError before BusinessRuleError before TransientCommandError; the first of
    several alike. Where a group has none of these, its only error; the group where it has several.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = list(leaves(error))
    for error_class in _GRAVITY:
        for each in found:
            if isinstance(each, error_class):
                return each
    return found[0] if len(found) == 1 else error


def message_of(error: BaseException) -> object:
    """What *error* says; a group also names what is in it."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = list(leaves(error))
    named = [f"{type(e).__name__}: {clean_text(e, MAX_LINE)}" for e in found[:SHOWN_IN_MESSAGE]]
    if len(found) > SHOWN_IN_MESSAGE:
        named.append(f"and {len(found) - SHOWN_IN_MESSAGE} more")
    return f"{clean_text(error.message, MAX_LINE)}: {'; '.join(named)}"


def explains_more(error: BaseException) -> bool:
    """Whether *error* has a cause or notes, or is not one that a handler raises on purpose."""
    return (
        not isinstance(error, HandlerError)
        or _cause_of(error) is not None
        or bool(getattr(error, "__notes__", None))
    )


def describe(error: BaseException, decided: BaseException) -> dict[str, Any]:
    """Where *decided* came from: ``traceback``, ``notes``, ``cause``; and ``group``, if any.

    A traceback is its last frames, the innermost last. *error* is what the handler raised: the
    error that decided, or the group around it.
    """
    description = _Description()
    try:
        found = description.of(decided, MAX_FRAMES)
        if error is not decided:
            found["group"] = description.of_group(error, decided)
    except Exception as exc:  # noqa: BLE001 - an exception's own attributes may raise anything
        return {"traceback": [f"not available: {type(exc).__name__}"]}
    return found


def type_name(error: BaseException) -> str:
    """The name of its class, whatever the class's own class makes of that."""
    return str(type.__dict__["__name__"].__get__(type(error)))


def frames_of(error: BaseException) -> list[str]:
    """The last frames of *error*, of which nothing else is read."""
    traceback = BaseException.__dict__["__traceback__"].__get__(error)
    return _Description()._frames(traceback, MAX_FRAMES)


def as_text(found: Any, error: BaseException | None = None) -> str:
    """What ``describe`` found of *error*, as lines for a log.

    Raises TypeError, KeyError or AttributeError for what ``describe`` did not make.
    """
    lines = ["Traceback (most recent call last):"]
    title = None if error is None else f"{type(error).__name__}: {clean_text(error, MAX_MESSAGE)}"
    if not isinstance(found["traceback"], list):
        raise TypeError("no traceback")
    _write(lines, found, title)
    return "\n".join(lines)


def _write(lines: list[str], found: dict[str, Any], title: str | None, indent: str = "") -> None:
    lines += [f"{indent}  {line}" for line in found.get("traceback", ())]
    if title is not None:
        lines.append(f"{indent}{title}")
    lines += [f"{indent}note: {note}" for note in found.get("notes", ())]
    if cause := found.get("cause"):
        lines.append(f"{indent}{'caused by' if cause['direct'] else 'while handling'}:")
        _write(lines, cause, _title(cause), indent)
    if group := found.get("group"):
        lines.append(f"{indent}in the group:")
        _write(lines, group, _title(group), indent)
    for other in found.get("errors", ()):
        lines.append(f"{indent}with:")
        _write(lines, other, _title(other), indent + "  ")


def _title(found: dict[str, Any]) -> str:
    return f"{found['type']}: {found['message']}"


def _cause_of(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


class _Description:
    """Makes descriptions that together hold at most MAX_CHARACTERS characters."""

    def __init__(self) -> None:
        self._left = MAX_CHARACTERS

    def _text(self, value: object, limit: int) -> str:
        text = clean_text(value, max(1, min(limit, self._left)))
        self._left -= len(text)
        return text

    def of(
        self, error: BaseException, frames: int, *, without: BaseException | None = None
    ) -> dict[str, Any]:
        """*error* and what led to it; of a group also what is in it, but not *without*."""
        found = self._alone(error, frames)
        if isinstance(error, BaseExceptionGroup):
            self._add_errors(found, error, without)
        inner, effect, cause = found, error, _cause_of(error)
        seen = {id(error)}
        while cause is not None and id(cause) not in seen and len(seen) <= MAX_CAUSES:
            if self._left <= 0:
                break
            seen.add(id(cause))
            inner["cause"] = {
                **self._named(cause),
                "direct": effect.__cause__ is cause,
                **self._alone(cause, MAX_FURTHER_FRAMES),
            }
            inner, effect, cause = inner["cause"], cause, _cause_of(cause)
        return found

    def of_group(self, group: BaseException, decided: BaseException) -> dict[str, Any]:
        """The group around the error that decided, and its other errors."""
        return {**self._named(group), **self.of(group, MAX_FURTHER_FRAMES, without=decided)}

    def _named(self, error: BaseException) -> dict[str, Any]:
        return {
            "type": self._text(type(error).__name__, 200),
            "message": self._text(error, MAX_MESSAGE),
        }

    def _alone(self, error: BaseException, frames: int) -> dict[str, Any]:
        found: dict[str, Any] = {"traceback": self._frames(error.__traceback__, frames)}
        notes = getattr(error, "__notes__", None)
        if isinstance(notes, (list, tuple)) and notes:
            found["notes"] = [
                self._text(note, MAX_MESSAGE) for note in notes[:MAX_NOTES] if self._left > 0
            ]
        return found

    def _add_errors(
        self, found: dict[str, Any], group: BaseException, without: BaseException | None
    ) -> None:
        others = [each for each in leaves(group) if each is not without]
        if others:
            found["errors"] = [
                {**self._named(each), **self._alone(each, MAX_FURTHER_FRAMES)}
                for each in others[:MAX_ERRORS]
                if self._left > 0
            ]
            found["error_count"] = len(others)

    def _frames(self, traceback: TracebackType | None, count: int) -> list[str]:
        last: deque[TracebackType] = deque(maxlen=count)
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename not in _OWN_FILES:
                last.append(traceback)
            traceback = traceback.tb_next
        return [self._text(_frame(each), MAX_LINE) for each in last if self._left > 0]


def _frame(traceback: TracebackType) -> str:
    code = traceback.tb_frame.f_code
    place = f'File "{code.co_filename}", line {traceback.tb_lineno}, in {code.co_name}'
    line = linecache.getline(code.co_filename, traceback.tb_lineno).strip()
    return f"{place}: {line}" if line else place
