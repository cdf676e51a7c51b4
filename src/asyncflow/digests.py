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
from typing import Any, cast
from uuid import UUID

import orjson

from asyncflow._entrypoints import module_name
from asyncflow.error_records import error_summary
from asyncflow.exceptions import NotDigestibleError
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


def digest(value: Mapping[str, Any], salt: bytes = b"") -> bytes:
    """The digest of a call's arguments by name, 16 bytes; `salt` tells equal ones apart.

    The order of the names does not count. Raises `NotDigestibleError` with the path of the first
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
    return _digest_any(value, salt)


def _digest_any(value: Mapping[str, Any], salt: bytes) -> bytes:
    for name, each in value.items():  # before anything is worked on: a client beside a large list
        if why := _obstacle(each):
            raise NotDigestibleError(name or "self", why)
    parts = [b"a%d:%b" % (len(salt), salt)]
    for name in sorted(value):
        encoded_name = name.encode("utf-8", "surrogatepass")
        parts += (b"%d:" % len(encoded_name), encoded_name, _argument(name or "self", value[name]))
    return blake2b(b"".join(parts), digest_size=SIZE).digest()


def _argument(name: str, value: object) -> bytes:
    walk = _Walk(name)
    try:
        if type(value) is list or type(value) is dict:
            text = _as_json(value)
            if text is not None:
                return b"j%d:%b" % (len(text), text)
        return walk.bytes_of(value)
    except _Refused as refused:
        why = str(refused)
    except RecursionError:
        why = "it is nested too deep"
    except Exception as error:  # noqa: BLE001  # it was changed meanwhile, or is half made
        why = f"reading it raised {error_summary(error)}"
    raise NotDigestibleError(walk.spelled(), why) from None


# --- as JSON -------------------------------------------------------------------------------


def _as_json(value: Any) -> bytes | None:
    """The JSON of data that JSON holds exactly, keys sorted; None where anything else is in it.

    Level by level, because a level's types can be asked for without a step of Python for each item.
    That the keys are text is checked by orjson; it shows NaN, as well as None, as `null`.
    """
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
        kind = _class(value)
        if scalar := _SCALARS.get(kind):
            return scalar(value)
        if why := _obstacle(value):
            raise _Refused(why)
        if id(value) in self._above:
            raise _Refused("it contains itself")
        if len(self._above) >= MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} levels deep")
        form = _form_of(kind)
        assert form is not None  # it has been looked at above
        self._above.add(id(value))
        try:
            return form(self, value)
        finally:
            self._above.discard(id(value))

    def each(self, values: Iterable[Any]) -> list[bytes]:
        """The forms of items; the path says which one is looked at."""
        found: list[bytes] = []
        for index, each in enumerate(values):
            self._count()
            self.path.append(index)
            found.append(self.bytes_of(each))
            self.path.pop()
        return found

    def pairs(self, items: Iterable[tuple[Any, Any]]) -> list[bytes]:
        """The forms of keys and values, each pair as one."""
        found: list[bytes] = []
        for key, each in items:
            self._count()
            self.path.append(key)
            found.append(self.bytes_of(key) + self.bytes_of(each))
            self.path.pop()
        return found

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Refused(_too_large(f"has more than {MAX_ITEMS:,} parts"))


def _step(key: Any) -> str:
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f'["{preview(key, 60)[1:-1]}"]'
    return f"[{preview(key, 60)}]"


Form = Callable[[_Walk, Any], bytes]


def _sized(letter: bytes, content: bytes) -> bytes:
    return b"%b%d:%b" % (letter, len(content), content)


def _counted(letter: bytes, parts: list[bytes]) -> bytes:
    return b"%b%d:%b" % (letter, len(parts), b"".join(parts))


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


def _scalar(walk: _Walk, value: Any) -> bytes:
    return _SCALARS[type(value)](value)


def _bytes(walk: _Walk, value: Any) -> bytes:
    return _sized(b"b" if type(value) is bytes else b"B", bytes(value))


def _datetime(walk: _Walk, value: datetime) -> bytes:
    # A repeated hour is told apart by its offset, where there is a zone.
    return _sized(b"D", value.replace(tzinfo=None, fold=0).isoformat().encode()) + _zone(value)


def _time(walk: _Walk, value: time) -> bytes:
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


def _decimal(walk: _Walk, value: Any) -> bytes:
    sign, digits, exponent = value.as_tuple()
    return b"m%d:%b%b" % (sign, _text(str(exponent)), _sized(b"", bytes(digits)))


def _fraction(walk: _Walk, value: Any) -> bytes:
    return b"q" + _integer(value.numerator) + _integer(value.denominator)


def _path(walk: _Walk, value: Any) -> bytes:
    return _named(b"p", value) + _text(str(value))


def _list(walk: _Walk, value: Any) -> bytes:
    return _counted(b"[", walk.each(value))


def _tuple(walk: _Walk, value: tuple[Any, ...]) -> bytes:
    return _counted(b"(", walk.each(value))


def _deque(walk: _Walk, value: deque[Any]) -> bytes:
    return _counted(b"e" + _SCALARS[int](-1 if value.maxlen is None else value.maxlen), walk.each(value))


def _set(walk: _Walk, value: Any) -> bytes:
    return _counted(b"{" if _class(value) is set else b"}", sorted(walk.each(value)))


def _dict(walk: _Walk, value: Any) -> bytes:
    return _counted(b"C" if _class(value) is Counter else b":", sorted(walk.pairs(value.items())))


def _ordered_dict(walk: _Walk, value: Any) -> bytes:
    return _counted(b"O", walk.pairs(value.items()))


def _named(letter: bytes, value: object) -> bytes:
    return letter + _text(_class_name(value))


def _class_name(value: object) -> str:
    name = type_name(value)
    head, dot, rest = name.partition(".")
    return f"{module_name(head)}{dot}{rest}" if dot else name


def _named_tuple(walk: _Walk, value: Any) -> bytes:
    items: tuple[Any, ...] = tuple(_TUPLE.__iter__(value))
    names: tuple[str, ...] = _class(value)._fields
    if len(names) != len(items):
        raise _Refused(f"a {type_name(value)} does not hold what its fields say")
    return _named(b"N", value) + _fields_form(walk, zip(names, items, strict=True))


def _enum(walk: _Walk, value: Any) -> bytes:
    plain = _SCALARS.get(_class(value._value_))
    name = b"n" if value._name_ is None else _text(value._name_)
    return _named(b"E", value) + name + (b"n" if plain is None else plain(value._value_))


def _url(walk: _Walk, value: Any) -> bytes:
    return _named(b"r", value) + _text(str(value))


def _dataclass(walk: _Walk, value: Any) -> bytes:
    compared = [each.name for each in fields(value) if each.compare]
    return _named(b"A", value) + _fields_form(walk, [(name, _stored(value, name)) for name in compared])


def _model(walk: _Walk, value: Any) -> bytes:
    state = object.__getattribute__(value, "__dict__")
    found: list[tuple[str, Any]] = [(name, state[name]) for name in _class(value).__pydantic_fields__ if name in state]
    for extra in ("__pydantic_extra__", "__pydantic_private__"):  # as pydantic compares models
        more: Any = object.__getattribute__(value, extra)
        found += more.items() if more else ()
    return _named(b"M", value) + _fields_form(walk, found)


def _fields_form(walk: _Walk, found: Iterable[tuple[str, Any]]) -> bytes:
    return _counted(b":", sorted(walk.pairs(found)))


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
    **dict.fromkeys(_SCALARS, _scalar),
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
