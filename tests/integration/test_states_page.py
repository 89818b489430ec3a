"""docs/states.md shows the state table that the database really uses."""

from __future__ import annotations

from tools.draw_states import PAGE, drawing, page_with, read_steps


def test_the_page_is_drawn_from_the_table_in_the_database(database_url: str) -> None:
    page = PAGE.read_text(encoding="utf-8")

    drawn = page_with(drawing(*read_steps(database_url)), page)

    assert page == drawn, "run: python -m tools.draw_states"
