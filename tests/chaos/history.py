"""What happened, written outside the database by everybody who takes part.

Each record is one line, appended by one write to a file opened with O_APPEND, so that processes
share the file without a lock and a process that is killed leaves whole lines behind.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CANCELLED = "cancelled"
"""How a handler ended that was cancelled, at the end of its time or of its lease."""


class History:
    """The record, as the programs that take part write it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def attempted(self, command_id: str, content: dict[str, Any]) -> None:
        """Somebody is about to send a command with this content."""
        self._write({"what": "attempted", "command_id": command_id, "content": content})

    def acknowledged(self, command_id: str) -> None:
        """The send has returned."""
        self._write({"what": "acknowledged", "command_id": command_id})

    def started(self, command_id: str, attempt: int) -> None:
        """A handler is about to do its work."""
        self._write(
            {
                "what": "started",
                "command_id": command_id,
                "attempt": attempt,
                "pid": os.getpid(),
                "at": time.time(),
            }
        )

    def ended(self, command_id: str, attempt: int, how: str) -> None:
        """A handler is about to return (completed) or to raise (its error's code, or CANCELLED)."""
        self._write(
            {
                "what": "ended",
                "command_id": command_id,
                "attempt": attempt,
                "how": how,
                "at": time.time(),
            }
        )

    def _write(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record) + "\n").encode()
        written = os.write(self._file, line)
        assert written == len(line), "a record was torn; the disk may be full"

    def read(self) -> Recorded:
        """Everything that was written so far."""
        recorded = Recorded()
        for line in self.path.read_text().splitlines():
            recorded.add(json.loads(line))
        return recorded


@dataclass
class Recorded:
    """The record, as the checker reads it; attempts are named by (command_id, attempt)."""

    attempted: dict[str, dict[str, Any]] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    starts: Counter[tuple[str, int]] = field(default_factory=Counter)
    started_at: defaultdict[tuple[str, int], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    ended_at: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ends: defaultdict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: dict[str, Any]) -> None:
        """Take one record."""
        command_id = record["command_id"]
        match record["what"]:
            case "attempted":
                self.attempted[command_id] = record["content"]
            case "acknowledged":
                self.acknowledged.add(command_id)
            case "started":
                self.starts[command_id, record["attempt"]] += 1
                self.started_at[command_id, record["attempt"]].append(record["at"])
            case "ended":
                self.ends[command_id, record["attempt"]].append(record["how"])
                self.ended_at[command_id].append(record["at"])
            case unknown:
                raise ValueError(f"a record of an unknown kind: {unknown}")

    def all_starts_of(self, command_id: str) -> list[float]:
        """When handlers were started for a command, over all attempts."""
        return [
            at
            for (started, _), moments in self.started_at.items()
            if started == command_id
            for at in moments
        ]

    def starts_of(self, command_id: str) -> int:
        """How often a handler was started for a command, over all attempts."""
        return sum(n for (started, _), n in self.starts.items() if started == command_id)
