"""JSON schemas in a few words, for people; and what text on the command line means to one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from asyncflow.cli.output import one_line

__all__ = ["is_meant_as_text", "schema_lines", "type_words"]

_LONGEST_DEFAULT = 60
_MOST_CHOICES = 6


def schema_lines(schema: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Of each property its name, its type, and its value: the given one, else the default, else that one is needed."""
    required = schema.get("required", ())
    for name, told in schema.get("properties", {}).items():
        if name in given:
            value = _short(given[name])
        elif "default" in told:
            value = _short(told["default"])
        else:
            value = "(required)" if name in required else ""
        yield name, type_words(told), value


def type_words(schema: Mapping[str, Any]) -> str:
    """`integer`, `array of string`, `date or null`, `Order`; `anything` for a schema that says nothing."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(type_words(each) for each in schema[word]))
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        shown = [_short(each) for each in choices[:_MOST_CHOICES]]
        return " or ".join([*shown, *(["…"] if len(choices) > _MOST_CHOICES else [])])
    kind: str | list[str] = schema.get("type", "anything")
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"array of {type_words(schema['items'])}"
    if not isinstance(kind, str):
        return " or ".join(kind)
    return str(schema.get("format", kind))


def is_meant_as_text(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Whether a JSON value is of none of the schema's types while a text would be: `-p code=815` for a text."""
    types = _types(schema, root)
    return "string" in types and value is not None and not types & _types_of(value)


def _types(schema: Mapping[str, Any], root: Mapping[str, Any]) -> set[str]:
    """The types of JSON that a schema allows; empty where it cannot be told."""
    if "$ref" in schema:
        schema = reduce(lambda found, part: found.get(part, {}), str(schema["$ref"]).split("/")[1:], root)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            parts = [_types(each, root) for each in schema[word]]
            return {each for part in parts for each in part} if all(parts) else set()
    kind: str | list[str] = schema.get("type", [])
    return {kind} if isinstance(kind, str) else set(kind)


def _types_of(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"integer", "number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}


def _short(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), _LONGEST_DEFAULT)
