"""An OpenAPI document as people read it: endpoints in groups, fields in rows, examples to copy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")
DEEPEST = 4
EXAMPLE_ID = "0193e0a0-0000-7000-8000-000000000001"
PLACEHOLDERS = {
    "uuid": EXAMPLE_ID,
    "date-time": "2026-01-31T14:00:00Z",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A parameter, or a field of a body or an answer."""

    name: str
    kind: str
    is_required: bool
    limits: str
    """What it takes, and what it is unless given."""
    text: str
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One status with what comes along."""

    status: str
    text: str
    model: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint."""

    anchor: str
    method: str
    path: str
    summary: str
    text: str
    parameters: tuple[Row, ...]
    body_model: str
    body: tuple[Row, ...]
    answers: tuple[Reply, ...]
    errors: tuple[Reply, ...]
    curl: str


@dataclass(frozen=True, slots=True)
class Section:
    """The endpoints of one noun."""

    title: str
    anchor: str
    operations: tuple[Operation, ...]


class Reader:
    """Reads one document; *origin* is where curl reaches the server."""

    def __init__(self, document: Mapping[str, Any], origin: str) -> None:
        self._document = document
        self._origin = origin.rstrip("/")
        self._is_guarded = bool(document.get("security"))
        self._schemas: Mapping[str, Any] = document.get("components", {}).get("schemas", {})

    def sections(self) -> list[Section]:
        """Everything, grouped by the first part of the path that is no version."""
        groups: dict[str, list[Operation]] = {}
        for path, item in self._document.get("paths", {}).items():
            noun = _noun(path)
            for method in METHODS:
                if method in item:
                    groups.setdefault(noun, []).append(self._operation(method, path, item[method]))
        return [
            Section(title=noun.replace("-", " ").capitalize(), anchor=noun, operations=tuple(each))
            for noun, each in groups.items()
        ]

    def problem(self) -> Reply:
        """The body of every error."""
        return self._reply("4xx", "", {"$ref": "#/components/schemas/Problem"})

    def _operation(self, method: str, path: str, item: Mapping[str, Any]) -> Operation:
        replies = [
            self._reply(status, reply.get("description", ""), _schema_of(reply))
            for status, reply in sorted(item.get("responses", {}).items())
        ]
        parameters = tuple(self._parameter(each) for each in item.get("parameters", ()))
        schema = _schema_of(item.get("requestBody", {}))
        example = None if schema is None else self._example(schema)
        text = item.get("description", "").replace("<br/>", "\n").strip()
        return Operation(
            anchor=f"{method}{path}".translate(str.maketrans("/{", "--", "}")).replace("_", "-"),
            method=method.upper(),
            path=path,
            summary=item.get("summary", ""),
            text=" ".join(text.split()),
            parameters=parameters,
            body_model=_name_of(schema),
            body=tuple(self._rows(schema)),
            answers=_merged(reply for reply in replies if reply.status < "400"),
            errors=tuple(reply for reply in replies if reply.status >= "400"),
            curl=self._curl(method, path, item, example),
        )

    def _reply(self, status: str, text: str, schema: Mapping[str, Any] | None) -> Reply:
        return Reply(status, text, _name_of(schema), tuple(self._rows(schema)))

    def _parameter(self, item: Mapping[str, Any]) -> Row:
        schema = item.get("schema", {})
        return Row(
            name=item["name"],
            kind=f"{self._kind(schema)}, in the {item['in']}",
            is_required=item.get("required", False),
            limits=self._limits(schema),
            text=item.get("description") or schema.get("description", ""),
        )

    def _rows(
        self, schema: Mapping[str, Any] | None, depth: int = 0, seen: tuple[str, ...] = ()
    ) -> Iterator[Row]:
        """The fields of *schema*, those inside others after them; one that holds itself once."""
        if schema is None or depth > DEEPEST:
            return
        name, resolved = _name_of(schema), self._resolved(schema)
        if name and name in seen:
            return
        required = resolved.get("required", ())
        for field, inner in resolved.get("properties", {}).items():
            yield Row(
                name=field,
                kind=self._kind(inner),
                is_required=field in required,
                limits=self._limits(inner),
                text=inner.get("description", ""),
                depth=depth,
            )
            for part in self._parts(inner):
                yield from self._rows(part, depth + 1, (*seen, name))

    def _parts(self, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The objects that a field holds, itself or as items."""
        for choice in _choices(schema):
            inner = self._resolved(choice)
            if inner.get("type") == "array":
                yield from self._parts(inner.get("items", {}))
            elif inner.get("properties"):
                yield choice

    def _kind(self, schema: Mapping[str, Any]) -> str:
        """What it is, in words: text, number, list of CommandItem, text or null."""
        words = [self._kind_of_one(choice) for choice in _choices(schema)]
        return " or ".join(dict.fromkeys(words)) or "anything"

    def _kind_of_one(self, schema: Mapping[str, Any]) -> str:
        resolved = self._resolved(schema)
        kind = resolved.get("type")
        if resolved.get("format") in ("uuid", "date-time"):
            return {"uuid": "UUID", "date-time": "time"}[resolved["format"]]
        if kind == "array":
            items = resolved.get("items", {})
            return f"list of {self._kind(items)}" if items else "list"
        if kind == "object" or "properties" in resolved:
            return _name_of(schema) or "object"
        names = {
            "string": "text",
            "integer": "whole number",
            "number": "number",
            "boolean": "true or false",
            "null": "null",
        }
        return names.get(str(kind), "anything")

    def _limits(self, schema: Mapping[str, Any]) -> str:
        """Which values are right, and the one that holds unless another is given."""
        parts = []
        for choice in _choices(schema):
            resolved = self._resolved(choice)
            if "enum" in resolved:
                parts.append("one of " + ", ".join(map(str, resolved["enum"])))
            if "const" in resolved:
                parts.append(f"always {resolved['const']}")
            low = resolved.get("minimum", resolved.get("exclusiveMinimum"))
            high = resolved.get("maximum", resolved.get("exclusiveMaximum"))
            if low is not None and high is not None:
                parts.append(f"{_number(low)} to {_number(high)}")
            elif low is not None:
                parts.append(f"at least {_number(low)}")
            elif high is not None:
                parts.append(f"at most {_number(high)}")
            if "maxLength" in resolved:
                parts.append(f"at most {_number(resolved['maxLength'])} characters")
            if "maxItems" in resolved:
                parts.append(f"at most {_number(resolved['maxItems'])}")
            if "pattern" in resolved:
                parts.append(f"matches {resolved['pattern']}")
        default = schema.get("default")
        if default not in (None, [], {}):
            parts.append(f"default {json.dumps(default)}")
        text = "; ".join(dict.fromkeys(parts))
        return text[:1].upper() + text[1:]

    def _example(self, schema: Mapping[str, Any], depth: int = 0) -> Any:
        """A small right value: what is required, and what brings its own example."""
        if schema.get("example") is not None:
            return schema["example"]
        choice = next((each for each in _choices(schema) if each.get("type") != "null"), {})
        resolved = self._resolved(choice)
        if schema.get("default") is not None:
            return schema["default"]
        if "enum" in resolved:
            return resolved["enum"][0]
        properties = resolved.get("properties", {})
        if properties and depth <= DEEPEST:
            required = resolved.get("required", ())
            return {
                name: self._example(properties[name], depth + 1)
                for name in properties
                if name in required or "example" in properties[name]
            }
        if resolved.get("type") == "array":
            return [self._example(resolved.get("items", {}), depth + 1)]
        if resolved.get("format") in PLACEHOLDERS:
            return PLACEHOLDERS[resolved["format"]]
        return {
            "string": "text",
            "integer": max(1, int(resolved.get("minimum", 1))),
            "number": resolved.get("minimum", 1),
            "boolean": True,
            "object": {},
        }.get(str(resolved.get("type")))

    def _curl(self, method: str, path: str, item: Mapping[str, Any], example: Any) -> str:
        query = []
        for each in item.get("parameters", ()):
            schema = each.get("schema", {})
            if each["in"] == "path":
                placeholder = "{" + each["name"] + "}"
                path = path.replace(placeholder, str(self._example(schema)))
            elif each.get("required"):
                query.append(f"{each['name']}={self._example(schema)}")
        address = self._origin + path + (f"?{'&'.join(query)}" if query else "")
        parts = ["curl"]
        if method != "get":
            parts += ["-X", method.upper()]
        parts.append(shlex.quote(address))
        text = " ".join(parts)
        if self._is_guarded and "security" not in item:
            text += ' \\\n  -H "Authorization: Bearer $TOKEN"'
        if example is not None:
            text += " \\\n  -H 'Content-Type: application/json'"
            text += f" \\\n  -d {shlex.quote(json.dumps(example))}"
        return text

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        name = _name_of(schema)
        return self._schemas.get(name, {}) if name else schema


def _merged(replies: Iterable[Reply]) -> tuple[Reply, ...]:
    """Those that answer with the same fields as one: "200, 201"."""
    merged: dict[tuple[str, tuple[Row, ...]], Reply] = {}
    for reply in replies:
        key = (reply.model, reply.rows)
        before = merged.get(key)
        status = reply.status if before is None else f"{before.status}, {reply.status}"
        merged[key] = Reply(status, reply.text, reply.model, reply.rows)
    return tuple(merged.values())


def _choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for key in ("anyOf", "oneOf", "allOf"):
        found += schema.get(key, ())
    return found or [schema]


def _schema_of(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of a body, of whichever media type."""
    for content in item.get("content", {}).values():
        schema: Mapping[str, Any] | None = content.get("schema")
        return schema
    return None


def _name_of(schema: Mapping[str, Any] | None) -> str:
    return str((schema or {}).get("$ref", "")).rpartition("/")[2]


def _noun(path: str) -> str:
    parts = [part for part in path.split("/") if part]
    return parts[2] if parts[:2] == ["api", "v1"] and len(parts) > 2 else parts[0]


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,}"
