"""Log lines: one for each event, whatever stands in it, and never a password."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from app.config import LogFormat
from app.logs import JsonFormatter, TextFormatter, masked

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


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_each_format_has_its_formatter(log_format):
    from app.logs import configure_logging

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    try:
        configure_logging(log_format, "WARNING", stream=stream)
        logging.getLogger("x").info("hidden")
        logging.getLogger("x").warning("shown", extra={"a": 1})
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
    [text] = stream.getvalue().splitlines()
    assert ("shown a=1" in text) == (log_format is LogFormat.TEXT)
