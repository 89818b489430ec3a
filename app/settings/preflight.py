"""What has to be there before anything else is imported; said in one line where it is not.

This file, and those that import it first, are read by any Python from 3.7 on.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST_PYTHON = (3, 11)
PROGRAMS = {Path(__file__).resolve().parents[2] / name for name in ("run.py", "load_test.py")}
BASE = ("psycopg", "psycopg_pool", "dotenv")
LOAD_TEST = ("pydantic", "rich")
WEB = (
    *("flask", "flask_sqlalchemy", "sqlalchemy", "flask_wtf", "flask_openapi3", "pydantic"),
    *("limits", "waitress", "anyio"),
)


def is_program() -> bool:
    """Whether this process is one of the project's programs, which is still importing modules."""
    if sys.argv[:1] == ["-m"]:  # `python -m app.…`, whose packages are imported before it
        return True
    script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return Path(script).resolve() in PROGRAMS


def check(packages: tuple[str, ...] = BASE) -> None:
    """Python is new enough and *packages* are installed; else the process ends with 1."""
    if sys.version_info < OLDEST_PYTHON:
        found = "{}.{}.{}".format(*sys.version_info[:3])
        _end(f"Python 3.11 or newer is needed, and this is {found} ({sys.executable})")
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        _end(
            "{} {} not installed for {}; run make venv, or pip install -r requirements.lock, and"
            " use the Python of that environment (.venv/bin/python)".format(
                ", ".join(missing), "is" if len(missing) == 1 else "are", sys.executable
            )
        )


def _end(reason: str) -> None:
    sys.stderr.write(f"error: {reason}\n")
    sys.exit(1)
