"""Log lines: one for each event, whatever stands in it, and never a password."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.database.pools import new_pool
from app.settings.configuration import LogFormat
from app.settings.logs import JsonFormatter, TextFormatter, configure_logging, masked
from commandbus.errors import one_line
from tests.waiting import until

URL = "postgresql://ann:s3cret@db.example:5432/x"


def line(formatter, event, exc_info=None, **fields):
    record = logging.LogRecord("app.test", logging.INFO, "x.py", 1, event, (), exc_info)
    vars(record).update(fields)
    return formatter.format(record)


def test_a_text_line_has_time_level_event_and_fields():
    text = line(TextFormatter(), "worker_started", worker_id=3, domain="test", idle=None, on=True)
    assert text.split(" ", 1)[1] == "INFO worker_started worker_id=3 domain=test on=true"
    assert text.split(" ")[0].endswith("Z")


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\r\nb", "a\x85b", "a\u2028b", 'a "b" c', "a\x1b[2Jb"]
)
def test_a_text_line_stays_one_line(hostile):
    text = line(TextFormatter(), "failed", error=hostile, data={"x": hostile})
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


def test_a_json_line_is_one_object():
    event = json.loads(
        line(
            JsonFormatter(), "failed", error="a\nb", seconds=float("nan"), level="mine", n=[1, {2}]
        )
    )
    assert event["event"] == "failed"
    assert (event["error"], event["seconds"], event["n"]) == ("a\nb", "nan", [1, [2]])
    assert event["level"] == "INFO"  # a field cannot take the place of what every event has


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_stays_on_the_line_of_its_event(formatter):
    try:
        raise ValueError(f"cannot reach {URL}")
    except ValueError:
        text = line(formatter, "failed", exc_info=sys.exc_info())
    assert len(text.splitlines()) == 1
    assert "ValueError" in text
    assert "s3cret" not in text


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize(
    "value",
    [
        URL,
        "postgresql://ann:p@ss:s3cret@h/x",
        "postgresql://h/x?user=ann&password=s3cret&port=1",
        "host=h password=s3cret",
        "password = 's3cret and more s3cret'",
        {"conninfo": URL},
        {"password": "s3cret", "SECRET_KEY": "more s3cret"},
        [URL],
    ],
)
def test_no_line_holds_a_password(formatter, value):
    assert "s3cret" not in line(formatter, str(value), field=value)


def test_what_holds_no_password_is_left_alone():
    text = "see http://localhost:5001/commands and a@b, postgresql://ann@h:5432/x?host=/tmp/a"
    assert masked(text) == text


@pytest.fixture
def configured() -> Iterator[Callable[..., io.StringIO]]:
    """Configures logging to a stream, until the test is over."""
    root, pools = logging.getLogger(), logging.getLogger("psycopg.pool")
    handlers, level, filters = list(root.handlers), root.level, list(pools.filters)

    def configure(log_format: LogFormat, level: str) -> io.StringIO:
        stream = io.StringIO()
        configure_logging(log_format, level, stream=stream)
        return stream

    yield configure
    root.handlers[:], pools.filters[:] = handlers, filters
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_each_format_has_its_formatter(configured, log_format):
    stream = configured(log_format, "WARNING")

    logging.getLogger("x").info("hidden")
    logging.getLogger("x").warning("shown", extra={"a": 1})

    [text] = stream.getvalue().splitlines()
    assert ("shown a=1" in text) == (log_format is LogFormat.TEXT)


async def test_why_a_pool_cannot_reach_the_server_is_said_once(configured, tmp_path):
    stream = configured(LogFormat.JSON, "INFO")
    away = f"postgresql://ann:s3cret@/x?host={tmp_path}"
    pool = new_pool(
        away, application_name="t", name="mine", answer_timeout=5, max_size=1, timeout=0.1
    )
    await pool.open()
    try:
        await until(lambda: pool.get_stats().get("connections_errors", 0) >= 3)
    finally:
        await pool.close()

    [event] = map(json.loads, stream.getvalue().splitlines())
    assert (event["event"], event["pool"]) == ("connection_failed", "mine")
    assert "No such file or directory" in event["error"]


def test_no_log_line_quotes_the_sql_that_a_server_message_comes_with():
    """`str` of a psycopg error has the statement and its context in it, kilobytes of them."""
    sources = [*Path("commandbus").rglob("*.py"), *Path("app").rglob("*.py")]
    quoting = [
        f"{path}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if '"error": str(' in line
    ]

    assert len(sources) > 50
    assert quoting == []


def test_a_server_message_is_one_line_of_it():
    assert one_line(ValueError("two\n  lines")) == "two lines"
