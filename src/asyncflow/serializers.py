"""Values to JSON text and back.

A value is either written so that `decode(encode(value), annotation)` equals it, or refused with
the path of the part that cannot be written; nothing is ever approximated. The plain encoder does
approximate: orjson writes NaN as `null`, cuts odd seconds off UTC offsets and leaves out dataclass
fields that begin with an underscore. So it does what it does exactly, its hook does the rest, and
what both refuse (large integers, keys that are not strings, anything bad) is walked in Python.
One thing is left to pydantic because finding it would cost every model a walk: a datetime inside of
a model loses the odd seconds of a UTC offset such as +00:53:28.

Types come back through the annotation alone: nothing is unpickled and nothing is imported by a
name found in the data. Without an annotation plain JSON comes back: dicts, lists, strings.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from functools import cache, lru_cache, partial
from math import isfinite
from pathlib import Path, PurePath
from typing import Any, cast
from uuid import UUID

import orjson

from asyncflow.error_records import error_summary
from asyncflow.exceptions import NotJSONError
from asyncflow.previews import preview, type_name

__all__ = ["decode", "encode", "misfit"]

MAX_DEPTH = 250
"""Deepest nesting that is written by the walk; orjson itself stops at 254."""

_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_MASK = "**********"  # what pydantic writes in place of a secret
_SEQUENCES: Any = (list, tuple, set, frozenset, deque)
_DICT: Any = cast("Any", dict)  # its own `items`: a subclass may have another
_class: Callable[[object], Any] = type  # what is asked of a class here is for any class
_OWN_FOLDER = str(Path(__file__).parent)


class _Refused(Exception):
    """A value has no JSON form; the message says why and took no code of the value to write."""


# --- encoding ------------------------------------------------------------------------------


def encode(value: object, *, where: str = "result") -> str:
    """`value` as JSON text that `decode` turns into an equal value.

    Raises `NotJSONError` with the path of the first part that cannot be written, for example
    `result.items[3].fn`; `where` is the path's first word. Whatever the value's own code raises
    ends as that error too.
    """
    if value is None:
        return "null"
    try:
        # Decoded at once: the bytes that orjson hands out keep a buffer of 4 KiB each.
        text = orjson.dumps(value, _plain, _OPTIONS).decode()
        if _lost(value, text) is None:
            return text
    except Exception:  # noqa: BLE001  # whatever it was, the walk says where
        return _encode_slowly(value, where)
    return _encode_slowly(value, where)


def _encode_slowly(value: object, where: str) -> str:
    walk = _Walk()
    try:
        return orjson.dumps(walk.tree(value)).decode()
    except _Refused as refused:
        problem = str(refused)
    except RecursionError:
        problem = "it is nested too deep"
    except Exception as error:  # noqa: BLE001  # a property, an iterator or a serializer of the value raised
        problem = f"writing a {type_name(walk.at)} raised {error_summary(error)}"
    raise NotJSONError(_spell(where, walk.path), problem) from None


def _spell(where: str, path: Iterable[Any]) -> str:
    def step(key: Any) -> str:
        if type(key) is str:
            return f".{key}" if key.isidentifier() else f'["{preview(key, 60)[1:-1]}"]'
        return f"[{preview(key, 60)}]"

    return where + "".join(map(step, path))


def _base64(value: Any) -> str:
    from base64 import urlsafe_b64encode  # the alphabet that pydantic writes

    return urlsafe_b64encode(bytes(value)).decode()


def _ordered(value: Any) -> list[Any]:
    try:
        return sorted(value)  # the same text in every process, so far as the items can be compared
    except Exception:  # noqa: BLE001  # a comparison may raise anything
        return list(value)


def _instant(value: datetime) -> str:
    if (value.utcoffset() or timedelta()) % timedelta(minutes=1):
        # RFC 3339 has no room for local mean times such as +00:53:28, but for the instant there is.
        return value.astimezone(UTC).isoformat()
    return value.isoformat()


def _duration(value: timedelta) -> str:
    # In microseconds, because the magnitude of `timedelta.min` is one too many for a timedelta.
    size = value // timedelta(microseconds=1)
    seconds, micros = divmod(abs(size), 1_000_000)
    days, seconds = divmod(seconds, 86_400)
    return f"{'-' if size < 0 else ''}P{days}DT{seconds}.{micros:06}S"


def _decimal(value: Any) -> str:
    if not value.is_finite():
        raise _Refused("a Decimal that is not finite cannot be written in JSON")
    return str(value)


@cache
def _forms() -> dict[type, Callable[[Any], Any]]:
    from decimal import Decimal

    forms: dict[type, Callable[[Any], Any]] = {datetime: _instant, timedelta: _duration, Decimal: _decimal}
    forms |= {Enum: lambda value: value.value, date: date.isoformat, time: time.isoformat, float: float}
    forms |= dict.fromkeys((bytes, bytearray, memoryview), _base64)
    forms |= dict.fromkeys((set, frozenset), _ordered)
    forms |= dict.fromkeys((UUID, PurePath), str)
    return forms | dict.fromkeys((deque, tuple), list)


def _plain(value: Any) -> Any:
    """What stands for `value` in JSON, one level deep: its parts may need the same again.

    Goes by the real type, never by `__class__`, which mocks and proxies make up.
    """
    kind = _class(value)
    for base in kind.__mro__:
        if form := _forms().get(base):
            return form(value)
    if serializer := getattr(kind, "__pydantic_serializer__", None):
        # Names, not aliases: an alias may hold in one direction only. `round_trip` leaves out
        # computed fields, which a model that forbids extras would not take back.
        plain = serializer.to_python(value, mode="json", by_alias=False, round_trip=True, warnings="error")
        _order_sets(value, plain)
        return plain
    if hasattr(kind, "__dataclass_fields__"):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    raise _Refused(f"a value of type {type_name(value)} has no JSON form")


def _order_sets(value: Any, plain: Any) -> None:
    """Give what pydantic made of a model's sets an order that is the same in every process."""
    if isinstance(plain, dict):
        for name, part in _DICT.items(plain):
            held = getattr(value, name, None) if hasattr(value, "__pydantic_serializer__") else None
            if isinstance(part, list) and isinstance(held, set | frozenset):
                plain[name] = sorted(cast("Any", part), key=partial(orjson.dumps, option=orjson.OPT_NON_STR_KEYS))
            elif isinstance(part, list | dict) and held is not None:
                _order_sets(held, part)
    elif isinstance(plain, list) and isinstance(value, list | tuple):
        for inner, part in zip(cast("Any", value), cast("Any", plain), strict=False):
            _order_sets(inner, part)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """The parts of a container, model or dataclass, each with the step that leads to it."""
    kind = _class(value)
    parts: Any = ()
    if issubclass(kind, dict):
        parts = _DICT.items(value)
    elif issubclass(kind, _SEQUENCES):
        parts = enumerate(value)
    elif hasattr(kind, "__dataclass_fields__"):
        parts = [(each.name, getattr(value, each.name, None)) for each in fields(value)]
    elif hasattr(kind, "__pydantic_serializer__"):
        extra: Any = getattr(value, "__pydantic_extra__", None) or ()
        parts = [
            *((name, getattr(value, name, None)) for name in kind.__pydantic_fields__),
            *(_DICT.items(extra) if extra else ()),
        ]
    return cast("Iterable[tuple[Any, Any]]", parts)


def _lost(value: Any, text: str) -> tuple[tuple[Any, ...], str] | None:
    """Where `value` holds what `text` shows as something else, and what it is; None if nowhere.

    orjson and pydantic write NaN as `null`, pydantic a secret as asterisks: without either there
    is nothing to look for. A cycle can only be in a field that a model leaves out.
    """
    null, masked = "null" in text, _MASK in text
    left: list[tuple[Any, tuple[Any, ...]]] = [(value, ())] if null or masked else []
    seen: set[int] = set()
    while left:
        part, path = left.pop()
        kind = _class(part)
        if kind in (str, int, bool):
            continue
        if issubclass(kind, Enum):
            part = part.value
            kind = _class(part)
        if null and issubclass(kind, float) and not isfinite(part):
            return path, f"{float.__repr__(part)} cannot be written in JSON"
        if masked and hasattr(kind, "get_secret_value"):
            return path, f"a {kind.__name__} is never written out"
        if id(part) not in seen:
            seen.add(id(part))
            left.extend([(inner, (*path, step)) for step, inner in _parts(part) if inner is not None])
    return None


class _Walk:
    """Builds the plain tree of one value. Where it stops, `path` leads there and `at` is what is there."""

    def __init__(self) -> None:
        self.path: list[Any] = []
        self.at: Any = None
        self._above: set[int] = set()

    def tree(self, value: Any) -> Any:
        self.at = value
        kind = _class(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, Enum):
            return self.tree(value.value)
        if issubclass(kind, str):
            return _text(str.__str__(value))
        if issubclass(kind, int):
            number = int.__index__(value)
            return number if -(2**63) <= number < 2**64 else orjson.Fragment(_digits(number))
        if issubclass(kind, float) and not isfinite(value):
            raise _Refused(f"{float.__repr__(value)} cannot be written in JSON")
        return float(value) if issubclass(kind, float) else self._compound(value, kind)

    def _compound(self, value: Any, kind: Any) -> Any:
        # Loops and recursion share one frame: two per level leave the stack room for MAX_DEPTH.
        if id(value) in self._above:
            raise _Refused("it contains itself")
        if len(self.path) >= MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} levels deep")
        self._above.add(id(value))
        tree: Any
        if issubclass(kind, dict):
            tree = {}
            for key, part in _DICT.items(value):
                self.path.append(key)
                tree[self._key(key, tree)] = self.tree(part)
                self.path.pop()
        elif issubclass(kind, _SEQUENCES):
            tree = []
            items: Any = value if issubclass(kind, list) else _plain(value)
            for index, part in enumerate(items):
                self.path.append(index)
                tree.append(self.tree(part))
                self.path.pop()
        else:
            tree = self.tree(self._converted(value))
            if lost := _lost(value, orjson.dumps(tree).decode()):
                self.path.extend(lost[0])
                raise _Refused(lost[1])
        self._above.discard(id(value))
        return tree

    def _converted(self, value: Any) -> Any:
        try:
            return _plain(value)
        except Exception:
            for step, part in _parts(value):  # a model's serializer does not say which field it was
                self.path.append(step)
                self.tree(part)
                self.path.pop()
            self.at = value
            raise

    def _key(self, key: Any, taken: dict[str, Any]) -> str:
        plain = self.tree(key)
        if isinstance(plain, list | dict):
            raise _Refused(f"a key of type {type_name(key)} has no JSON form")
        text = plain if isinstance(plain, str) else orjson.dumps(plain).decode()
        if text in taken:
            raise _Refused(f"two keys of the dict are {preview(text, 60)} when written in JSON")
        return text


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refused(f"its text has a lone surrogate, {value[error.start]!a}, at index {error.start}") from None
    return value


_CHUNK = 4000  # Python converts 4,300 digits at most at once, and in quadratic time; halves do not


def _digits(value: int) -> str:
    if value < 0:
        return f"-{_digits(-value)}"
    if value.bit_length() < 3 * _CHUNK:
        return str(value)
    half = value.bit_length() * 3 // 20  # about half of its decimal digits
    high, low = divmod(value, 10**half)
    return _digits(high) + _digits(low).zfill(half)


def _from_digits(text: str) -> int:
    if text.startswith("-"):
        return -_from_digits(text[1:])
    if len(text) <= _CHUNK:
        return int(text)
    half = len(text) // 2
    scale: int = 10**half
    return _from_digits(text[:-half]) * scale + _from_digits(text[-half:])


# --- decoding ------------------------------------------------------------------------------

_ANYTHING = (Any, object, inspect.Parameter.empty)
_EXACT = (str, int, float, bool, dict, list, type(None))
_LONG_NUMBER = re.compile(r"\d{19}")  # orjson reads integers beyond 64 bits as floats


def decode(text: str, annotation: Any = Any) -> Any:
    """The value that `encode` wrote, as the type `annotation` says.

    A text that does not fit is a `ValueError` (pydantic's `ValidationError` is one), never
    converted: a recorded result has to equal the one its first caller got. Models read their own
    part by their own settings.
    """
    if any(annotation is each for each in _ANYTHING):
        return _loads(text)
    if annotation is None or any(annotation is each for each in _EXACT):
        value = _loads(text)
        if type(value) is (annotation or type(None)):
            return value
    if annotation is bytearray or annotation is memoryview:  # pydantic reads only `bytes` from JSON
        return annotation(decode(text, bytes))
    return _decode_typed(text, annotation)


def _loads(text: str) -> Any:
    if not _LONG_NUMBER.search(text):
        return orjson.loads(text)
    import json

    return json.loads(text, parse_int=_from_digits)


def _decode_typed(text: str, annotation: Any) -> Any:
    from pydantic import ValidationError

    try:
        # Two unions that differ in order are equal, but pydantic reads them in their order.
        adapter = _adapter(annotation, repr(annotation))
    except TypeError:  # `Annotated` with something unhashable
        adapter = _adapter.__wrapped__(annotation, "")
    try:
        [value] = adapter.validate_json(f"[{text}]", by_alias=False, by_name=True)
        return value
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] != "json_invalid":
            raise
    # pydantic's own parser stops at 200 levels and at 4,300 digits.
    return adapter.validate_python([_loads(text)], strict=False, by_alias=False, by_name=True)[0]


def misfit(error: Exception) -> str:
    """Why a text did not fit, in one line and without the inside of `decode`."""
    problems: Any = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    first = problems(include_url=False)[0]
    where = "".join(f"[{step!r}]" for step in first["loc"][1:])  # the first step is the list around it
    return f"{where and f'at {where} '}{first['msg']}, got {preview(first['input'])}"


@lru_cache(maxsize=512)
def _adapter(annotation: Any, _spelling: str) -> Any:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    # In a list, because a bare dataclass or model takes no configuration from outside.
    config = ConfigDict(strict=True, val_json_bytes="base64", arbitrary_types_allowed=True)
    try:
        adapter = TypeAdapter[Any](cast("Any", list)[annotation], config=config)
        adapter.rebuild()  # a name that cannot be resolved shows here and not at the first value
    except (PydanticUserError, NameError) as error:
        raise ValueError(f"values of type {annotation!r} cannot be read back: {error}") from error
    return adapter
