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

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Any

import orjson

from asyncflow._digest_forms import MAX_ITEMS, MAX_TEXT, SCALARS, Refused, form_of, obstacle, too_large
from asyncflow.error_records import error_summary
from asyncflow.exceptions import NotDigestibleError, NotJSONError
from asyncflow.previews import preview

if TYPE_CHECKING:
    from hashlib import blake2b

__all__ = ["digest"]

SIZE = 16
MAX_DEPTH = 250

_SHORT = frozenset({bool, float, type(None)})
_LONG = 10**600  # Python writes at least so many digits, however it is set up
_JSON = frozenset({*_SHORT, int, str, list, dict})
_class: Callable[[object], Any] = type  # what is asked of a class here is for any class
_DICT: Any = dict


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
        hasher: blake2b = _of_scalars_only().copy()  # a third of what making one takes
        hasher.update(b"%d:%b%b" % (len(salt), salt, text.encode()))
        return hasher.digest()
    return _digest_any(value, salt, stand_in)


def _digest_any(value: Mapping[str, Any], salt: bytes, stand_in: Callable[[str, Any], Any] | None) -> bytes:
    for name, each in value.items():  # before anything is worked on: a client beside a large list
        if why := obstacle(each):
            raise NotDigestibleError(name or "self", why)
    parts = [b"a%d:%b" % (len(salt), salt)]
    for name in sorted(value):
        encoded_name = name.encode("utf-8", "surrogatepass")
        parts += (b"%d:" % len(encoded_name), encoded_name, _argument(name or "self", value[name], stand_in))
    from hashlib import blake2b  # as below

    return blake2b(b"".join(parts), digest_size=SIZE).digest()


@cache
def _of_scalars_only() -> blake2b:
    from hashlib import blake2b  # at first use: it loads OpenSSL, which takes as long as a tenth of all of asyncflow

    return blake2b(b"s", digest_size=SIZE)


def _argument(name: str, value: object, stand_in: Callable[[str, Any], Any] | None) -> bytes:
    walk = _Walk(name)
    try:
        text = _as_json(value)
        if text is None and stand_in is not None:
            value = stand_in(name, value)
            text = _as_json(value)
        return walk.bytes_of(value) if text is None else b"j%d:%b" % (len(text), text)
    except Refused as refused:
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
            raise Refused(too_large(f"has more than {MAX_ITEMS:,} parts"))
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


class _Walk:
    """Encodes one argument. Where it stops, `path` leads there."""

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
        if scalar := SCALARS.get(kind):
            return scalar(value)
        if why := obstacle(value):
            raise Refused(why)
        form = form_of(kind)
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
            raise Refused("it contains itself")
        if len(self._above) >= MAX_DEPTH:
            raise Refused(f"it is nested more than {MAX_DEPTH} levels deep")
        if self._left < 0:
            raise Refused(too_large(f"has more than {MAX_ITEMS:,} parts"))
        self._above.add(id(value))


def _step(key: Any) -> str:
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f'["{preview(key, 60)[1:-1]}"]'
    return f"[{preview(key, 60)}]"
