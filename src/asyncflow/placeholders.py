"""What stands for something else in the arguments of a call, finding it, and putting values in its place.

A call of a task may have futures anywhere inside its arguments, so the arguments of every call have
to be searched once there is a future at all. What that must not cost decided the shape:

- The search is one loop with a list of its own, so that nothing is too deep for it, and a container
  of plain scalars is passed over in C.
- It runs no code of an object: no property, no `__iter__`, no `__class__` of a proxy. Objects are
  judged by their real type, and content is read with the methods of the built-in base.
- Putting values in copies only what leads to a placeholder. What is given to two places stays one
  object, and the user's own objects are never written to.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from types import MemberDescriptorType
from typing import Any, ClassVar, Protocol, TypeVar, cast

__all__ = [
    "AllowedFailure",
    "Awaited",
    "Placeholder",
    "Quoted",
    "Unmapped",
    "allow_failure",
    "futures_in",
    "quote",
    "unmapped",
    "with_values",
]

T = TypeVar("T")
_class: Callable[[object], Any] = type  # what is asked of a class here is for any class


class Placeholder:
    """Something in the arguments of a call that stands for something else.

    `Placeholder.exist` says whether this process has made one: as long as it has not, arguments
    need not be searched. A subclass with a constructor of its own calls this one.
    """

    __slots__ = ()

    exist: ClassVar[bool] = False

    def __init__(self) -> None:
        # Only once: writing to a class drops what the interpreter cached about it and its subclasses.
        if not Placeholder.exist:
            Placeholder.exist = True


class Awaited(Placeholder):
    """A future: stands for the value that its run will have. Compared and hashed by identity."""

    __slots__ = ()


class _Marker(Placeholder):
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def __repr__(self) -> str:
        return f"{_WRITTEN_AS[type(self)].__name__}({self.value!r})"


class Quoted(_Marker):
    """What `quote` gives: stands for `value` as it is."""

    __slots__ = ()


class AllowedFailure(_Marker):
    """What `allow_failure` gives: stands for `value`, with exceptions in place of its failed futures."""

    __slots__ = ()


class Unmapped(_Marker):
    """What `unmapped` gives: stands for `value`, and keeps `map` from taking it apart."""

    __slots__ = ()


# To a type checker the markers are the values: that is what the called function gets, so that is
# what fits its parameter.
def quote(value: T) -> T:
    """Pass `value` without looking inside: futures in it are neither waited for nor replaced."""
    return cast(T, Quoted(value))


def unmapped(value: T) -> T:
    """Pass `value` whole to every call that `map` makes, instead of one item of it to each."""
    return cast(T, Unmapped(value))


def allow_failure(value: object) -> Any:
    """Pass the exception of a failed future, instead of not making the call for it.

    `value` is a future, or anything with futures inside; however deep they are, it holds for all.
    """
    return AllowedFailure(value)


_WRITTEN_AS: dict[type, Callable[[Any], Any]] = {Quoted: quote, Unmapped: unmapped, AllowedFailure: allow_failure}


def futures_in(value: object) -> list[Awaited]:
    """Every future inside `value`, each once, in the order found: from left to right, keys before values.

    Looks into lists, tuples, sets, frozen sets and dicts (and classes derived from them), the fields of
    dataclasses and of pydantic models, and `allow_failure` and `unmapped`. Does not look into `quote`.
    """
    placeholders, _ = _search(value)
    return [each for each in placeholders if isinstance(each, Awaited)]


def with_values(value: Any, value_of: Callable[[Awaited, bool], Any]) -> Any:
    """`value` with `value_of(future, failure_is_allowed)` in place of each future, and without markers.

    Looks where `futures_in` looks. Only what leads to a placeholder is copied, everything else is the
    same object. `value_of` is called in the order found, once for a future, or twice if its failure is
    allowed in one place and not in another. What it gives is not looked into; what it raises is passed on.

    Raises TypeError when a value is to be a key or in a set and is not hashable, or when an object cannot
    be copied; ValueError when a container that leads to a placeholder contains itself.
    """
    placeholders, parts_of = _search(value)
    if not placeholders:
        return value
    holders = _leading_to(placeholders, parts_of)
    # What was put in place of an object, by its id; apart by whether failure is allowed there.
    made: dict[bool, dict[int, Any]] = {False: {}, True: {}}
    begun: set[tuple[int, bool]] = set()
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        item, allowed = stack[-1]
        allowed_inside = allowed or _class(item) is AllowedFailure
        if id(item) in made[allowed]:
            stack.pop()
        elif (id(item), allowed) in begun:  # and all that is inside has been made since
            kind = _class(item)
            way = None if issubclass(kind, Awaited) else _way_into(kind)
            made[allowed][id(item)] = way.rebuilt(item, made[allowed_inside]) if way else value_of(item, allowed)
            stack.pop()
        else:
            begun.add((id(item), allowed))
            for part in reversed(parts_of[id(item)]):
                if id(part) in holders and id(part) not in made[allowed_inside]:
                    if (id(part), allowed_inside) in begun:
                        raise ValueError(_refusal(part, "contains itself"))
                    stack.append((part, allowed_inside))
    return made[False][id(value)]


# --- the search ----------------------------------------------------------------------------

# Most of what arguments are made of. Compared by exact type: a derived class may be a dataclass.
_SCALARS = frozenset({int, str, float, bool, type(None), bytes, bytearray, complex, type})


def _search(value: object) -> tuple[list[Placeholder], dict[int, Sequence[object]]]:
    """The placeholders in `value` in the order found, and the parts of all that was looked into, by id.

    The parts keep their objects alive, so an id means one object as long as they are held.
    """
    placeholders: list[Placeholder] = []
    parts_of: dict[int, Sequence[object]] = {}
    stack = [value]
    while stack:
        item = stack.pop()
        way = _way_into(_class(item))
        if way is None or id(item) in parts_of:
            continue
        parts = parts_of[id(item)] = way.parts(item)
        if way is _PLACEHOLDER:
            placeholders.append(cast(Placeholder, item))
        if parts:
            stack.extend(reversed(parts))
    return placeholders, parts_of


def _leading_to(placeholders: Iterable[Placeholder], parts_of: Mapping[int, Sequence[object]]) -> set[int]:
    """The ids of `placeholders` and of everything that contains one, at any depth."""
    containers_of = defaultdict[int, list[int]](list)
    for container, parts in parts_of.items():
        for part in parts:
            containers_of[id(part)].append(container)
    found: set[int] = set()
    stack = [id(each) for each in placeholders]
    while stack:
        each = stack.pop()
        if each not in found:
            found.add(each)
            stack.extend(containers_of.get(each, ()))
    return found


def _but_scalars(items: Iterable[object]) -> Sequence[object]:
    """`items`, which can be iterated twice, without those that cannot be or lead to a placeholder."""
    if _SCALARS.issuperset(map(type, items)):  # in C: the list of a million numbers ends here
        return ()
    return [each for each in items if type(each) not in _SCALARS]


# --- one way into each kind of container ---------------------------------------------------


class _Way(Protocol):
    def parts(self, item: Any) -> Sequence[object]:
        """What `item` contains, without scalars."""
        ...

    def rebuilt(self, item: Any, made: Mapping[int, Any]) -> Any:
        """A copy of `item` with `made[id(part)]` in place of each part that is in `made`."""
        ...


@lru_cache(maxsize=512)  # bounded, because it keeps classes alive
def _way_into(kind: Any) -> _Way | None:
    """How to look into objects of `kind`; None if they are not looked into."""
    if issubclass(kind, (Awaited, _Marker)):
        return _PLACEHOLDER
    for base, way in _BUILT_IN.items():
        if issubclass(kind, base):
            return way
    if any("__dataclass_fields__" in each.__dict__ for each in kind.__mro__):
        return _Dataclass(tuple(field.name for field in fields(kind) if _is_plain(kind, field.name)))
    # Not imported for this: before somebody else did, there is no model.
    pydantic = sys.modules.get("pydantic.main")
    if pydantic is not None and getattr(pydantic, "BaseModel", None) in kind.__mro__:
        return _MODEL
    return None


def _is_plain(kind: Any, name: str) -> bool:
    """Whether reading the attribute `name` runs no code: it is in the instance's dict or in a slot."""
    for each in kind.__mro__:
        if name in each.__dict__:
            found = _class(each.__dict__[name])
            return found is MemberDescriptorType or not hasattr(found, "__set__")
    return True


class _Placeholder:
    """Markers and futures; the value of a future comes from the caller of `with_values`."""

    def parts(self, item: Any) -> Sequence[object]:
        return () if isinstance(item, Awaited | Quoted) else _but_scalars((item.value,))

    def rebuilt(self, item: Any, made: Mapping[int, Any]) -> Any:
        # What is quoted may stand elsewhere too, and be replaced there.
        return item.value if isinstance(item, Quoted) else made.get(id(item.value), item.value)


class _Items:
    """Lists, tuples, sets and frozen sets; `fill` puts items into an empty one that can change."""

    def __init__(self, base: Any, fill: Callable[[Any, Any], None] | None = None) -> None:
        self._base = base
        self._fill = fill
        self._are_hashed = base in (set, frozenset)

    def parts(self, item: Any) -> Sequence[object]:
        return _but_scalars(item if type(item) is self._base else [*self._base.__iter__(item)])

    def rebuilt(self, item: Any, made: Mapping[int, Any]) -> Any:
        items = self._base.__iter__(item)
        if self._are_hashed:
            values = [_hashable(each, made, _IN_A_SET) for each in items]
        else:
            values = [made.get(id(each), each) for each in items]
        if type(item) is self._base or hasattr(item, "__await__"):  # the latter is what `map` gives
            return self._base(values)
        if self._fill is None:
            rebuilt = self._base.__new__(type(item), values)  # what a named tuple's `_make` does
            if attributes := _attribute(item, "__dict__"):
                _attribute(rebuilt, "__dict__").update(attributes)
        else:
            rebuilt = _copied(item)
            self._base.clear(rebuilt)
            self._fill(rebuilt, values)
        return rebuilt


class _Dict:
    """Dicts. Keys that become equal become one key, with the value of the last."""

    def parts(self, item: Any) -> Sequence[object]:
        keys, values = _but_scalars(_DICT.keys(item)), _but_scalars(_DICT.values(item))
        return [*keys, *values] if keys else values

    def rebuilt(self, item: Any, made: Mapping[int, Any]) -> Any:
        # A dict's own methods do not see that the keys of an OrderedDict were moved.
        base: Any = OrderedDict if issubclass(type(item), OrderedDict) else dict
        pairs: dict[Any, Any] = {}
        for key in base.__iter__(item):
            value = _DICT.__getitem__(item, key)
            pairs[_hashable(key, made, _AS_A_KEY)] = made.get(id(value), value)
        if type(item) is dict:
            return pairs
        rebuilt = _copied(item)
        base.clear(rebuilt)
        base.update(rebuilt, pairs)
        return rebuilt


class _Dataclass:
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def parts(self, item: Any) -> Sequence[object]:
        return _but_scalars([_attribute(item, name) for name in self._names])

    def rebuilt(self, item: Any, made: Mapping[int, Any]) -> Any:
        rebuilt = _copied(item)
        for name in self._names:
            if (part := id(_attribute(item, name))) in made:
                object.__setattr__(rebuilt, name, made[part])  # frozen classes too
        return rebuilt


class _Model:
    """pydantic models: declared fields and extra ones."""

    def _fields(self, item: Any) -> dict[str, Any]:
        held: dict[str, Any] = _attribute(item, "__dict__")
        names: Iterable[str] = _class(item).__pydantic_fields__
        declared = {name: held[name] for name in names if name in held}
        return {**declared, **(_attribute(item, "__pydantic_extra__") or {})}

    def parts(self, item: Any) -> Sequence[object]:
        return _but_scalars(self._fields(item).values())

    def rebuilt(self, item: Any, made: Mapping[int, Any]) -> Any:
        parts = {name: id(value) for name, value in self._fields(item).items()}
        return item.model_copy(update={name: made[part] for name, part in parts.items() if part in made})


_DICT: Any = dict
_PLACEHOLDER = _Placeholder()
_MODEL = _Model()
_BUILT_IN: dict[type, _Way] = {
    list: _Items(list, list[Any].extend),
    tuple: _Items(tuple),
    set: _Items(set, set[Any].update),
    frozenset: _Items(frozenset),
    dict: _Dict(),
}


def _attribute(item: object, name: str) -> Any:
    """What `item` holds as `name`, past a `__getattr__` or `__getattribute__` of its class; None if nothing."""
    try:
        return object.__getattribute__(item, name)
    except AttributeError:
        return None


def _copied(item: Any) -> Any:
    copied = copy.copy(item)
    if copied is item or type(copied) is not type(item):  # filling it would change the user's own object
        raise TypeError(_refusal(item, "copy.copy() of it gives no new object of its class"))
    return copied


def _refusal(item: object, problem: str) -> str:
    return (
        f"a {type(item).__name__!r} in the arguments holds a future (or a marker), but {problem}, so no copy with the "
        f"value in place can be made: pass the future as an argument of its own, or quote(...) the object"
    )


_IN_A_SET = "in a set", "pass the futures in a list"
_AS_A_KEY = "as a key of a dict", "use the future as a value of the dict"


def _hashable(part: Any, made: Mapping[int, Any], place: tuple[str, str]) -> Any:
    if id(part) not in made:
        return part
    value = made[id(part)]
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"a future (or a marker) {place[0]} stands for a {type(value).__name__!r}, which cannot be there "
            f"({error}): {place[1]} instead"
        ) from error
    return value
