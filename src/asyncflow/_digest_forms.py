"""How values of each type are told in bytes, for a digest: what is of a value, and nothing else.

Every form is a letter, then what tells its end, then the rest, so that no two values read the same.
Which form a value has is asked of its exact class; a class that is not known has none.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from functools import cache, lru_cache
from types import MemberDescriptorType
from typing import Any, NamedTuple, cast
from uuid import UUID

from asyncflow._entrypoints import module_name
from asyncflow.previews import type_name

__all__ = ["MAX_BYTES", "MAX_ITEMS", "MAX_TEXT", "SCALARS", "Refused", "form_of", "obstacle", "too_large"]

MAX_ITEMS = 1_000_000
"""In one argument, at all depths together."""
MAX_TEXT = 8 * 1024 * 1024
MAX_BYTES = 1024 * 1024

_class: Callable[[object], Any] = type  # what is asked of a class here is for any class
_DOUBLE = struct.Struct(">d").pack
_TUPLE: Any = tuple
_HEAP_TYPE = 1 << 9


class Refused(Exception):
    """A part of a value cannot be digested; the message says why."""


class Parts(NamedTuple):
    """A value that has parts, each with the step that leads to it."""

    letter: bytes
    items: Iterable[tuple[Any, Any]]
    has_keys: bool = False
    """Whether the steps are a part of the value, as the keys of a dict and the names of fields are."""
    is_ordered: bool = False


Form = Callable[[Any], bytes | Parts]


def _sized(letter: bytes, content: bytes) -> bytes:
    return b"%b%d:%b" % (letter, len(content), content)


def _integer(value: int) -> bytes:
    return _sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _float(value: float) -> bytes:
    return b"d" + (_DOUBLE(value) if value == value else b"notanumb")  # there are many NaNs


def _text(value: str) -> bytes:
    if len(value) > MAX_TEXT:
        raise Refused(too_large(f"has {len(value):,} characters"))
    return _sized(b"s", value.encode("utf-8", "surrogatepass"))


SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"n",
    bool: lambda value: b"t" if value else b"f",
    int: _integer,
    float: _float,
    complex: lambda value: b"c" + _float(value.real) + _float(value.imag),
    str: _text,
    UUID: lambda value: b"u" + value.bytes,
    timedelta: lambda value: b"l%d:" % (value // timedelta(microseconds=1)),
    date: lambda value: b"y%d:" % value.toordinal(),
}


def _bytes(value: Any) -> bytes:
    return _sized(b"b" if type(value) is bytes else b"B", bytes(value))


def _datetime(value: datetime) -> bytes:
    # A repeated hour is told apart by its offset, where there is a zone.
    return _sized(b"D", value.replace(tzinfo=None, fold=0).isoformat().encode()) + _zone(value)


def _time(value: time) -> bytes:
    return _sized(b"T", value.replace(tzinfo=None, fold=0).isoformat().encode()) + _zone(value)


def _zone(value: datetime | time) -> bytes:
    zone = value.tzinfo
    if zone is None:
        return b"n"
    kind = _class(zone)
    key: str | None = None
    if kind in _zone_infos():
        key = cast("Any", zone).key
        if key is None:
            raise Refused("its time zone was read from a file and has no name")
    elif kind is not timezone and kind.__module__ != "pydantic_core._pydantic_core":
        raise Refused(f"a time zone of type {type_name(zone)} has no digest; use zoneinfo or datetime.timezone")
    offset = value.utcoffset()
    # UTC by name is what UTC is when it comes back from JSON.
    name = _text(key) if key is not None and key != "UTC" else b"n"
    return b"z" + name + (b"n" if offset is None else SCALARS[timedelta](offset))


@cache
def _zone_infos() -> frozenset[type]:
    from zoneinfo import ZoneInfo

    return frozenset({ZoneInfo})


def _decimal(value: Any) -> bytes:
    sign, digits, exponent = value.as_tuple()
    return b"m%d:%b%b" % (sign, _text(str(exponent)), _sized(b"", bytes(digits)))


def _fraction(value: Any) -> bytes:
    return b"q" + _integer(value.numerator) + _integer(value.denominator)


def _path(value: Any) -> bytes:
    return _named(b"p", value) + _text(str(value))


def _list(value: Any) -> Parts:
    return Parts(b"[", enumerate(value), is_ordered=True)


def _tuple(value: Any) -> Parts:
    return Parts(b"(", enumerate(value), is_ordered=True)


def _deque(value: Any) -> Parts:
    return Parts(b"e" + _integer(-1 if value.maxlen is None else value.maxlen), enumerate(value), is_ordered=True)


def _set(value: Any) -> Parts:
    return Parts(b"{" if _class(value) is set else b"}", enumerate(value))


def _dict(value: Any) -> Parts:
    return Parts(b"C" if _class(value) is Counter else b":", value.items(), has_keys=True)


def _ordered_dict(value: Any) -> Parts:
    return Parts(b"O", value.items(), has_keys=True, is_ordered=True)


def _fields(letter: bytes, value: object, found: Iterable[tuple[str, Any]]) -> Parts:
    return Parts(_named(letter, value), found, has_keys=True)


def _named(letter: bytes, value: object) -> bytes:
    return letter + _text(_class_name(value))


def _class_name(value: object) -> str:
    name = type_name(value)
    head, dot, rest = name.partition(".")
    return f"{module_name(head)}{dot}{rest}" if dot else name


def _named_tuple(value: Any) -> Parts:
    items: tuple[Any, ...] = tuple(_TUPLE.__iter__(value))
    names: tuple[str, ...] = _class(value)._fields
    if len(names) != len(items):
        raise Refused(f"a {type_name(value)} does not hold what its fields say")
    return _fields(b"N", value, zip(names, items, strict=True))


def _enum(value: Any) -> bytes:
    plain = SCALARS.get(_class(value._value_))
    name = b"n" if value._name_ is None else _text(value._name_)
    return _named(b"E", value) + name + (b"n" if plain is None else plain(value._value_))


def _url(value: Any) -> bytes:
    return _named(b"r", value) + _text(str(value))


def _dataclass(value: Any) -> Parts:
    compared = [each.name for each in fields(_class(value)) if each.compare]
    return _fields(b"A", value, [(name, _stored(value, name)) for name in compared])


def _model(value: Any) -> Parts:
    state = object.__getattribute__(value, "__dict__")
    found: list[tuple[str, Any]] = [(name, state[name]) for name in _class(value).__pydantic_fields__ if name in state]
    for extra in ("__pydantic_extra__", "__pydantic_private__"):  # as pydantic compares models
        more: Any = object.__getattribute__(value, extra)
        found += more.items() if more else ()
    return _fields(b"M", value, found)


def _stored(value: Any, name: str) -> Any:
    """The value of a field, from where it is kept: no property is asked."""
    for base in _class(value).__mro__:
        slot = type.__dict__["__dict__"].__get__(base).get(name)
        if type(slot) is MemberDescriptorType:
            return slot.__get__(value)
    try:
        return object.__getattribute__(value, "__dict__")[name]
    except (AttributeError, KeyError):
        raise Refused(f"its field {name!r} is not kept as a field of a dataclass is") from None


# --- which form a class has ----------------------------------------------------------------

_SIZED: frozenset[Any] = frozenset({list, tuple, dict, set, frozenset, deque, OrderedDict, Counter})
_FORMS: dict[Any, Form] = {
    bytes: _bytes,
    bytearray: _bytes,
    datetime: _datetime,
    time: _time,
    list: _list,
    tuple: _tuple,
    deque: _deque,
    set: _set,
    frozenset: _set,
    dict: _dict,
    Counter: _dict,
    OrderedDict: _ordered_dict,
    **SCALARS,
}
_LATER_FORMS: dict[tuple[str, str], Form] = {
    # Of modules that take time to import: a value of theirs can only be there when they are.
    ("decimal", "Decimal"): _decimal,
    ("fractions", "Fraction"): _fraction,
    **{(module, f"{kind}Path"): _path
       for module in ("pathlib", "pathlib._local")
       for kind in ("PurePosix", "PureWindows", "Posix", "Windows")},
}  # fmt: skip
_URLS = frozenset({"pydantic.networks", "pydantic_core._pydantic_core"})


@lru_cache(maxsize=2048)
def form_of(kind: Any) -> Form | None:
    """How values of exactly this class are digested; None where they are not."""
    if known := _FORMS.get(kind):
        return known
    named = _LATER_FORMS.get((kind.__module__, kind.__name__))
    if named is not None and getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind:
        return named
    if issubclass(kind, Enum):
        return _enum
    if issubclass(kind, tuple):
        return _named_tuple if _is_named_tuple(kind) else None
    if kind.__module__ in _URLS and kind.__name__.endswith(("Url", "Dsn")):
        return _url
    if _has_builtin_state(kind):
        return None
    if "__pydantic_fields__" in kind.__dict__ and hasattr(kind, "__pydantic_private__"):
        return _model
    return _dataclass if "__dataclass_fields__" in kind.__dict__ else None


def _is_named_tuple(kind: Any) -> bool:
    return kind.__mro__[1] is tuple and isinstance(kind.__dict__.get("_fields"), tuple)


def _has_builtin_state(kind: Any) -> bool:
    """Whether a class is built on one that is not written in Python, so that it may hold more than its fields."""
    return any(base is not object and not base.__flags__ & _HEAP_TYPE for base in kind.__mro__)


# --- what has none -------------------------------------------------------------------------


def too_large(what: str) -> str:
    return f"it is too large to be digested: it {what}"


def obstacle(value: Any) -> str | None:
    """Why an argument cannot be digested, as far as its type and size tell."""
    kind = _class(value)
    try:
        form = form_of(kind)
    except Exception:  # noqa: BLE001  # a class of a class of its own, which may raise anything
        form = None
    if form is None:
        return f"a value of type {type_name(value)} has no digest"
    if kind is str and len(value) > MAX_TEXT:
        return too_large(f"has {len(value):,} characters")
    if (kind is bytes or kind is bytearray) and len(value) > MAX_BYTES:
        return too_large(f"has {len(value):,} bytes")
    if kind in _SIZED and len(value) > MAX_ITEMS:
        return too_large(f"has {len(value):,} items")
    return None
