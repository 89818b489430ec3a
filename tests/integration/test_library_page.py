"""docs/library.md is one program: what it shows works in the order in which it stands there."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from psycopg import AsyncConnection

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"


async def test_the_program_of_the_page_runs(database_url, capsys):
    names: dict[str, object] = {"DATABASE_URL": database_url}
    text = PAGE.read_text()

    for block in re.finditer(r"```python\n(.*?)```", text, re.S):
        above = text[: block.start(1)].count("\n")  # so that a failure names the page's line
        code = compile("\n" * above + block[1], str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        answer = eval(code, names)
        if inspect.isawaitable(answer):
            await answer

    said = capsys.readouterr().out
    assert "OVER_LIMIT" in said
    assert "COMPLETED {'reserved': 0} None" in said
    async with await AsyncConnection.connect(database_url) as conn:
        cursor = await conn.execute("select command_bus.count_by_status('orders')::text")
        assert await cursor.fetchone() == ("(0,0,2,1,0,0)",)
