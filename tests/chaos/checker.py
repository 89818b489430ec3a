"""The history checker: does what the database holds agree with what really happened?

It compares the record that was written outside the database (history.py) with the final rows, and
adds what ``command_bus.find_violations()`` says of the rows alone. It is meant for a bus on which
everything has come to its end: nothing is PENDING or IN_PROGRESS any more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import TupleRow, dict_row

from commandbus.outcomes import HANDLER_TIMEOUT
from tests.chaos.history import CANCELLED, Recorded

ENDED = ("COMPLETED", "FAILED", "CANCELLED")
CLOSING = ("COMPLETED", "OPERATOR_COMPLETE", "OPERATOR_CANCEL")
ASIDE = ("LATE_RESULT", "REPLY_FAILED")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be."""

    rule: str
    command_id: str | None
    detail: str


@dataclass
class Snapshot:
    """What the database holds, all of one moment."""

    commands: dict[str, Row]
    trails: dict[str, list[Row]]
    tsq: set[str]
    replies: dict[str, list[Row]]
    queued: list[Row]
    waiting: list[str]
    parked: list[str]
    sql_violations: list[Row]


def take_snapshot(conn: psycopg.Connection[TupleRow], domain: str = "test") -> Snapshot:
    """Read everything that the checker needs; *conn* is best in a REPEATABLE READ transaction."""
    with conn.cursor(row_factory=dict_row) as cur:

        def rows(query: str, *params: Any) -> list[Row]:
            return cur.execute(query.encode(), params).fetchall()

        trails: defaultdict[str, list[Row]] = defaultdict(list)
        for event in rows(
            "select command_id::text, event_type::text as event, attempt, msg_id, details"
            " from command_bus_audit where domain = %s order by audit_id",
            domain,
        ):
            trails[event["command_id"]].append(event)
        replies: defaultdict[str, list[Row]] = defaultdict(list)
        for reply in rows(f"select message from pgmq.q_{domain}__replies order by msg_id"):
            replies[reply["message"]["command_id"]].append(reply["message"])
        return Snapshot(
            commands={
                row["command_id"]: row
                for row in rows(
                    "select command_id::text, status::text, attempts, max_attempts, command_type,"
                    " data, result, correlation_id::text, reply_to, last_error_code, lane"
                    " from command_bus_command where domain = %s",
                    domain,
                )
            },
            trails=dict(trails),
            tsq={
                row["id"]
                for row in rows(
                    "select command_id::text as id from command_bus_tsq where domain = %s", domain
                )
            },
            replies=dict(replies),
            queued=rows(f"select msg_id, message from pgmq.q_{domain}__commands"),
            waiting=[
                row["id"]
                for row in rows(
                    "select command_id::text as id from command_bus_waiting where domain = %s",
                    domain,
                )
            ],
            parked=[
                row["id"]
                for row in rows(
                    "select command_id::text as id from command_bus_suspect where domain = %s"
                    " union all"
                    " select command_id::text from command_bus_parked where domain = %s",
                    domain,
                    domain,
                )
            ],
            sql_violations=rows(
                "select invariant, command_id::text, detail from command_bus.find_violations()"
            ),
        )


def check(history: Recorded, database: Snapshot, *, budget: int = 3) -> list[Violation]:
    """Every violation; *budget* is that of commands that have none of their own."""
    return [
        *_rows_agree(database),
        *_nothing_lost_or_invented(history, database),
        *_everything_ended(database),
        *_attempts_are_counted(database, budget),
        *_outcomes_really_happened(history, database),
        *_ended_once(database),
        *_answered_once(database),
        *_lanes_in_order(history),
    ]


def assert_clean(
    history: Recorded, conn: psycopg.Connection[TupleRow], *, budget: int = 3
) -> Snapshot:
    """Fail with the first violations, if there are any; the snapshot, for further questions."""
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read")
        database = take_snapshot(conn)
    found = check(history, database, budget=budget)
    shown = "\n".join(
        f"{v.rule}: {v.command_id}: {v.detail}\n    {_trail(database, v.command_id)}"
        for v in found[:20]
    )
    assert not found, f"{len(found)} violations:\n{shown}"
    return database


def _trail(database: Snapshot, command_id: str | None) -> str:
    events = database.trails.get(command_id or "", [])
    return " ".join(f"{e['event']}({e['attempt']},m{e['msg_id']})" for e in events)


def _rows_agree(database: Snapshot) -> Iterator[Violation]:
    """What SQL says of the rows: trails, counters, histograms, totals, lists."""
    for row in database.sql_violations:
        yield Violation(row["invariant"], row["command_id"], row["detail"])


def _nothing_lost_or_invented(history: Recorded, database: Snapshot) -> Iterator[Violation]:
    """acknowledged ⊆ stored ⊆ attempted, and what is stored is what was sent."""
    for command_id in history.acknowledged - database.commands.keys():
        yield Violation("what was acknowledged is stored", command_id, "it is not")
    for command_id in database.commands.keys() - history.attempted.keys():
        yield Violation("what is stored was sent", command_id, "nobody sent it")
    for command_id, content in history.attempted.items():
        stored = database.commands.get(command_id)
        if stored is None:
            continue
        for name, sent in content.items():
            if stored[name] != sent:
                yield Violation(
                    "what is stored equals what was sent",
                    command_id,
                    f"{name}: sent {sent!r:.200}, stored {stored[name]!r:.200}",
                )


def _everything_ended(database: Snapshot) -> Iterator[Violation]:
    """Commands are final or in the troubleshooting queue; nothing is left that carries one."""
    for command_id, command in database.commands.items():
        if command["status"] not in (*ENDED, "IN_TSQ"):
            yield Violation("every command has ended", command_id, f"it is {command['status']}")
    for message in database.queued:
        yield Violation("the queue is empty", None, f"it holds {message}")
    for command_id in database.waiting:
        yield Violation("nothing waits for its time", command_id, "it does")
    for command_id in database.parked:
        yield Violation("nothing is parked", command_id, "it is")


def _attempts_are_counted(database: Snapshot, budget: int) -> Iterator[Violation]:
    """Attempts run from 1 without gaps, within the budget of each operator cycle."""
    rule = "attempts are contiguous and within the budget"
    for command_id, trail in database.trails.items():
        command = database.commands.get(command_id)
        limit = (command and command["max_attempts"]) or budget
        spent = before_retry = 0
        for event in trail:
            match event["event"]:
                case "RECEIVED":
                    spent += 1
                    if event["attempt"] != spent:
                        yield Violation(rule, command_id, f"{event['attempt']} instead of {spent}")
                    if spent > limit:
                        yield Violation(rule, command_id, f"attempt {spent} of {limit}")
                case "RELEASED":
                    spent -= 1
                case "OPERATOR_RETRY":
                    before_retry, spent = spent, 0
                case "OPERATOR_RETRY_UNDONE":
                    spent = before_retry
        if command is not None and command["attempts"] != spent:
            yield Violation(rule, command_id, f"the row says {command['attempts']}, not {spent}")


def _outcomes_really_happened(history: Recorded, database: Snapshot) -> Iterator[Violation]:
    """Each recorded outcome had its run, each run its claim, and the outcome is the run's own."""
    claims: Counter[tuple[str, int]] = Counter()
    for command_id, trail in database.trails.items():
        outcomes: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for event in trail:
            if event["event"] == "RECEIVED":
                claims[command_id, event["attempt"]] += 1
            elif event["event"] == "COMPLETED":
                outcomes[event["attempt"]]["completed"] += 1
            elif event["event"] == "FAILED":
                code = event["details"]["error_code"]
                outcomes[event["attempt"]][CANCELLED if code == HANDLER_TIMEOUT else code] += 1
        for attempt, recorded in outcomes.items():
            if history.starts[command_id, attempt] < recorded.total():
                yield Violation(
                    "an outcome has a start", command_id, f"attempt {attempt} never started"
                )
            said = Counter(history.ends.get((command_id, attempt), ()))
            if recorded - said:
                yield Violation(
                    "an outcome is its handler's",
                    command_id,
                    f"attempt {attempt}: recorded {dict(recorded)}, ended as {dict(said)}",
                )
    for (command_id, attempt), starts in history.starts.items():
        if starts > claims[command_id, attempt]:
            yield Violation(
                "a handler runs once for each claim",
                command_id,
                f"attempt {attempt}: {starts} starts, {claims[command_id, attempt]} claims",
            )


def _ended_once(database: Snapshot) -> Iterator[Violation]:
    """What has ended has exactly one closing event; what has not has none and is in the TSQ."""
    for command_id, command in database.commands.items():
        trail = database.trails.get(command_id, [])
        events = [event["event"] for event in trail if event["event"] not in ASIDE]
        closing = [event for event in events if event in CLOSING]
        if command["status"] == "FAILED":
            closing += [event for event in events[-1:] if event == "FAILED"]
        wanted = 1 if command["status"] in ENDED else 0
        if len(closing) != wanted:
            yield Violation("one closing event", command_id, f"{command['status']}: {closing}")
        if (command["status"] == "IN_TSQ") != (command_id in database.tsq):
            yield Violation("the TSQ lists what is IN_TSQ", command_id, command["status"])


def _lanes_in_order(history: Recorded) -> Iterator[Violation]:
    """In each lane a command begins when all that were sent before it are over.

    This is so where no operator puts one back, and no handler outlives its lease. The end of one
    that was killed is not known; it did not begin later.
    """
    lanes: defaultdict[str, list[str]] = defaultdict(list)
    for command_id, content in history.attempted.items():
        if content.get("lane"):
            lanes[content["lane"]].append(command_id)
    for lane, members in lanes.items():
        over, last = 0.0, ""
        for command_id in members:
            starts = history.all_starts_of(command_id)
            if starts and min(starts) < over:
                yield Violation(
                    "a lane runs in order, one at a time",
                    command_id,
                    f"lane {lane}: began {over - min(starts):.3f} s before {last} was over",
                )
            moments = [*starts, *history.ended_at[command_id]]
            if moments and max(moments) > over:
                over, last = max(moments), command_id


def _answered_once(database: Snapshot) -> Iterator[Violation]:
    """Exactly one reply when a command that asked for one has ended, and none before."""
    for command_id, command in database.commands.items():
        replies = database.replies.get(command_id, [])
        ended = command["status"] in ENDED and command["reply_to"] is not None
        if len(replies) != (1 if ended else 0):
            yield Violation("one reply", command_id, f"{command['status']}: {len(replies)} replies")
        for reply in replies:
            for name in ("status", "correlation_id", "command_type"):
                if reply[name] != command[name]:
                    yield Violation(
                        "the reply says what happened",
                        command_id,
                        f"{name}: {reply[name]} instead of {command[name]}",
                    )
            if command["status"] == "COMPLETED" and reply["result"] != command["result"]:
                yield Violation("the reply says what happened", command_id, "another result")
    for command_id in database.replies.keys() - database.commands.keys():
        yield Violation("one reply", command_id, "a reply of no command")
