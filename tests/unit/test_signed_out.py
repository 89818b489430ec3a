"""Sessions that were signed out are known to every process, for as long as they would be good."""

from __future__ import annotations

import os
import stat
import time
from datetime import timedelta
from pathlib import Path

from app.server.signed_out import SignedOut

LIFETIME = timedelta(hours=12)


def test_an_ended_session_is_known_to_whoever_shares_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "signed_out"
    mine, other = SignedOut(folder, LIFETIME), SignedOut(folder, LIFETIME)
    assert "abc" not in other

    mine.add("abc")
    mine.add("abc")

    assert "abc" in other
    assert "abd" not in other
    assert "../abc" not in other
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all("abc" not in path.name for path in folder.iterdir())


def test_what_has_lapsed_by_itself_is_forgotten(tmp_path: Path) -> None:
    ended = SignedOut(tmp_path, LIFETIME)
    ended.add("old")
    [old] = tmp_path.iterdir()
    then = time.time() - LIFETIME.total_seconds() - 1
    os.utime(old, (then, then))

    ended.add("new")

    assert "old" not in ended
    assert "new" in ended
