"""Parameters that are taken from an event: `{"city": "{{ event.payload.city }}"}`.

A name leads through plain data by keys and indexes and nothing else: what a payload holds was written by anybody,
so there are no attributes, no calls and no code here, and what is filled in is not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from asyncflow._rows import moment
from asyncflow._triggers.matching import EventFact
from asyncflow.exceptions import TemplateError, TriggerError
from asyncflow.serializers import encode

__all__ = ["check_templates", "filled", "needs_payloads_of"]

# Texts, which `re` compiles when a trigger first has templates: importing asyncflow is to be quick.
_PLACE = r"(?s)\{\{(.*?)\}\}"
_STEP = r"""\.([A-Za-z_][\w-]*)|\[(-?\d{1,6})\]|\["([^"]*)"\]|\['([^']*)'\]"""
_NAME = rf"(event|events)((?:{_STEP})*)"
_FIELDS = ("id", "name", "resource", "occurred", "payload")
_EXAMPLE = "{{ event.payload.city }}"


def check_templates(kind: str, parameters: Mapping[str, Any]) -> None:
    """Raise `TriggerError` for a name that no event can have."""
    for path, text in _texts(parameters, ""):
        if "{{" in re.sub(_PLACE, "", text):
            raise TriggerError(kind, path, text, f"each {{{{ to be closed, as in '{_EXAMPLE}'")
        for place in re.findall(_PLACE, text):
            if (problem := _problem(place.strip())) is not None:
                raise TriggerError(kind, path, text, problem)


def _problem(name: str) -> str | None:
    steps = _steps(name)
    if steps is None:
        return f"a name that begins with event or events and goes on with .key or [index], as in '{_EXAMPLE}'"
    if steps[0] == "events":
        if len(steps) > 1 and not isinstance(steps[1], int):
            return "events to be followed by an index: '{{ events[0].payload }}' is of the first event"
        steps = steps[1:]
    if len(steps) > 1 and steps[1] not in _FIELDS:
        return f"one of {', '.join(_FIELDS)} after event: what was emitted with it is in event.payload"
    return None


def needs_payloads_of(parameters: Mapping[str, Any] | None, root: str) -> bool:
    """Whether a template asks for the payload of `root`, "event" or "events"."""
    for _, text in _texts(parameters or {}, ""):
        for place in re.findall(_PLACE, text):
            steps = _steps(place.strip()) or []
            field = steps[(1 if root == "event" else 2) :][:1]
            if steps[:1] == [root] and field in ([], ["payload"]):
                return True
    return False


def filled(parameters: Mapping[str, Any], events: Sequence[EventFact]) -> dict[str, Any]:
    """The parameters with what the events tell. Raises `TemplateError` where they do not tell it."""
    told = [_told(each) for each in events]
    known: dict[str, Any] = {"events": told, "event": told[-1] if told else None}
    return {name: _filled(value, name, known) for name, value in parameters.items()}


def _told(fact: EventFact) -> dict[str, Any]:
    return {
        "id": fact.id,
        "name": fact.name,
        "resource": fact.resource,
        "occurred": moment(fact.at).isoformat(),
        "payload": fact.payload,
    }


def _filled(value: Any, path: str, known: dict[str, Any]) -> Any:
    if _is_object(value):
        return {key: _filled(each, f"{path}.{key}", known) for key, each in value.items()}
    if _is_array(value):
        return [_filled(each, f"{path}[{index}]", known) for index, each in enumerate(value)]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(_PLACE, value.strip())
    if whole is not None and "{{" not in whole[1]:
        return _look_up(whole[1].strip(), path, value, known)
    return re.sub(_PLACE, lambda place: _as_text(_look_up(place[1].strip(), path, value, known)), value)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else encode(value)


def _look_up(name: str, path: str, template: str, known: dict[str, Any]) -> Any:
    value: Any = known
    seen = ""
    for step in _steps(name) or ():
        if not _has(value, step):
            raise TemplateError(path, template, _missing(value, seen, step))
        value = value[step]
        seen += f"[{step}]" if isinstance(step, int) else f".{step}" if seen else step
    return value


def _has(value: object, step: str | int) -> bool:
    if isinstance(step, int):
        return _is_array(value) and -len(value) <= step < len(value)
    return _is_object(value) and step in value


def _missing(value: Any, seen: str, step: str | int) -> str:
    """What there was instead: names, but no values, which may be secret."""
    if _is_object(value):
        return f"{seen} has no {step!r}; it has {', '.join(map(repr, list(value)[:20])) or 'nothing'}"
    if _is_array(value):
        return f"{seen} has {len(value)} items, and no {step!r}"
    return f"{seen} is {'null' if value is None else f'a {type(value).__name__}'}, which has no {step!r}"


def _steps(name: str) -> list[str | int] | None:
    """The keys and indexes of a name; None when it is none."""
    match = re.fullmatch(_NAME, name, re.ASCII)
    if match is None:
        return None
    steps: list[str | int] = [match[1]]
    for each in re.finditer(_STEP, match[2], re.ASCII):
        key, index, *quoted = each.groups()
        steps.append(int(index) if index is not None else next(text for text in (key, *quoted) if text is not None))
    return steps


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text in some parameters, with where it stands."""
    if _is_object(value):
        for key, each in value.items():
            yield from _texts(each, f"{path}.{key}" if path else f"parameters.{key}")
    elif _is_array(value):
        for index, each in enumerate(value):
            yield from _texts(each, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_array(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)
