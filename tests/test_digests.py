"""Digests are equal exactly for equal values of equal types: in any order, process and Python."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle
import random
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from datetime import time as daytime
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, PrivateAttr, RootModel, SecretStr
from pydantic.dataclasses import dataclass as pydantic_dataclass

from asyncflow._digest_forms import MAX_BYTES, MAX_ITEMS, MAX_TEXT
from asyncflow.digests import MAX_DEPTH, digest
from asyncflow.exceptions import NotDigestibleError
from tests.conftest import RunPython


class Colour(Enum):
    RED = "red"
    BLUE = 1


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    RED = "red"


class Access(Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: Any
    y: Any = 0


class Spot(NamedTuple):
    x: Any
    y: Any = 0


@dataclass
class Item:
    name: Any
    tags: Any = ()


@dataclass(frozen=True, slots=True)
class Slotted:
    name: Any
    tags: Any = ()


class Model(BaseModel):
    name: Any
    tags: Any = ()


class Root(RootModel[Any]):
    pass


@pydantic_dataclass
class Checked:
    name: Any


# --- equal exactly if equal ----------------------------------------------------------------

# Few, so that two draws are often equal, and such that Python calls many of them equal.
SCALARS: list[Any] = [
    None, False, True, 0, 1, -1, 2**63, 2**64, -(2**63) - 1, 10**700, 10**700 + 1, 0.0, -0.0, 1.0,
    0.1, 1e16, math.nan, math.inf, -math.inf, 1j, complex(1, 0), "", "0", "1", "1.0", "null",
    "None", "nan", "red", "é", "\ud800", "[1]", b"", b"1", b"red", bytearray(b"1"), Decimal(1),
    Decimal("1.0"), Decimal("NaN"), Decimal("-0"), Fraction(1), Fraction(1, 3), UUID(int=1),
    str(UUID(int=1)), UUID(int=1).bytes, Colour.RED, Colour.BLUE, Level.LOW, Word.RED, Access.READ,
    Access.READ | Access.WRITE, Access(0), date(2026, 1, 2), datetime(2026, 1, 2),  # noqa: DTZ001
    datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, 1, tzinfo=timezone(timedelta(hours=1))),
    datetime(2026, 1, 2, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")), "2026-01-02",
    datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), daytime(1),
    daytime(1, tzinfo=UTC), timedelta(0), timedelta(1), timedelta(days=-1, microseconds=1),
    PurePosixPath("a"), PureWindowsPath("a"), Path("a"), AnyUrl("http://a/"), "http://a/",
]  # fmt: skip


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hashable = st.sampled_from([each for each in SCALARS if not isinstance(each, bytearray)])
    few = st.lists(inner, max_size=3)
    return st.one_of(
        few,
        few.map(tuple),
        few.map(deque),
        st.lists(hashable, max_size=3).map(set),
        st.lists(hashable, max_size=3).map(frozenset),
        st.dictionaries(st.sampled_from(["a", "b", "c", ""]), inner, max_size=3),
        st.dictionaries(hashable, inner, max_size=3),
        st.lists(st.tuples(hashable, inner), max_size=2).map(OrderedDict),
        st.lists(hashable, max_size=3).map(Counter),
        st.builds(Point, inner, inner),
        st.builds(Spot, inner, inner),
        st.builds(Item, inner, inner),
        st.builds(Slotted, inner, inner),
        st.builds(Checked, inner),
        inner.map(lambda value: Model(name=value)),
        inner.map(Root),
    )


values = st.recursive(st.sampled_from(SCALARS), grown, max_leaves=6)
anything = st.one_of(
    values,
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(),
            st.binary(),
            st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
            st.decimals(),
            st.uuids(),
            st.times(),
            st.timedeltas(),
        ),
        grown,
        max_leaves=20,
    ),
)


def plain(value: Any) -> Any:  # noqa: C901  # a list of types
    """What `value` is, told in another way than the digest does: its type and its parts, in an order of their own."""
    kind = type(value)
    if isinstance(value, float):
        return (kind, "nan" if value != value else value.hex())
    if isinstance(value, complex):
        return (kind, plain(value.real), plain(value.imag))
    if isinstance(value, Enum):
        return (kind, value.name, value.value)
    if isinstance(value, datetime | daytime):
        zone = value.tzinfo
        named = zone.key if isinstance(zone, ZoneInfo) and zone.key != "UTC" else None
        return (kind, value.replace(tzinfo=None).isoformat(), value.utcoffset(), named, zone is None)
    if isinstance(value, Decimal):
        return (kind, value.as_tuple())
    if isinstance(value, OrderedDict):
        return (kind, [(plain(key), plain(each)) for key, each in value.items()])
    if isinstance(value, dict):
        return (kind, sorted((repr(plain(key)), repr(plain(each))) for key, each in value.items()))
    if isinstance(value, set | frozenset):
        return (kind, sorted(repr(plain(each)) for each in value))
    if isinstance(value, tuple | list | deque):
        return (kind, [plain(each) for each in value])
    if hasattr(value, "__dataclass_fields__"):
        return (kind, [(name, plain(getattr(value, name))) for name in value.__dataclass_fields__])
    if isinstance(value, BaseModel):
        return (kind, [(name, plain(getattr(value, name))) for name in type(value).model_fields])
    return (kind, value if isinstance(value, int) else str(value) if not isinstance(value, bytes) else bytes(value))


@given(values, values)
def test_equal_exactly_if_the_values_are(one: Any, two: Any) -> None:
    assert (digest({"x": one}) == digest({"x": two})) == (plain(one) == plain(two))


@given(st.dictionaries(st.sampled_from("abc"), values), st.dictionaries(st.sampled_from("abc"), values))
def test_arguments_are_told_apart(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (digest(one) == digest(two)) == (plain(one) == plain(two))


def test_no_two_scalars_share_a_digest() -> None:
    for wrap in (lambda value: value, lambda value: [value], lambda value: {"a": value}, lambda value: (value,), Item):
        found = {digest({"x": wrap(each)}) for each in SCALARS}
        assert len(found) == len(SCALARS)
    assert digest({"x": 1}) != digest({"y": 1})


def reordered(value: Any, dice: random.Random) -> Any:
    """An equal value made anew: its dicts and sets filled in another order."""
    if type(value) in (dict, Counter):
        items = [(key, reordered(each, dice)) for key, each in value.items()]
        dice.shuffle(items)
        return type(value)(dict(items))
    if type(value) in (set, frozenset):
        items = list(value)
        dice.shuffle(items)
        return type(value)(items)
    if type(value) in (list, tuple, deque):
        return type(value)(reordered(each, dice) for each in value)
    return copy.deepcopy(value)


@given(st.dictionaries(st.text(), anything, min_size=1), st.randoms(use_true_random=False))
def test_order_and_identity_do_not_count(value: dict[str, Any], dice: random.Random) -> None:
    assert digest(reordered(value, dice)) == digest(value)


@given(values, st.binary(max_size=20), st.binary(max_size=20))
def test_a_salt_tells_equal_ones_apart(value: Any, one: bytes, two: bytes) -> None:
    assert (digest({"x": value}, one) == digest({"x": value}, two)) == (one == two)


def test_a_digest_has_sixteen_bytes() -> None:
    assert {len(digest(given)) for given in ({}, {"x": 1}, {"x": [1]}, {"x": (1,)})} == {16}


@given(anything)
def test_digesting_changes_nothing(value: Any) -> None:
    before = plain(value)
    first = digest({"x": value})
    assert digest({"x": value}) == first
    assert plain(value) == before


# Written down, because they are on people's disks: each is the same on every supported Python.
KNOWN: list[tuple[str, Any, str]] = [
    ("scalars", {"a": 1, "b": "é", "c": None, "d": -0.0}, "ae4688c45ba5607a9995ba680b319295"),
    ("json", {"x": [{"b": 1.5, "a": [True, "\u20ac", 10**18]}]}, "0816329246628322d4386470fa3750e0"),
    (
        "typed",
        {"x": (1, {2, 3}, Decimal("1.50"), UUID(int=7), datetime(2026, 1, 2, tzinfo=UTC), b"\x00")},
        "54d7a319128e824af76ec32a626e007e",
    ),
    ("long", {"x": 10**700}, "0eb4cd7007147f7df2202c222afa2adc"),
]


@pytest.mark.parametrize(("value", "known"), [pytest.param(value, hex_, id=name) for name, value, hex_ in KNOWN])
def test_a_digest_stays_the_same(value: dict[str, Any], known: str) -> None:
    assert digest(value).hex() == known


def test_the_same_in_every_process(run_python: RunPython) -> None:
    code = """
import pickle, sys
from asyncflow.digests import digest
from tests import test_digests
print(",".join(digest({"x": each}).hex() for each in test_digests.MANY))
"""
    here = ",".join(digest({"x": each}).hex() for each in MANY)
    root = Path(__file__).parent.parent
    for seed in ("1", "2"):
        assert run_python(code, cwd=root, env={"PYTHONHASHSEED": seed}).stdout.strip() == here


MANY: list[Any] = [
    *SCALARS,
    set(map(str, range(50))),
    frozenset(range(50)),
    {str(number): {number} for number in range(50)},
    Item("a", {"x", "y"}),
    Slotted("a", [1]),
    Model(name={1, "1"}),
    Point({"a", "b"}, Colour.RED),
    {Colour.RED: 1, "red": 2, 1: 3, (1, "x"): 4},
]


def test_how_python_is_set_up_does_not_count(run_python: RunPython) -> None:
    code = "from asyncflow.digests import digest; print(digest({'x': 10**599, 'y': 10**5000}).hex())"
    found = {run_python(code, env={"PYTHONINTMAXSTRDIGITS": digits}).stdout for digits in ("640", "4300", "0")}
    assert len(found) == 1


@given(st.lists(st.one_of(st.none(), st.floats(), st.just("null")), max_size=6), st.integers(0, 5))
def test_nothing_hides_behind_null(items: list[Any], index: int) -> None:
    if index < len(items) and items[index] is None:
        other = [*items[:index], math.nan, *items[index + 1 :]]
        assert digest({"x": items}) != digest({"x": other})
    assert (digest({"x": items}) == digest({"x": list(items)})) is True


def test_zones() -> None:
    berlin, paris = ZoneInfo("Europe/Berlin"), ZoneInfo("Europe/Paris")

    def at(zone: tzinfo | None) -> bytes:
        return digest({"x": datetime(2026, 1, 2, 3, tzinfo=zone)})

    assert len({at(zone) for zone in (None, UTC, berlin, paris, timezone(timedelta(hours=1)))}) == 5
    # As it comes back from JSON, where the name of a zone is lost and UTC is not.
    from pydantic import TypeAdapter

    read: Any = TypeAdapter(datetime).validate_json('"2026-01-02T03:00:00Z"')
    assert digest({"x": read}) == at(UTC) == at(ZoneInfo("UTC")) == at(timezone(timedelta(0), "Z"))
    read = TypeAdapter(datetime).validate_json('"2026-01-02T03:00:00+01:00"')
    assert digest({"x": read}) == at(timezone(timedelta(hours=1)))


def test_what_a_model_and_a_dataclass_count() -> None:
    @dataclass
    class Cached:
        name: str
        memo: Any = field(default=None, compare=False)

    class Private(BaseModel, extra="allow"):
        name: str
        _memo: Any = PrivateAttr(default=None)

    assert digest({"x": Cached("a", threading.Lock())}) == digest({"x": Cached("a")})
    one, two = Private(name="a"), Private(name="a")
    assert digest({"x": one}) == digest({"x": two})
    two._memo = 1
    assert digest({"x": one}) != digest({"x": two})
    assert digest({"x": Private.model_validate({"name": "a", "more": 1})}) != digest({"x": one})
    partly = Private.model_construct()
    assert digest({"x": partly}) != digest({"x": one})


# --- refused -------------------------------------------------------------------------------


class Alive:
    """Runs code of its own wherever it is touched."""

    touched: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        Alive.touched.append(name)
        raise RuntimeError(name)

    def _touch(self, *args: Any) -> Any:
        Alive.touched.append("method")
        raise RuntimeError

    __eq__ = __hash__ = __repr__ = __str__ = __bool__ = __len__ = __iter__ = __reduce_ex__ = _touch


@dataclass
class Property:
    """A dataclass whose field is answered by code."""

    name: str = "x"

    def __getattribute__(self, name: str) -> Any:
        Alive.touched.append(name)
        return object.__getattribute__(self, name)

    def __eq__(self, other: object) -> bool:
        Alive.touched.append("__eq__")
        return True


class Text(str):
    __slots__ = ()


class Zone(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta:
        Alive.touched.append("utcoffset")
        return timedelta(0)

    def dst(self, dt: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, dt: datetime | None) -> str:
        return "here"


def generated() -> Iterator[int]:
    yield 1


def make_cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def explosion() -> list[Any]:
    """A little list that is 2**40 items long for whoever walks it."""
    level: list[Any] = [1]
    for _ in range(40):
        level = [level, level]
    return level


REFUSED: list[tuple[Any, str]] = [
    (threading.Lock(), "_thread.lock"),
    (print, "builtin_function_or_method"),
    (make_cycle, "function"),
    (functools.partial(print, 1), "functools.partial"),
    (generated(), "generator"),
    (Item, "type"),
    (Text("x"), "Text"),
    (memoryview(b"x"), "memoryview"),
    (SecretStr("x"), "SecretStr"),
    (defaultdict(list), "defaultdict"),
    (Alive(), "Alive"),
    (type("Ints", (list,), {})(), "Ints"),
    (make_dataclass("Both", [("name", str)], bases=(dict,))("x"), "Both"),
    (datetime(2026, 1, 1, tzinfo=Zone()), "a time zone of type"),
    (ValueError("x"), "ValueError"),
]


@pytest.mark.parametrize(("value", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_is_no_plain_data_is_refused(value: Any, why: str) -> None:
    wraps: list[tuple[Any, str]] = [
        (lambda: value, "x"),
        (lambda: [1, value], "x[1]"),
        (lambda: {"items": [{"fn": value}]}, "x.items[0].fn"),
        (lambda: {"a b": (value,)}, 'x["a b"][0]'),
        (lambda: Item("a", value), "x.tags"),
        (lambda: Slotted("a", value), "x.tags"),
        (lambda: Point(1, {7: value}), "x.y[7]"),
        (lambda: Model.model_construct(name=[value]), "x.name[0]"),
    ]
    for wrap, path in wraps:
        Alive.touched.clear()
        with pytest.raises(NotDigestibleError) as caught:
            digest({"w": 1, "x": wrap()})
        assert caught.value.path == path
        assert why in caught.value.problem
        assert Alive.touched == []
    assert pickle.loads(pickle.dumps(caught.value)).path == path


def test_no_code_of_a_value_is_run() -> None:
    Alive.touched.clear()
    one = digest({"x": Property("a"), "y": [Property("a")]})
    assert one != digest({"x": Property("b"), "y": [Property("a")]})
    assert Alive.touched == []


def test_arrays_and_clients_are_refused() -> None:
    with httpx.Client() as client, pytest.raises(NotDigestibleError, match="client: NoKey") as caught:
        digest({"page": 1, "client": client})
    assert caught.value.path == "client"


def test_cycles_and_explosions_end() -> None:
    with pytest.raises(NotDigestibleError, match="contains itself"):
        digest({"x": make_cycle()})
    for value in (explosion(), (explosion(),)):
        with pytest.raises(NotDigestibleError, match="too large"):
            digest({"x": value})


def nested(depth: int, make: Any) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return value


@pytest.mark.parametrize(
    "make",
    [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}, lambda v: Item(v, None)],
    ids=["[]", "()", "{}", "{1}", "()."],
)
def test_nesting_to_250_levels(make: Any) -> None:
    assert digest({"x": nested(MAX_DEPTH, make)}) != digest({"x": nested(MAX_DEPTH - 1, make)})
    with pytest.raises(NotDigestibleError, match="nested"):
        digest({"x": nested(MAX_DEPTH + 10, make)})
    with pytest.raises(NotDigestibleError, match="nested"):
        digest({"x": nested(100_000, lambda v: [v])})


TOO_LARGE: list[tuple[str, Any]] = [
    ("bytes", bytes(MAX_BYTES + 1)),
    ("bytearray", bytearray(200_000_000)),
    ("text", "x" * (MAX_TEXT + 1)),
    ("list", [0] * (MAX_ITEMS + 1)),
    ("tuple", (0,) * (MAX_ITEMS + 1)),
    ("set", set(range(MAX_ITEMS + 1))),
    ("dict", dict.fromkeys(range(MAX_ITEMS + 1))),
]


@pytest.mark.parametrize("value", [value for _, value in TOO_LARGE], ids=[name for name, _ in TOO_LARGE])
def test_what_is_huge_is_refused_at_once(value: Any) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        with pytest.raises(NotDigestibleError, match="too large"):
            digest({"first": [0] * 1000, "x": value})
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.001


def test_a_client_beside_much_data_is_refused_at_once() -> None:
    rows = [{"id": number, "name": str(number)} for number in range(100_000)]
    lock = threading.Lock()

    def seconds() -> float:
        began = time.perf_counter()
        with pytest.raises(NotDigestibleError):
            digest({"a": rows, "lock": lock})
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.001


def test_what_is_just_not_too_large() -> None:
    digest({"a": bytes(MAX_BYTES), "b": "x" * MAX_TEXT})


def test_the_object_of_a_method_is_called_self() -> None:
    with pytest.raises(NotDigestibleError) as caught:
        digest({"": threading.Lock(), "x": 1})
    assert caught.value.path == "self"


def test_what_is_changed_meanwhile_is_refused_or_digested() -> None:
    value: dict[int, int] = {number: number for number in range(1000)}
    stop = threading.Event()

    def change() -> None:
        for number in itertools.count(1000):
            if stop.is_set():
                return
            value[number] = number
            value.pop(number - 500, None)

    thread = threading.Thread(target=change)
    thread.start()
    refused: list[str] = []
    for _ in range(200):
        try:
            digest({"x": value})
        except NotDigestibleError as error:
            refused.append(error.problem)
    stop.set()
    thread.join()
    assert [each for each in refused if "changed" not in each] == []  # its size, or its keys
