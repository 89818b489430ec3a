"""What the library offers by name."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import commandbus
import commandbus.migrating
from commandbus import AuditEventType, CommandStatus, errors, ops

SCHEMA = Path(__file__).parents[2] / "migrations" / "V001__commandbus_schema.sql"
MODULES = [
    "commandbus",
    *(f"commandbus.{p.stem}" for p in Path(commandbus.__file__).parent.glob("[a-z]*.py")),
    "commandbus.migrating",
    *(
        f"commandbus.migrating.{p.stem}"
        for p in Path(commandbus.migrating.__file__).parent.glob("[a-z]*.py")
    ),
]
# What the parts of a worker ask each other for.
INTERNAL = {"FollowUps", "RegisteredHandler"}
# Grows while it is told to whoever follows.
GROWING = commandbus.Pruned


@pytest.mark.parametrize("name", commandbus.__all__)
def test_every_public_name_exists_and_is_documented(name: str):
    thing = getattr(commandbus, name)
    if isinstance(thing, str):
        return
    doc = inspect.getdoc(thing)
    assert doc
    assert not doc.startswith(f"{name}("), "a dataclass without a docstring of its own"


@pytest.mark.parametrize(
    "thing", [getattr(commandbus, name) for name in commandbus.__all__], ids=commandbus.__all__
)
def test_every_public_method_is_documented(thing: object):
    if not inspect.isclass(thing):
        return
    undocumented = [
        name
        for name, member in vars(thing).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property))
        and not inspect.getdoc(member)
    ]
    assert undocumented == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str):
    assert importlib.import_module(module).__doc__


def test_the_names_of_the_specification_are_there():
    assert {
        "CommandBus", "Worker", "HandlerRegistry", "HandlerContext", "Command", "CommandStatus",
        "PermanentCommandError", "TransientCommandError", "BusinessRuleError", "RetryPolicy",
    } <= set(commandbus.__all__)  # fmt: skip
    assert ops.TroubleshootingQueue is commandbus.TroubleshootingQueue


def test_what_is_imported_is_what_is_public():
    imported = {
        name
        for name, thing in vars(commandbus).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert imported == set(commandbus.__all__)


@pytest.mark.parametrize(
    "thing", [getattr(commandbus, name) for name in commandbus.__all__], ids=commandbus.__all__
)
def test_public_values_cannot_be_changed(thing: object):
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing) and thing is not GROWING:
        assert thing.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "sql_name"), [(CommandStatus, "command_status"), (AuditEventType, "audit_event")]
)
def test_python_and_sql_know_the_same_values(kind: type[enum.Enum], sql_name: str):
    found = re.search(
        rf"create type command_bus\.{sql_name} as enum \((.*?)\);", SCHEMA.read_text(), re.S
    )
    assert found is not None
    assert re.findall(r"'([A-Z_]+)'", found[1]) == [each.value for each in kind]


def test_final_statuses_are_those_that_nothing_leaves():
    assert {each for each in CommandStatus if each.is_final} == {
        CommandStatus.COMPLETED,
        CommandStatus.FAILED,
        CommandStatus.CANCELLED,
    }


def test_every_class_that_public_signatures_name_is_public():
    missing = {
        f"{name}: {word}"
        for name in commandbus.__all__
        for word, found in _classes_named_by(getattr(commandbus, name))
        if found.__module__.startswith("commandbus") and word not in commandbus.__all__
        if word not in INTERNAL
    }

    assert missing == set()


def test_every_error_is_public():
    found = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, commandbus.CommandBusError)
    }
    assert found <= set(commandbus.__all__)


def _classes_named_by(public: object) -> Iterator[tuple[str, type]]:
    """The classes in the annotations of a public name and of its public members."""
    if not inspect.isclass(public):
        return
    members = [
        getattr(member, "fget", member)
        for name, member in vars(public).items()
        if not name.startswith("_") or name == "__init__"
    ]
    for owner in (public, *members):
        for annotation in getattr(owner, "__annotations__", {}).values():
            for word in re.findall(r"\w+", str(annotation)):
                found = getattr(sys.modules[public.__module__], word, None)
                if inspect.isclass(found):
                    yield word, found
