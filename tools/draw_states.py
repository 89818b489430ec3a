"""Draw docs/states.md from the state table of the database: ``python -m tools.draw_states``.

The table is migrations/R__commandbus_states.sql: ``legal_steps()`` and ``status_after()``. Every
audit trail is checked against it, and a test keeps the page equal to it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import psycopg

from app.database import open_database
from app.settings.configuration import Settings

PAGE = Path(__file__).parent.parent / "docs" / "states.md"
BEGIN, END = "<!-- drawn by tools/draw_states.py: begin -->", "<!-- end -->"

# Events that are always followed by another one in the same transaction, and so are no state.
INTERMEDIATE = {"RETRY_EXHAUSTED"}

Step = tuple[str | None, str]


def read_steps(conninfo: str) -> tuple[list[Step], dict[str, str | None]]:
    """The legal steps from event to event, and the status after each event."""
    with psycopg.connect(conninfo) as conn:
        steps = conn.execute(
            "select previous::text, next::text from command_bus.legal_steps()"
        ).fetchall()
        statuses = conn.execute(
            "select event::text, command_bus.status_after(event)::text"
            " from unnest(enum_range(null::command_bus.audit_event)) as event"
        ).fetchall()
    return [(previous, following) for previous, following in steps], dict(statuses)


def drawing(steps: list[Step], status_after: dict[str, str | None]) -> str:
    """The diagram between statuses, and the table of the events that may follow each other."""
    followers: dict[str | None, list[str]] = defaultdict(list)
    for previous, following in steps:
        followers[previous].append(following)
    edges: dict[tuple[str, str], set[str]] = defaultdict(set)
    for previous, following in steps:
        for origin in _statuses_before(previous, steps, status_after):
            target = status_after[following]
            if target is not None:
                edges[origin, target].add(following)
    lines = ["```mermaid", "stateDiagram-v2"]
    for (origin, target), events in sorted(edges.items()):
        lines.append(f"    {origin} --> {target}: {', '.join(sorted(events))}")
    for final in ("COMPLETED", "FAILED", "CANCELLED"):
        lines.append(f"    {final} --> [*]")
    lines += ["```", "", "| After | may follow |", "|---|---|"]
    for previous, following_events in followers.items():
        name = "the beginning" if previous is None else previous
        lines.append(f"| {name} | {', '.join(following_events)} |")
    return "\n".join(lines)


def _statuses_before(
    event: str | None, steps: list[Step], status_after: dict[str, str | None]
) -> set[str]:
    """The statuses that a command can have when what follows *event* happens.

    FAILED closes an attempt; where something follows it, that happened to a command IN_PROGRESS.
    """
    if event is None:
        return {"[*]"}
    if event == "FAILED":
        return {"IN_PROGRESS"}
    if event in INTERMEDIATE:
        before: set[str] = set()
        for previous, following in steps:
            if following == event:
                before |= _statuses_before(previous, steps, status_after)
        return before
    status = status_after[event]
    return set() if status is None else {status}


def page_with(new_drawing: str, page: str) -> str:
    """*page* with the drawing between its two marks replaced."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{new_drawing}\n{END}{tail}"


def main() -> None:
    """Write the page."""
    with open_database(Settings.from_env()) as database:
        page = page_with(drawing(*read_steps(database.url)), PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(f"{PAGE.name} is drawn\n")


if __name__ == "__main__":
    main()
