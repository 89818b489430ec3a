"""A page's values are computed when a template uses them, and once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pytest
from jinja2 import DictLoader, Environment, StrictUndefined, UndefinedError

from app.web.rendering import LazyContext, PageContext


class Page(PageContext):
    """It remembers what was computed."""

    constant = 3

    def __init__(self) -> None:
        self.given = "given"
        self._computed: list[str] = []

    @cached_property
    def dear(self) -> str:
        self._computed.append("dear")
        return "dear"

    @cached_property
    def unused(self) -> str:
        self._computed.append("unused")
        return "unused"

    @property
    def broken(self) -> str:
        raise RuntimeError("the database is away")

    @staticmethod
    def doubled(number: int) -> int:
        return 2 * number


def render(page: Page, /, **templates: str) -> str:
    environment = Environment(loader=DictLoader(templates), undefined=StrictUndefined)
    environment.context_class = LazyContext
    variables: dict[str, Any] = page.variables()
    return environment.get_template("page").render(variables)


def test_only_the_values_that_a_template_uses_are_computed() -> None:
    page = Page()
    assert render(page, page="{{ dear }} {{ given }} {{ doubled(constant) }}") == "dear given 6"
    assert page._computed == ["dear"]


def test_a_value_is_computed_once_for_a_page_and_its_parts() -> None:
    page = Page()
    text = render(
        page,
        base="{% block content %}{% endblock %}",
        page="{% extends 'base' %}{% block content %}{{ dear }} {% include 'part' %}"
        " {% from 'macros' import shown with context %}{{ shown() }}{% endblock %}",
        part="{{ dear }}{% for _ in [1, 2] %} {{ dear }}{% endfor %}",
        macros="{% macro shown() %}{{ dear }}{% endmacro %}",
    )
    assert text == "dear dear dear dear dear"
    assert page._computed == ["dear"]


@pytest.mark.parametrize("name", ["unknown", "variables", "_computed"])
def test_a_name_that_is_no_value_of_the_page_is_an_error(name: str) -> None:
    with pytest.raises(UndefinedError):
        render(Page(), page=f"{{{{ {name} }}}}")


def test_an_error_of_a_value_reaches_whoever_asked_for_the_page() -> None:
    with pytest.raises(RuntimeError, match="the database is away"):
        render(Page(), page="{{ broken }}")
