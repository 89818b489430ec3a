"""Sessions that were ended before their time.

A session is a signed cookie, which a browser gives up when it signs out, but whoever copied it does
not. So the ids of such sessions are kept, as empty files, for as long as their cookie would be
good: every process that shares the folder knows them.
"""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta
from pathlib import Path


class SignedOut:
    """The ids of ended sessions in *folder*, none older than *lifetime*."""

    def __init__(self, folder: Path, lifetime: timedelta) -> None:
        self._folder = folder
        self._lifetime = lifetime

    def __contains__(self, session_id: str) -> bool:
        return self._path(session_id).exists()

    def add(self, session_id: str) -> None:
        """The session is over; ids whose cookies have lapsed by themselves are forgotten."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path(session_id).touch(mode=0o600)
        oldest = time.time() - self._lifetime.total_seconds()
        for path in self._folder.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another process was faster

    def _path(self, session_id: str) -> Path:
        return self._folder / hashlib.sha256(session_id.encode()).hexdigest()[:40]
