"""Pages that are one program: what they show works in the order in which it stands there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from psycopg import AsyncConnection

DOCS = Path(__file__).resolve().parents[2] / "docs"


LIBRARY, HOWTOS = ((DOCS / name).read_text() for name in ("library.md", "howtos.md"))


async def run(text: str, name: str, names: dict[str, object]) -> None:
    """Run the blocks of a page, one after the other."""
    for block in re.finditer(r"```python\n(.*?)```", text, re.S):
        above = text[: block.start(1)].count("\n")  # so that a failure names the page's line
        code = compile("\n" * above + block[1], name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        answer = eval(code, names)
        if inspect.isawaitable(answer):
            await answer


async def test_the_program_of_the_library_page_runs(database_url, capsys):
    await run(LIBRARY, "library.md", {"DATABASE_URL": database_url})

    said = capsys.readouterr().out
    assert "OVER_LIMIT" in said
    assert "COMPLETED {'reserved': 0} None" in said
    async with await AsyncConnection.connect(database_url) as conn:
        cursor = await conn.execute("select command_bus.count_by_status('orders')::text")
        assert await cursor.fetchone() == ("(0,0,2,1,0,0)",)


async def test_the_howtos_run(database_url, capsys):
    await run(HOWTOS, "howtos.md", {"DATABASE_URL": database_url})

    said = capsys.readouterr().out
    assert "(700, True)" in said
    assert "PENDING: 'PENDING'>: 1" in said
