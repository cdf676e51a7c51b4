"""Futures inside arguments: found wherever they are, replaced by values, and nothing else touched."""

from __future__ import annotations

import copy
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, assert_type
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, PrivateAttr, RootModel

from asyncflow.placeholders import (
    AllowedFailure,
    Awaited,
    Placeholder,
    Quoted,
    Unmapped,
    allow_failure,
    futures_in,
    quote,
    unmapped,
    with_values,
)
from tests.conftest import RunPython


class Future(Awaited):
    def __init__(self, value: Any = "value") -> None:
        super().__init__()
        self.value = value


def value_of(future: Awaited, failure_is_allowed: bool) -> Any:
    assert isinstance(future, Future)
    return "failure" if failure_is_allowed else future.value


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Plain:
    first: Any
    second: Any = None


@dataclass(frozen=True)
class Frozen:
    first: Any
    second: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    first: Any
    second: Any = None


class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow", frozen=True)
    first: Any
    second: Any = None
    _secret: Any = PrivateAttr(default=None)


class Root(RootModel[Any]):
    pass


class Rows(list[Any]):
    pass


class Table(dict[Any, Any]):
    pass


class Group(set[Any]):
    pass


class FrozenGroup(frozenset[Any]):
    pass


class Row(tuple[Any, ...]):
    pass


# --- any structure, against a naive recursion ----------------------------------------------

FUTURES = [Future(value) for value in ("a", "b", 3, None, ("c", 4))]
futures = st.sampled_from(FUTURES)
scalars = st.none() | st.integers(0, 3) | st.sampled_from(["a", "x", b"y", 1.5])


def hashable_ones(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inside, max_size=3).map(tuple),
        st.frozensets(inside, max_size=3),
        st.builds(Pair, inside, inside),
        st.builds(FrozenGroup, st.frozensets(inside, max_size=2)),
        st.builds(Frozen, inside, inside),
    )


hashables = st.recursive(futures | scalars, hashable_ones, max_leaves=4)


def dict_like(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.dictionaries(hashables, inside, max_size=3)
    return st.one_of(
        pairs,
        pairs.map(OrderedDict),
        pairs.map(Table),
        pairs.map(lambda each: defaultdict(list, each)),
    )


def containers(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inside, max_size=4)
    return st.one_of(
        several,
        several.map(tuple),
        several.map(Rows),
        several.map(Row),
        several.map(lambda items: [items, items]),  # one object in two places
        dict_like(inside),
        st.sets(hashables, max_size=3),
        st.sets(hashables, max_size=3).map(Group),
        *(st.builds(kind, inside, inside) for kind in (Pair, Plain, Frozen, Slotted)),
        st.builds(lambda first, extra: Model.model_validate({"first": first, "other": extra}), inside, inside),
        st.builds(Root, inside),
        *(st.builds(mark, inside) for mark in (Quoted, Unmapped, AllowedFailure)),
    )


structures = st.recursive(futures | scalars | hashables, containers, max_leaves=12)


def parts(value: Any) -> list[Any]:
    """What `value` contains, with no thought for time, depth or cycles."""
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, dict):
        return [*value, *value.values()]
    if is_dataclass(value):
        return [getattr(value, each.name) for each in fields(value)]
    if isinstance(value, BaseModel):
        return [each for _, each in value]
    if isinstance(value, Unmapped | AllowedFailure):
        return [value.value]
    return []


def placeholders(value: Any) -> list[Any]:
    found = [value] if isinstance(value, Placeholder) else []
    for each in parts(value):
        found += placeholders(each)
    return found


def replaced(value: Any, allowed: bool = False) -> Any:  # noqa: C901  # one line for each kind
    def inside(each: Any) -> Any:
        return replaced(each, allowed)

    match value:
        case Future():
            return value_of(value, allowed)
        case Quoted():
            return value.value
        case Unmapped():
            return inside(value.value)
        case AllowedFailure():
            return replaced(value.value, allowed=True)
        case Pair():
            return Pair(*map(inside, value))
        case list() | tuple() | set() | frozenset():
            return type(value)(map(inside, value))
        case defaultdict():
            return defaultdict(value.default_factory, [(inside(k), inside(v)) for k, v in value.items()])
        case dict():
            return type(value)((inside(k), inside(v)) for k, v in value.items())
        case Plain() | Frozen() | Slotted():
            return type(value)(inside(value.first), inside(value.second))
        case Model():
            return Model.model_validate({name: inside(each) for name, each in value})
        case Root():
            return Root(inside(value.root))
        case _:
            return value


@given(structures)
def test_finds_every_future_once_in_the_order_of_reading(value: Any) -> None:
    assert futures_in(value) == list(dict.fromkeys(each for each in placeholders(value) if isinstance(each, Awaited)))


@given(structures)
def test_replaces_as_a_naive_recursion_does(value: Any) -> None:
    before = repr(value)
    result = with_values(value, value_of)
    assert same(result, replaced(value))
    assert repr(value) == before


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types all the way down: `1 == True` and `Rows() == []` are not the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, defaultdict) and one.default_factory is not other.default_factory:
        return False
    if isinstance(one, set | frozenset):
        return bool(one == other)
    inside, of_other = parts(one), parts(other)
    if not inside or isinstance(one, Placeholder):  # a quoted one
        return one is other if isinstance(one, Placeholder) else bool(one == other)
    return len(inside) == len(of_other) and all(map(same, inside, of_other))


@given(structures)
def test_asks_for_values_in_the_order_found(value: Any) -> None:
    asked: dict[Awaited, None] = {}
    with_values(value, lambda future, _: asked.setdefault(future))
    assert list(asked) == futures_in(value)


@given(structures)
def test_what_leads_to_no_placeholder_stays_the_same_object(value: Any) -> None:
    result = with_values(value, value_of)
    if not placeholders(value):
        assert result is value
    elif type(value) in (list, tuple, Rows, Row, Pair):
        assert result is not value
        for before, after in zip(value, result, strict=True):
            assert after is before or placeholders(before)


@given(structures)
def test_nothing_is_left_when_values_hold_no_placeholder(value: Any) -> None:
    quoted = [each for each in placeholders(value) if isinstance(each, Quoted)]
    if not quoted:
        assert placeholders(with_values(value, value_of)) == []


# --- markers -------------------------------------------------------------------------------


def test_a_quoted_value_is_passed_as_it_is() -> None:
    future = Future()
    inside = [future]
    assert futures_in([quote(inside), 1]) == []
    assert with_values([quote(inside)], value_of)[0] is inside
    # The same object, not quoted, is replaced where it stands.
    assert with_values([quote(inside), inside], value_of) == [[future], ["value"]]
    assert with_values([inside, quote(inside)], value_of) == [["value"], [future]]


def test_a_failure_is_allowed_however_deep() -> None:
    future = Future()
    shared = [future]
    asked: list[bool] = []

    def ask(each: Awaited, failure_is_allowed: bool) -> str:
        assert each is future
        asked.append(failure_is_allowed)
        return f"{failure_is_allowed}"

    arguments = [future, allow_failure({"a": [unmapped(shared)]}), shared, future]
    assert with_values(arguments, ask) == ["False", {"a": [["True"]]}, ["False"], "False"]
    assert asked == [False, True]
    assert futures_in(arguments) == [future]


def test_markers_are_typed_as_what_they_stand_for() -> None:
    assert_type(quote(1), int)
    assert_type(unmapped("a"), str)
    marked: list[Any] = [quote(1), unmapped("a"), allow_failure(None)]
    assert [type(each) for each in marked] == [Quoted, Unmapped, AllowedFailure]
    assert repr(marked) == "[quote(1), unmapped('a'), allow_failure(None)]"


def test_an_unknown_placeholder_is_left_alone() -> None:
    class Other(Placeholder):
        pass

    value = [Other()]
    assert futures_in(value) == []
    assert with_values(value, value_of) is value


def test_exist_tells_whether_there_can_be_any(run_python: RunPython) -> None:
    done = run_python(
        """
import sys
from asyncflow.placeholders import Awaited, Placeholder, allow_failure, futures_in, quote, unmapped
print(Placeholder.exist, futures_in([1, object()]), "pydantic" in sys.modules)
made = eval(sys.argv[1])
print(Placeholder.exist, Awaited.exist)
""",
        "quote(1)",
    )
    assert done.stdout.split("\n")[:2] == ["False [] False", "True True"]


@pytest.mark.parametrize("make", [Future, lambda: quote(1), lambda: unmapped(1), lambda: allow_failure(1)])
def test_each_constructor_says_that_placeholders_exist(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placeholder, "exist", False)
    make()
    assert Placeholder.exist


# --- what a copy keeps ---------------------------------------------------------------------


def test_one_object_in_two_places_stays_one() -> None:
    shared = [Future()]
    one, other = with_values([shared, {"again": shared}], value_of)
    assert one == ["value"]
    assert other["again"] is one


def test_sharing_does_not_multiply_the_work() -> None:
    value: Any = [Future()]
    for _ in range(100):
        value = [value, value]  # 2 ** 100 ways to the future
    assert len(futures_in(value)) == 1
    calls: list[object] = []
    with_values(value, lambda future, _: calls.append(future))
    assert len(calls) == 1


def test_a_dataclass_is_copied_without_its_constructor() -> None:
    made: list[object] = []

    @dataclass
    class Order:
        item: Any
        unset: Any = field(init=False)
        shared: ClassVar[Any] = Future()

        def __post_init__(self) -> None:
            made.append(self)
            self.price = Future()  # no field

    order = Order(Future(7))
    result = with_values(order, value_of)
    assert type(result) is Order
    assert result.item == 7
    assert made == [order]
    assert result.price is order.price
    assert not hasattr(result, "unset")


def test_no_property_or_iterator_of_the_user_is_called() -> None:
    @dataclass
    class Lazy:
        item: Any
        loaded: Any = 0

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    Lazy.loaded = property(lambda _: pytest.fail("read"), lambda *_: None)

    class Endless:
        def __iter__(self) -> Iterator[int]:
            raise AssertionError

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    class Odd(Rows):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError

    class Proxy:
        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise AssertionError

    future = Future()
    values = [Lazy([future]), Endless(), Odd([future]), Proxy(), Mock(spec=list), (each for each in [future])]
    assert futures_in(values) == [future]
    assert with_values([values[1:2], values[3:], future], value_of)[2] == "value"


def test_a_property_in_place_of_a_field_is_not_read() -> None:
    @dataclass
    class Settled:
        item: Any

    Settled.item = property(lambda _: pytest.fail("read"), lambda *_: None)
    assert futures_in(Settled(Future())) == []


def test_a_model_keeps_its_private_and_extra_attributes() -> None:
    model = Model.model_validate({"first": [Future()], "other": (Future(2),), "more": 1})
    model._secret = "s"
    result = with_values({"m": model}, value_of)["m"]
    assert type(result) is Model
    assert (result.first, result.second, result._secret) == (["value"], None, "s")
    assert result.model_extra == {"other": (2,), "more": 1}
    assert model.model_extra is not None
    assert isinstance(model.model_extra["other"][0], Future)


def test_containers_keep_what_their_class_adds() -> None:
    rows, row, group, frozen = Rows([Future()]), Row([Future()]), Group([Future()]), FrozenGroup([Future()])
    derived: list[Any] = [rows, row, group, frozen]
    for each in derived:
        each.note = [1]
        result = with_values(each, value_of)
        assert type(result) is type(each)
        assert list(result) == ["value"]
        assert result.note is each.note
    assert with_values(Counter({Future("a"): 2}), value_of) == Counter(a=2)


def test_order_and_factory_of_a_dict_are_kept() -> None:
    ordered = OrderedDict[Any, Any]([(Future("k"), 1), ("b", Future(2)), ("c", 3)])
    ordered.move_to_end("c", last=False)
    result = with_values(ordered, value_of)
    assert list(result.items()) == [("c", 3), ("k", 1), ("b", 2)]
    grouped = with_values(defaultdict(list, {"a": Future(["x"])}), value_of)
    grouped["b"].append(1)
    assert grouped == {"a": ["x"], "b": [1]}


def test_keys_that_become_equal_become_one() -> None:
    assert with_values({Future("k"): 1, Future("k"): 2}, value_of) == {"k": 2}


def test_a_value_is_not_looked_into() -> None:
    inside = [Future()]
    assert with_values([Future(inside)], value_of)[0] is inside


# --- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "where", "remedy"),
    [
        ({Future([1])}, "in a set", "list"),
        (frozenset({quote([1])}), "in a set", "list"),
        ({Future([1]): 1}, "as a key of a dict", "value of the dict"),
    ],
)
def test_a_value_that_is_not_hashable_is_told(value: Any, where: str, remedy: str) -> None:
    with pytest.raises(TypeError, match=rf"{where} stands for a 'list'.*unhashable type: 'list'.*{remedy}"):
        with_values(value, value_of)


def test_what_is_not_hashable_because_of_its_content_is_told() -> None:
    with pytest.raises(TypeError, match=r"stands for a 'tuple'.*unhashable type: 'dict'"):
        with_values({(1, Future({}))}, value_of)


def test_a_copy_that_is_the_object_itself_is_refused() -> None:
    @dataclass
    class Single:
        item: Any

        def __copy__(self) -> Single:
            return self

    future = Future()
    single = Single(future)
    with pytest.raises(TypeError, match=r"'Single' in the arguments.*gives no new object.*quote\(\.\.\.\)"):
        with_values([single], value_of)
    assert single.item is future
    assert copy.copy(single) is single


def test_a_container_in_itself_is_searched_once_and_refused_only_with_a_future() -> None:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    future = Future()
    assert futures_in([loop, future]) == [future]
    assert with_values([loop, future], value_of)[0] is loop
    loop.append(future)
    assert futures_in(loop) == [future]
    with pytest.raises(ValueError, match=r"a 'list' in the arguments .* contains itself"):
        with_values(loop, value_of)


def test_what_value_of_raises_is_passed_on() -> None:
    def refuse(_: Awaited, __: bool) -> Any:
        raise LookupError

    with pytest.raises(LookupError):
        with_values([Future()], refuse)


# --- depth and width -----------------------------------------------------------------------


def test_nothing_is_too_deep() -> None:
    future = Future()
    value: Any = future
    for _ in range(10 * sys.getrecursionlimit()):
        value = [value]
    assert futures_in(value) == [future]
    result, depth = with_values(value, value_of), 0
    while result != "value":
        (result,), depth = result, depth + 1
    assert depth == 10 * sys.getrecursionlimit()


def test_a_future_among_a_million_numbers_is_found() -> None:
    future = Future(-1)
    value: list[Any] = [*range(1_000_000), future]
    assert futures_in(value) == [future]
    assert with_values(value, value_of) == [*range(1_000_000), -1]
