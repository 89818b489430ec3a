"""What about a database keeps the bus from working in it, for the role that asks.

A PGMQ without a function that is called would show itself only when that is called first, maybe
hours later; and rows that row-level security hides look like rows that are not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

PGMQ_LEAST_VERSION = "1.5.1"
"""The oldest PGMQ that was tried."""

TABLES = "^command_bus_"
"""The names of the bus's tables in schema public, as a regular expression."""

# A function counts that takes these arguments: later versions may have added some with defaults.
FIND_OBSTACLES: LiteralString = """
    with needed (name, arguments) as (
        values
            ('create', '{text}'::regtype[]),
            ('drop_queue', '{text}'),
            ('send', '{text,jsonb}'),
            ('send', '{text,jsonb,integer}'),
            ('send_batch', '{text,jsonb[]}'),
            ('send_batch', '{text,jsonb[],integer}'),
            ('read', '{text,integer,integer}'),
            ('delete', '{text,bigint}'),
            ('delete', '{text,bigint[]}'),
            ('archive', '{text,bigint[]}')
    )
    select 'pgmq', format('pgmq.%%s(%%s)', n.name, array_to_string(n.arguments, ', '))
    from needed as n
    where to_regnamespace('pgmq') is not null and not exists (
        select from pg_proc as p
        where p.pronamespace = to_regnamespace('pgmq') and p.proname = n.name
            and p.pronargs >= cardinality(n.arguments)
            and p.pronargs - p.pronargdefaults <= cardinality(n.arguments)
            and (p.proargtypes::oid[])[0:cardinality(n.arguments) - 1] = n.arguments::oid[]
    )
    union all
    select 'policy', c.relname
    from pg_class as c
    where c.relkind in ('r', 'p') and c.relrowsecurity and (
        c.relnamespace = to_regnamespace('public') and c.relname ~ %(tables)s
        or c.relnamespace = to_regnamespace('pgmq') and c.relname ~ '^(meta|[qa]_.*__(commands|replies))$'
    ) and row_security_active(c.oid)
    order by 1, 2
"""  # noqa: E501 - an expression is not broken


async def find_obstacles(conn: AsyncConnection[Any]) -> list[str]:
    """What keeps the bus from working, a sentence for each kind; empty where nothing does."""
    async with conn.cursor(row_factory=tuple_row) as cur:
        await cur.execute(FIND_OBSTACLES, {"tables": TABLES})
        return obstacle_texts(await cur.fetchall())


def obstacle_texts(found: Iterable[tuple[Any, ...]]) -> list[str]:
    """The sentences that tell what the rows of FIND_OBSTACLES mean."""
    names: dict[str, list[str]] = {}
    for kind, name in found:
        names.setdefault(kind, []).append(name)
    texts = []
    if "pgmq" in names:
        texts.append(
            f"PGMQ lacks {_listed(names['pgmq'])}; {PGMQ_LEAST_VERSION} or newer is needed"
            " (alter extension pgmq update)"
        )
    if "policy" in names:
        texts.append(
            f"row-level security hides rows of {_listed(names['policy'])} from this role; disable"
            " it there, or grant the role BYPASSRLS"
        )
    return texts


def _listed(names: list[str], most: int = 3) -> str:
    more = len(names) - most
    return " and ".join([", ".join(names[:most]), *([f"{more} more"] if more > 0 else [])])
