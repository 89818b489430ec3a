"""Text that cannot be seen is written out, and text that can stays as it is."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings.logs import JsonFormatter, TextFormatter
from app.visible import escaped, terminal_line, visible, visible_json

HIDDEN = (
    *("\u202e", "\u202a", "\u2066", "\u2069", "\u200e", "\u200f", "\u061c", "\u200b", "\ufeff"),
    *("\u00ad", "\u2060", "\u2028", "\x1b", "\x07", "\x08", "\x7f", "\x9b", "\u3164", "\U000e0041"),
)
SEEN = (
    *("plain", "Grüße, 注文", "\u05d0\u05d1\u05d2", "line\nbreak\ttab", "<b>&amp;</b>"),
    "\U0001f469\u200d\U0001f4bb",  # a woman, a joiner, a computer
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # a Persian word with its non-joiner
)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_nobody_sees_is_written_out(hidden: str) -> None:
    text = f"gpj{hidden}exe"

    assert visible(text) == f"gpj<U+{ord(hidden):04X}>exe"
    assert json.loads(visible_json(json.dumps(text, ensure_ascii=False))) == text
    for shown in (
        visible_json(json.dumps(text, ensure_ascii=False)),
        escaped(text),
        terminal_line(text),
    ):
        assert hidden not in shown


@pytest.mark.parametrize("joiner", ["\u200c", "\u200d"])
def test_a_joiner_beside_plain_letters_is_written_out(joiner: str) -> None:
    assert visible(f"adm{joiner}in") == f"adm<U+{ord(joiner):04X}>in"


@pytest.mark.parametrize("text", SEEN)
def test_visible_text_is_shown_unchanged(text: str) -> None:
    assert visible(text) == text


@given(st.text())
def test_a_text_is_written_out_once_and_on_one_line(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    assert len(terminal_line(text).splitlines()) <= 1
    terminal_line(text).encode()


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_log_line_holds_nothing_that_nobody_sees(
    formatter: logging.Formatter, hidden: str
) -> None:
    record = logging.LogRecord("app.test", logging.INFO, "x.py", 1, "failed", (), None)
    record.error = f"a{hidden}b"

    line = formatter.format(record)

    assert hidden not in line
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["error"] == f"a{hidden}b"
