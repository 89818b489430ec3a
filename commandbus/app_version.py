"""Which version of the application runs, read without starting a process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from commandbus.texts import clean_text

VARIABLE = "APP_VERSION"
MAX_VERSION = 100
REVISION_LENGTH = 12


def app_version(environ: Mapping[str, str] | None = None) -> str | None:
    """APP_VERSION, otherwise the git revision of the program; None where there is neither."""
    given = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    return clean_text(given, MAX_VERSION) if given else git_revision(_program())


def _program() -> Path:
    """The folder of the program that runs, or the current one."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file).resolve().parent if file else Path.cwd()


def git_revision(folder: Path) -> str | None:
    """The commit that is checked out in *folder* or the nearest one above it, shortened."""
    try:
        for each in (folder, *folder.parents):
            if (each / ".git").exists():
                revision = _revision(_git_folder(each / ".git"))
                return None if revision is None else revision[:REVISION_LENGTH]
    except (OSError, ValueError):
        pass
    return None


def _git_folder(path: Path) -> Path:
    """The folder behind `.git`, which is a file in a worktree or a submodule."""
    if path.is_dir():
        return path
    return (path.parent / path.read_text().removeprefix("gitdir:").strip()).resolve()


def _revision(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head or None
    name = head.removeprefix("ref:").strip()
    common = git / "commondir"
    shared = (git / common.read_text().strip()).resolve() if common.exists() else git
    for folder in (git, shared):
        if (folder / name).is_file():
            return (folder / name).read_text().strip() or None
    packed = shared / "packed-refs"
    for line in packed.read_text().splitlines() if packed.exists() else ():
        revision, _, ref = line.partition(" ")
        if ref == name:
            return revision
    return None
