"""Numbers are stated once: templates and scripts get limits from the modules that check them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.loadtest.generating import MIXED
from app.web.limits import LIMITS

APP = Path(__file__).resolve().parents[2] / "app"
TEMPLATES = sorted((APP / "templates").rglob("*.html"))
SCRIPTS = sorted([*(APP / "static" / "js").glob("*.js"), *(APP / "static" / "src").glob("*.js")])

LIMIT_IN_TEMPLATE = re.compile(
    r"""maxlength["']?\s*[:=]\s*["']?[1-9]|["']max["']:\s*(?!100\b)[1-9]"""
)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_states_no_limit_of_its_own(path: Path) -> None:
    lines = path.read_text().splitlines()

    assert [line.strip() for line in lines if LIMIT_IN_TEMPLATE.search(line)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_knows_no_limit_and_no_mix(path: Path) -> None:
    # A small number may stand for something else: 1,000 turns seconds into milliseconds.
    limits = "|".join(str(limit) for limit in LIMITS.values() if limit > 10_000)
    mix = "|".join(rf"{kind.value}:\s*\d" for kind in MIXED)
    own = re.compile(rf"(?<![\w./])({limits})(?!\w)|\b({mix})")

    assert own.findall(path.read_text()) == []
