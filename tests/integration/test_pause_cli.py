"""`python -m app.pause`, as a real process."""

from __future__ import annotations

from commandbus import Pauses
from tests.programs import program


async def run(database_url: str, *arguments: str) -> tuple[int, str]:
    """The exit code, and what it says."""
    async with program("-m", "app.pause", *arguments, DATABASE_URL=database_url) as running:
        return await running.ends(), running.output


async def test_a_type_is_paused_listed_and_resumed(database_url, pool):
    arguments = ("test", "--type", "DoIt", "--operator", "ann")
    said = "type DoIt of domain test is paused by ann until "

    code, output = await run(database_url, *arguments, "--reason", "down", "--duration", "15m")
    assert (code, output.startswith(said)) == (0, True)
    [pause] = await Pauses(pool).list("test")
    assert pause.ends_at is not None
    assert (pause.ends_at - pause.paused_at).total_seconds() == 900

    code, output = await run(database_url, "test", "--list")
    assert output.startswith(said)
    assert output.endswith(": down")
    assert await run(database_url, *arguments, "--resume") == (0, "resumed DoIt")
    assert await run(database_url, *arguments, "--resume") == (
        1,
        "error: nothing of that is paused",
    )


async def test_what_makes_no_sense_is_refused_in_one_line(database_url):
    code, output = await run(database_url, "test")
    assert code == 2
    assert "a pause needs --reason" in output
    code, output = await run(database_url, "nowhere", "--reason", "r")
    assert (code, output.count("\n")) == (1, 0)
    assert 'domain "nowhere" does not exist' in output
