"""The log of a process: one line for each event, as text or as JSON.

An event is a constant name; what it is about stands in fields, given by `extra`. No line ever
holds a password: connection strings are masked whatever they come in.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from app.settings.configuration import LogFormat
from app.settings.streams import FLUSH_SECONDS, LineQueue, queue_of
from app.visible import escaped

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_URI_PASSWORD = re.compile(r"(?P<login>\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/]*@", re.IGNORECASE)
_WORD_PASSWORD = re.compile(
    r"(?P<name>\b\w*(?:password|secret)\w*['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,&}]+)",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"\b(?P<scheme>basic|bearer)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_SECRET_NAME = re.compile(r"password|secret|token|dsn|authorization|cookie", re.IGNORECASE)
_PLAIN = re.compile(r"[^\s\"=]+")

# What libraries tell that is of use: no single steps.
_LEVELS = {
    "psycopg": logging.WARNING,
    "asyncio": logging.WARNING,
    # That a lost connection could not be reset, with a traceback; who lost it has said so.
    "sqlalchemy.pool": logging.CRITICAL,
    "urllib3": logging.WARNING,
}
# How often, in seconds, the log repeats that a server is away.
AGAIN_SECONDS = 60.0


def configure_logging(log_format: LogFormat, level: str, *, stream: TextIO | None = None) -> None:
    """From now on this process logs to *stream* (stderr by default) in this format.

    Logging never waits for the stream: if it takes nothing, lines are dropped and counted.
    """
    handler = _handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, QueueingHandler):
            old.flush()
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    for name, least in _LEVELS.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    pools = logging.getLogger("psycopg.pool")
    if not any(isinstance(given, _WhyNoConnection) for given in pools.filters):
        pools.addFilter(_WhyNoConnection())


def _handler(stream: TextIO) -> logging.Handler:
    queue = queue_of(stream)
    if queue is None:
        try:
            queue = LineQueue(stream.fileno())
        except (OSError, ValueError, AttributeError):  # no file, so nothing that can be full
            return logging.StreamHandler(stream)
    return QueueingHandler(queue, stream.encoding)


class QueueingHandler(logging.Handler):
    """Hands the lines to a queue, which writes them when the stream takes them."""

    def __init__(self, queue: LineQueue, encoding: str) -> None:
        super().__init__()
        self._queue = queue
        self._encoding = encoding
        queue.tell_dropped = self._dropped_line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)
            return
        self._queue.put(line.encode(self._encoding, "backslashreplace"))

    def flush(self) -> None:
        """Wait until everything is written, for a moment at most."""
        self._queue.drain(FLUSH_SECONDS)

    def _dropped_line(self, count: int) -> str:
        told = logging.LogRecord(__name__, logging.WARNING, "", 0, "log_lines_dropped", (), None)
        told.count = count
        return self.format(told) + "\n"


def masked(text: str) -> str:
    """*text* with every password that it may hold replaced."""
    text = _URI_PASSWORD.sub(r"\g<login>:***@", text)
    text = _AUTHORIZATION.sub(r"\g<scheme> ***", text)
    return _WORD_PASSWORD.sub(r"\g<name>***", text)


class _WhyNoConnection(logging.Filter):
    """Of a pool's many attempts to reach a server: why they fail, when that is news.

    Who waits for a connection says only that it got none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, tuple[str, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if text.startswith(("reconnection attempt", "discarding")):
            return False  # said by the reason, and by who loses the connection
        if not text.startswith("error connecting") or not isinstance(record.args, tuple):
            return True
        pool, error = (str(arg).strip() for arg in record.args)
        before, at = self._told.get(pool, ("", 0.0))
        if error == before and record.created - at < AGAIN_SECONDS:
            return False
        self._told[pool] = error, record.created
        record.msg, record.args = "connection_failed", ()
        record.pool, record.error = pool, error
        return True


class TextFormatter(logging.Formatter):
    """`2025-01-31T12:00:00.123Z INFO worker_started worker_id=3 domain=test`, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname, _word(record.getMessage())]
        parts += [f"{name}={_word(value)}" for name, value in _fields(record, self).items()]
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object with time, level, logger, event and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "event": masked(record.getMessage()),
        }
        for name, value in _fields(record, self).items():
            fields.setdefault(name, value)
        return json.dumps(fields, default=str, ensure_ascii=True).replace("\x7f", "\\u007f")


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, Any]:
    given = {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and not name.startswith("_") and value is not None
    }
    fields: dict[str, Any] = _clean(given)
    if record.exc_info and record.exc_info[1] is not None:
        text = record.exc_text or formatter.formatException(record.exc_info)
        fields["exception"] = masked(text)
    return fields


def _clean(value: Any) -> Any:
    """*value* as JSON can hold it, masked, floats readable."""
    match value:
        case bool() | int():
            return value
        case float():
            return round(value, 6) if value == value and abs(value) != float("inf") else str(value)
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
        case dict():
            return {
                str(name): "***" if _SECRET_NAME.search(str(name)) else _clean(item)
                for name, item in value.items()
            }
        case _:
            return masked(str(value))


def _word(value: Any) -> str:
    """*value* as one word of a line: quoted where it is none, without line breaks."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = masked(text)
    if not isinstance(value, str | list | dict) or _PLAIN.fullmatch(text):
        return escaped(text)
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped(quoted)}"'
