"""The application as a person meets it: `python run.py` as a process, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any

from tests.programs import Program, free_port, program


class Served:
    """A running web server."""

    def __init__(self, running: Program, port: int) -> None:
        self.running = running
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> Any:
        """The JSON (or text) that a path answers with; fails unless it is a 200."""
        status, body = await self.request("GET", path)
        assert status == 200, (status, body)
        return body

    async def post(self, path: str, body: Any, *, status: int = 201) -> Any:
        """The JSON that a post answers with; fails unless the status is the expected one."""
        answered, answer = await self.request("POST", path, body)
        assert answered == status, (answered, answer)
        return answer

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        code, headers, text = await asyncio.to_thread(self._request, method, path, body)
        kind = headers.get("Content-Type") or ""
        return code, json.loads(text) if "json" in kind else text.decode()

    async def raw(self, method: str, path: str, body: Any = None) -> tuple[int, Mapping[str, str]]:
        """The status and the headers of an answer, whatever they are."""
        code, headers, _ = await asyncio.to_thread(self._request, method, path, body)
        return code, dict(headers)

    def _request(self, method: str, path: str, body: Any) -> tuple[int, Message, bytes]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} if body is not None else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()


@asynccontextmanager
async def served(
    database_url: str,
    *arguments: str,
    script: Sequence[str] = ("run.py",),
    **environment: str,
) -> AsyncIterator[Served]:
    """`python run.py` on a free port, ready; *script* starts it in another way."""
    port = free_port()
    async with program(
        *script, "--port", str(port), *arguments, DATABASE_URL=database_url, **environment
    ) as running:
        await running.says("is ready")
        yield Served(running, port)
