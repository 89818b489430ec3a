"""Pruning, as tests do it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from app import retention
from app.models.test_command import send_test_command
from app.testcommand.behaviors import Behavior
from commandbus import CommandBus, NewCommand
from commandbus import store as bus_store
from commandbus.ops import TroubleshootingQueue
from commandbus.retention import FINISHED, Pruner, RetentionRule
from tests.facts import DOMAIN, QUEUE, Pool, claim, completed, failed, rows, send, settle

EVERYTHING = [RetentionRule(status=each, keep=0) for each in FINISHED]
ENDED_STATES = {"completed", "failed", "cancelled"}
TABLES = (
    "command_bus_command",
    "command_bus_audit",
    "command_bus_tsq",
    "command_bus_unsuccessful",
    "command_bus_waiting",
    "command_bus_suspect",
)


async def prune(pool: Pool, rules=EVERYTHING, *, dry_run=False, max_seconds=None, **options):
    """What pruning by *rules* deletes."""
    async with bus_store.autocommit(pool) as conn:
        pruner = Pruner(conn, **options)
        return await pruner.prune(rules, dry_run=dry_run, max_seconds=max_seconds)


async def prune_history(pool: Pool, older_than: timedelta) -> dict[str, int]:
    """What of the history was deleted, by kind."""
    async with bus_store.autocommit(pool) as conn:
        return dict(await retention.prune_history(Pruner(conn), conn, older_than))


async def end(pool: Pool, worker_id: int, command_ids: list[UUID], how: str) -> None:
    """Let commands that are in the queue end in a status."""
    claimed = {each.command.command_id: each for each in await claim(pool, worker_id)}
    for command_id in command_ids:
        if how == "COMPLETED":
            outcome = completed(claimed[command_id])
        else:
            kind = "business" if how == "FAILED" else "permanent"
            outcome = failed(claimed[command_id], kind)
        await settle(pool, worker_id, outcome)
        if how == "CANCELLED":
            await TroubleshootingQueue(pool).operator_cancel(DOMAIN, command_id)


async def make(pool: Pool, worker_id: int, number: int, how: str = "COMPLETED", **fields):
    """Commands that ended, the oldest first."""
    ids = []
    for _ in range(number):
        [command_id] = await send(pool, **fields)
        await end(pool, worker_id, [command_id], how)
        ids.append(command_id)
    return ids


async def age(pool: Pool, command_ids: list[UUID], days: float) -> None:
    """Let commands have been sent, and ended, so long ago."""
    for table, columns in (
        ("command_bus_command", ("created_at", "finished_at")),
        ("command_bus_unsuccessful", ("created_at", "ended_at")),
    ):
        moved = ", ".join(f"{each} = {each} - interval '{days} days'" for each in columns)
        await rows(pool, f"update {table} set {moved} where command_id = any (%s)", command_ids)


async def left(pool: Pool) -> set[UUID]:
    """The ids of all commands that there are."""
    return {row[0] for row in await rows(pool, "select command_id from command_bus_command")}


async def everything(pool: Pool) -> dict[str, list[str]]:
    """All rows that carry commands, in every table and in the queue."""
    tables = (*TABLES, f"pgmq.q_{QUEUE}", "command_bus_rejected")
    return {table: sorted(map(str, await rows(pool, f"select * from {table}"))) for table in tables}


def new_command() -> NewCommand:
    return NewCommand(command_type="DoIt", command_id=uuid4(), data={})


async def send_test(pool: Pool, kind: str, **fields: Any) -> UUID:
    """Send a test command that does what *kind* says, for a real worker."""
    behavior = Behavior.model_validate({"type": kind})
    sent = await send_test_command(CommandBus(pool), behavior, {}, **fields)
    return sent.command_id
