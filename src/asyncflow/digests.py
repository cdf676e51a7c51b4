"""Digests of arguments: what a call was given, in 16 bytes.

Two calls have the same digest exactly if they were given equal values of equal types, in any
process, on any supported Python. A value given in place of another one is the worst that a cache
can do, a value computed once more costs only time: so `True`, `1`, `1.0` and `"1"` differ, and so
do `Decimal("1.0")` and `Decimal("1.00")` or the same instant in two time zones, although Python
calls them equal. What a type holds must be known to be digested: subclasses of lists, numbers or
texts, arrays, functions and all objects that are not plain data are refused. No code of a value
is run: no `__eq__`, `__hash__`, `__repr__`, property or iterator of a class of yours.

Three ways lead to the bytes that are hashed, and the value alone decides which one: scalars, data as
JSON has it (at C speed), and everything else (walked in Python, typed). Each begins differently.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from functools import cache, lru_cache, partial
from hashlib import blake2b
from itertools import chain
from math import isfinite
from types import MemberDescriptorType
from typing import Any, NamedTuple, cast
from uuid import UUID

import orjson

from asyncflow._entrypoints import module_name
from asyncflow.error_records import error_summary
from asyncflow.exceptions import NotDigestibleError, NotJSONError
from asyncflow.previews import preview, type_name

__all__ = ["digest"]

SIZE = 16
_SCALARS_ONLY = blake2b(b"s", digest_size=SIZE)
MAX_DEPTH = 250
MAX_ITEMS = 1_000_000
"""In one argument, at all depths together."""
MAX_TEXT = 8 * 1024 * 1024
MAX_BYTES = 1024 * 1024

_SHORT = frozenset({bool, float, type(None)})
_LONG = 10**600  # Python writes at least so many digits, however it is set up
_JSON = frozenset({*_SHORT, int, str, list, dict})
_class: Callable[[object], Any] = type  # what is asked of a class here is for any class
_DOUBLE = struct.Struct(">d").pack
_TUPLE: Any = tuple
_DICT: Any = dict
_HEAP_TYPE = 1 << 9


class _Refused(Exception):
    """A part of a value cannot be digested; the message says why."""


def digest(value: Mapping[str, Any], salt: bytes = b"", stand_in: Callable[[str, Any], Any] | None = None) -> bytes:
    """The digest of a call's arguments by name, 16 bytes; `salt` tells equal ones apart.

    The order of the names does not count. An argument that is not JSON as it is is digested as
    what `stand_in(name, argument)` gives for it. Raises `NotDigestibleError` with the path of the first
    part that cannot be digested, or is too large to be: bytes over 1 MiB, text over 8 Mi
    characters, an argument of more than a million parts.
    """
    each: Any
    for each in value.values():
        kind = _class(each)
        if kind is str:
            if len(each) > MAX_TEXT:
                break
        elif kind is int:
            if not -_LONG < each < _LONG:
                break
        elif kind not in _SHORT:
            break
    else:
        # Escaped, because `repr` goes by the Unicode tables of its Python.
        text = ascii(dict(value) if len(value) == 1 else dict(sorted(value.items())))
        hasher = _SCALARS_ONLY.copy()  # a third of what making one takes
        hasher.update(b"%d:%b%b" % (len(salt), salt, text.encode()))
        return hasher.digest()
    return _digest_any(value, salt, stand_in)


def _digest_any(value: Mapping[str, Any], salt: bytes, stand_in: Callable[[str, Any], Any] | None) -> bytes:
    for name, each in value.items():  # before anything is worked on: a client beside a large list
        if why := _obstacle(each):
            raise NotDigestibleError(name or "self", why)
    parts = [b"a%d:%b" % (len(salt), salt)]
    for name in sorted(value):
        encoded_name = name.encode("utf-8", "surrogatepass")
        parts += (b"%d:" % len(encoded_name), encoded_name, _argument(name or "self", value[name], stand_in))
    return blake2b(b"".join(parts), digest_size=SIZE).digest()


def _argument(name: str, value: object, stand_in: Callable[[str, Any], Any] | None) -> bytes:
    walk = _Walk(name)
    try:
        text = _as_json(value)
        if text is None and stand_in is not None:
            value = stand_in(name, value)
            text = _as_json(value)
        return walk.bytes_of(value) if text is None else b"j%d:%b" % (len(text), text)
    except _Refused as refused:
        why = str(refused)
    except NotJSONError as error:
        raise NotDigestibleError(error.path, error.problem) from None
    except RecursionError:
        why = "it is nested too deep"
    except Exception as error:  # noqa: BLE001  # it was changed meanwhile, or is half made
        why = f"reading it raised {error_summary(error)}"
    raise NotDigestibleError(walk.spelled(), why) from None


# --- as JSON -------------------------------------------------------------------------------


def _as_json(value: Any) -> bytes | None:
    """The JSON of a list or dict that JSON holds exactly, keys sorted; None of anything else, also inside it.

    Level by level, because a level's types can be asked for without a step of Python for each item.
    That the keys are text is checked by orjson; it shows NaN, as well as None, as `null`.
    """
    if type(value) is not list and type(value) is not dict:
        return None
    containers: list[Any] = [value]
    with_floats: list[Callable[[], Iterable[Any]]] = []
    left = MAX_ITEMS
    for _ in range(MAX_DEPTH):
        left -= sum(map(len, containers))
        if left < 0:
            raise _Refused(_too_large(f"has more than {MAX_ITEMS:,} parts"))
        items = partial(_items, containers)
        kinds = set(map(type, items()))
        if not kinds <= _JSON:
            return None
        if float in kinds:
            with_floats.append(items)
        if list not in kinds and dict not in kinds:
            break
        containers = [each for each in items() if type(each) is list or type(each) is dict]
    else:
        return None
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS)
    except TypeError:  # a key that is no text, an integer of more than 64 bits, half a surrogate pair
        return None
    if with_floats and b"null" in text:
        floats = (each for items in with_floats for each in items() if type(each) is float)
        if not all(map(isfinite, floats)):
            return None
    return text


def _items(containers: list[Any]) -> Iterable[Any]:
    dicts: list[Any] = [each for each in containers if type(each) is dict]
    lists: list[Any] = [each for each in containers if type(each) is list]
    return chain(chain.from_iterable(lists), chain.from_iterable(map(_DICT.values, dicts)))


# --- anything else -------------------------------------------------------------------------


def _too_large(what: str) -> str:
    return f"it is too large to be digested: it {what}"


def _obstacle(value: Any) -> str | None:
    """Why an argument cannot be digested, as far as its type and size tell."""
    kind = _class(value)
    try:
        form = _form_of(kind)
    except Exception:  # noqa: BLE001  # a class of a class of its own, which may raise anything
        form = None
    if form is None:
        return f"a value of type {type_name(value)} has no digest"
    if kind is str and len(value) > MAX_TEXT:
        return _too_large(f"has {len(value):,} characters")
    if (kind is bytes or kind is bytearray) and len(value) > MAX_BYTES:
        return _too_large(f"has {len(value):,} bytes")
    if kind in _SIZED and len(value) > MAX_ITEMS:
        return _too_large(f"has {len(value):,} items")
    return None


class _Parts(NamedTuple):
    """A value that has parts, each with the step that leads to it."""

    letter: bytes
    items: Iterable[tuple[Any, Any]]
    has_keys: bool = False
    """Whether the steps are a part of the value, as the keys of a dict and the names of fields are."""
    is_ordered: bool = False


class _Walk:
    """Encodes one argument. Where it stops, `path` leads there.

    Every form is a letter, then what tells its end, then the rest: no two values read the same.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path: list[Any] = []
        self._above: set[int] = set()
        self._left = MAX_ITEMS

    def spelled(self) -> str:
        return self.name + "".join(map(_step, self.path))

    def bytes_of(self, value: Any) -> bytes:
        # One frame per level: nested as deep as it may be, it fits into Python's thousand.
        kind = _class(value)
        if scalar := _SCALARS.get(kind):
            return scalar(value)
        if why := _obstacle(value):
            raise _Refused(why)
        form = _form_of(kind)
        assert form is not None  # it has been looked at above
        parts = form(value)
        if isinstance(parts, bytes):
            return parts
        self._enter(value)
        letter, items, has_keys, is_ordered = parts
        found: list[bytes] = []
        for step, each in items:
            self.path.append(step)
            found.append((self.bytes_of(step) if has_keys else b"") + self.bytes_of(each))
            self.path.pop()
        self._left -= len(found)
        self._above.discard(id(value))
        return b"%b%d:%b" % (letter, len(found), b"".join(found if is_ordered else sorted(found)))

    def _enter(self, value: Any) -> None:
        if id(value) in self._above:
            raise _Refused("it contains itself")
        if len(self._above) >= MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} levels deep")
        if self._left < 0:
            raise _Refused(_too_large(f"has more than {MAX_ITEMS:,} parts"))
        self._above.add(id(value))


def _step(key: Any) -> str:
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f'["{preview(key, 60)[1:-1]}"]'
    return f"[{preview(key, 60)}]"


Form = Callable[[Any], bytes | _Parts]


def _sized(letter: bytes, content: bytes) -> bytes:
    return b"%b%d:%b" % (letter, len(content), content)


def _integer(value: int) -> bytes:
    return _sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _float(value: float) -> bytes:
    return b"d" + (_DOUBLE(value) if value == value else b"notanumb")  # there are many NaNs


def _text(value: str) -> bytes:
    if len(value) > MAX_TEXT:
        raise _Refused(_too_large(f"has {len(value):,} characters"))
    return _sized(b"s", value.encode("utf-8", "surrogatepass"))


_SCALARS: dict[type, Callable[[Any], bytes]] = {
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
            raise _Refused("its time zone was read from a file and has no name")
    elif kind is not timezone and kind.__module__ != "pydantic_core._pydantic_core":
        raise _Refused(f"a time zone of type {type_name(zone)} has no digest; use zoneinfo or datetime.timezone")
    offset = value.utcoffset()
    # UTC by name is what UTC is when it comes back from JSON.
    name = _text(key) if key is not None and key != "UTC" else b"n"
    return b"z" + name + (b"n" if offset is None else _SCALARS[timedelta](offset))


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


def _list(value: Any) -> _Parts:
    return _Parts(b"[", enumerate(value), is_ordered=True)


def _tuple(value: Any) -> _Parts:
    return _Parts(b"(", enumerate(value), is_ordered=True)


def _deque(value: Any) -> _Parts:
    return _Parts(b"e" + _integer(-1 if value.maxlen is None else value.maxlen), enumerate(value), is_ordered=True)


def _set(value: Any) -> _Parts:
    return _Parts(b"{" if _class(value) is set else b"}", enumerate(value))


def _dict(value: Any) -> _Parts:
    return _Parts(b"C" if _class(value) is Counter else b":", value.items(), has_keys=True)


def _ordered_dict(value: Any) -> _Parts:
    return _Parts(b"O", value.items(), has_keys=True, is_ordered=True)


def _fields(letter: bytes, value: object, found: Iterable[tuple[str, Any]]) -> _Parts:
    return _Parts(_named(letter, value), found, has_keys=True)


def _named(letter: bytes, value: object) -> bytes:
    return letter + _text(_class_name(value))


def _class_name(value: object) -> str:
    name = type_name(value)
    head, dot, rest = name.partition(".")
    return f"{module_name(head)}{dot}{rest}" if dot else name


def _named_tuple(value: Any) -> _Parts:
    items: tuple[Any, ...] = tuple(_TUPLE.__iter__(value))
    names: tuple[str, ...] = _class(value)._fields
    if len(names) != len(items):
        raise _Refused(f"a {type_name(value)} does not hold what its fields say")
    return _fields(b"N", value, zip(names, items, strict=True))


def _enum(value: Any) -> bytes:
    plain = _SCALARS.get(_class(value._value_))
    name = b"n" if value._name_ is None else _text(value._name_)
    return _named(b"E", value) + name + (b"n" if plain is None else plain(value._value_))


def _url(value: Any) -> bytes:
    return _named(b"r", value) + _text(str(value))


def _dataclass(value: Any) -> _Parts:
    compared = [each.name for each in fields(_class(value)) if each.compare]
    return _fields(b"A", value, [(name, _stored(value, name)) for name in compared])


def _model(value: Any) -> _Parts:
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
        raise _Refused(f"its field {name!r} is not kept as a field of a dataclass is") from None


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
    **_SCALARS,
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
def _form_of(kind: Any) -> Form | None:
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
