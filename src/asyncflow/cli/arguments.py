"""Parameters from the command line: `-p name=value`, `--params FILE`, and the flow's own schema."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from asyncflow.cli.load import spec_of
from asyncflow.cli.output import UsageError
from asyncflow.cli.schemas import is_meant_as_text
from asyncflow.exceptions import ParameterValidationError
from asyncflow.flows import Flow
from asyncflow.parameters import encode_parameters
from asyncflow.settings import Settings

__all__ = ["Arguments", "arguments_for", "given_words"]

Arguments = tuple[list[Any], dict[str, Any]]
"""Positional ones and keywords of a call."""


def arguments_for(flow: Flow[..., Any], pairs: Iterable[str], file: str | None) -> Arguments:
    """How to call `flow`, from `-p` and `--params`; the former win.

    The values are checked here, before anything is recorded: the call needs no other validation.
    Raises `UsageError`, `ParameterValidationError` or `ParametersTooLargeError`.
    """
    texts = dict(map(_split, pairs))
    given = {**_read(file), **{name: _value(text) for name, text in texts.items()}}
    if not spec_of(flow).options.validate_parameters:
        return _bound(flow, given)
    values = _validated(flow, given, texts)
    limit = Settings.load().parameters_limit
    encode_parameters(values, flow=flow.name, limit=limit)
    return _call(flow, values)


def given_words(schema: Mapping[str, Any], pairs: Iterable[str], file: str | None) -> dict[str, Any]:
    """The same for a flow that another process has: as JSON, by name, checked there. `schema` is of its parameters.

    Raises `UsageError`.
    """
    texts = dict(map(_split, pairs))
    given = {**_read(file), **{name: _value(text) for name, text in texts.items()}}
    known = schema.get("properties", {})
    meant = {name: texts[name] for name in texts if is_meant_as_text(given[name], known.get(name, {}), schema)}
    return {**given, **meant}


def _split(pair: str) -> tuple[str, str]:
    name, equals, text = pair.partition("=")
    if not equals or not name:
        raise UsageError(f"-p {pair!r}: write a parameter as name=value, for example -p day=2024-01-01")
    return name, text


def _value(text: str) -> Any:
    try:
        return _loads(text)
    except ValueError:
        return text


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")  # though Python's parser takes NaN and Infinity


def _read(file: str | None) -> Mapping[str, Any]:
    if file is None:
        return {}
    where = "standard input" if file == "-" else repr(file)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        found: Any = _loads(text)
    except OSError as error:
        raise UsageError(f"--params: {where} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--params: {where} is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--params: {where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(
            f'--params: {where} holds a JSON {_json_type(found)}; it must be an object: {{"name": value, ...}}'
        )
    return cast("dict[str, Any]", found)


def _json_type(value: object) -> str:
    names: dict[type, str] = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _validated(flow: Flow[..., Any], given: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    try:
        return flow.validate_parameters(given)
    except ParameterValidationError as error:
        # `-p ticket=0815` for a text is meant as text, though 815 would be JSON as well.
        refused = {path.partition(".")[0] for path, _, _ in error.problems}
        again = {name: text for name, text in texts.items() if name in refused and _may_be_text(given[name])}
        if not again:
            raise
        try:
            return flow.validate_parameters({**given, **again})
        except ParameterValidationError:
            raise error from None


def _may_be_text(value: object) -> bool:
    return value is not None and not isinstance(value, str)


def _bound(flow: Flow[..., Any], given: dict[str, Any]) -> Arguments:
    """For a flow with `validate_parameters=False`: only the names are checked."""
    try:
        inspect.signature(flow.fn).bind(**given)
    except TypeError as error:
        raise UsageError(f"flow {flow.name!r}: {error}") from None
    return [], given


def _call(flow: Flow[..., Any], values: Mapping[str, Any]) -> Arguments:
    """Values by name as a call, which positional-only parameters and `*args` need."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, parameter in inspect.signature(flow.fn).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += values[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords |= values[name]
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keywords[name] = values[name]
        else:
            positional.append(values[name])
    return positional, keywords
