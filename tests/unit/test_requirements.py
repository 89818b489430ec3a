"""What requirements.txt alone is enough for."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.conftest import DEVELOPMENT_PACKAGES
from tests.programs import ROOT

COLLECT = """
import sys
for name in {missing}:
    sys.modules[name] = None  # as if it were not installed
import pytest
plugins = ["-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider"]
sys.exit(pytest.main(["-m", "e2e", "--collect-only", "-q", *plugins]))
"""


def test_the_end_to_end_suites_need_no_development_package():
    missing = [*DEVELOPMENT_PACKAGES, "pytest_timeout", "xdist", "trustme", "time_machine"]
    done = subprocess.run(
        [sys.executable, "-c", COLLECT.format(missing=missing)],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/e2e/test_crash.py::" in done.stdout
    assert re.search(r"^Not collected, as .*playwright.*: tests/browser, ", done.stdout, re.M)


def test_the_lock_file_has_what_the_list_names():
    lists = (ROOT / "requirements.txt").read_text()
    names = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?(==[\w.]+)", lists, re.M)
    assert {"pytest", "pytest-asyncio"} <= {name for name, _ in names}
    locked = (ROOT / "requirements.lock").read_text().lower()
    assert [n for n, v in names if f"\n{n.lower().replace('_', '-')}{v} " not in locked] == []
