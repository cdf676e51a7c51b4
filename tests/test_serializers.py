"""What is written comes back equal, by annotation; everything else is refused by path."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import threading
import time as clock
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypeVar
from unittest.mock import MagicMock
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr, computed_field, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from asyncflow.error_records import encode_error, error_summary
from asyncflow.exceptions import NotJSONError
from asyncflow.previews import preview
from asyncflow.results import FileResults
from asyncflow.serializers import MAX_DEPTH, decode, encode
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import LiveRun, Waiter, read_result, run_row


class Colour(Enum):
    RED = "red"
    TWO = 2


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Word(StrEnum):
    YES = "yes"


class Bits(IntFlag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: int


@dataclass
class Plain:
    n: int
    raw: bytes = b""
    _hidden: str = "h"
    parts: list[Plain] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slotted:
    at: datetime
    price: Decimal


@pydantic_dataclass
class Checked:
    n: int
    text: bytes = b""


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: int = Field(alias="orderId", serialization_alias="order_id", validation_alias="ORDER")
    lines: list[Plain] = []
    note: str | None = None
    ratio: float | None = None
    anything: Any = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.id * 2


class Login(BaseModel):
    user: str
    password: SecretStr


class Wrapped(RootModel[list[int]]):
    pass


def order(**values: Any) -> Order:
    return Order.model_validate({"ORDER": 1, **values})


T = TypeVar("T")
UserId = NewType("UserId", int)


@dataclass
class Box(Generic[T]):
    content: T
    others: dict[str, T]


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: T | None = None


class Row(TypedDict, Generic[T]):
    cell: T
    note: NotRequired[str]


text = st.text(st.characters(exclude_categories=["Cs"]))
floats = st.floats(allow_nan=False, allow_infinity=False)
huge = st.integers() | st.integers(-(10**60), 10**60)
offsets = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
aware = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=offsets)  # noqa: DTZ001  # it adds the zone
decimals = st.decimals(allow_nan=False, allow_infinity=False)
plains = st.builds(Plain, huge, st.binary(), text, st.just([]))
in_models = st.builds(Plain, huge, st.just(b"text"), text, st.just([]))  # where bytes are read as UTF-8

BY_ANNOTATION: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, huge),
    (float, floats),
    (str, text),
    (bool, st.booleans()),
    (None, st.none()),
    (bytes, st.binary()),
    (bytearray, st.binary().map(bytearray)),
    (memoryview, st.binary().map(memoryview)),
    (datetime, st.datetimes() | aware),
    (date, st.dates()),
    (time, st.times() | st.times(timezones=st.just(timezone(timedelta(hours=-5, minutes=-30))))),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (Decimal, decimals),
    (Path, st.just(Path("a b") / "c.txt")),
    (PurePosixPath, st.just(PurePosixPath("/x/y"))),
    (list[int], st.lists(huge)),
    (tuple[int, str], st.tuples(huge, text)),
    (tuple[bytes, ...], st.lists(st.binary()).map(tuple)),
    (set[str], st.sets(text)),
    (frozenset[tuple[int, bytes]], st.frozensets(st.tuples(huge, st.binary()))),
    (deque[float], st.lists(floats).map(deque)),
    (dict[str, Any], st.dictionaries(text, st.none() | floats | text | st.lists(huge))),
    (dict[int, str], st.dictionaries(huge, text)),
    (dict[bool, int], st.dictionaries(st.booleans(), huge)),
    (dict[float, int], st.dictionaries(floats, huge)),
    (dict[datetime, int], st.dictionaries(st.datetimes(), huge)),
    (dict[UUID, bytes], st.dictionaries(st.uuids(), st.binary())),
    (dict[Level, int], st.dictionaries(st.sampled_from(Level), huge)),
    (dict[Colour, int], st.just({Colour.RED: 1})),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Word, st.sampled_from(Word)),
    (Bits, st.sampled_from([Bits.A, Bits.A | Bits.B])),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (Point, st.builds(Point, huge, floats)),
    (Movie, st.fixed_dictionaries({"title": text, "year": huge})),
    (Plain, st.builds(Plain, huge, st.binary(), text, st.lists(plains, max_size=3))),
    (Slotted, st.builds(Slotted, aware, decimals)),
    (Checked, st.builds(Checked, st.integers(-5, 5), st.sampled_from([b"", b"text"]))),
    (Order, st.builds(order, ORDER=huge, lines=st.lists(in_models, max_size=2), note=st.none() | text)),
    (list[Order], st.lists(st.builds(order, anything=st.none() | huge))),
    (Wrapped, st.lists(st.integers(-9, 9)).map(Wrapped)),
    (int | str, huge | text),
    (str | None, text | st.none()),
    (bool | int | float, st.booleans() | huge | floats),
    (list[int] | dict[str, int], st.lists(huge) | st.dictionaries(text, huge)),
    (Annotated[int, ["unhashable"]], huge),
]


@pytest.mark.parametrize(("annotation", "values"), BY_ANNOTATION, ids=[str(a) for a, _ in BY_ANNOTATION])
@given(data=st.data())
def test_what_is_written_comes_back_equal_by_its_annotation(
    annotation: Any, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    value = data.draw(values)
    back = decode(encode(value), annotation)
    assert back == value
    assert type(back) is type(value)


# --- types of types, through a store -------------------------------------------------------------

Typed = tuple[Any, st.SearchStrategy[Any]]
"""An annotation, and values of that type."""

# Whole minutes: of other offsets pydantic cuts the seconds off where a model is around them.
whole_offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
zoned = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=whole_offsets)  # noqa: DTZ001  # as above

HASHABLE: list[Typed] = [
    (int, huge),
    (str, text),
    (UUID, st.uuids()),
    (datetime, zoned),
    (date, st.dates()),
    (timedelta, st.timedeltas()),
    (Decimal, decimals),
    (Word, st.sampled_from(Word)),
    (Level, st.sampled_from(Level)),
    (UserId, huge.map(UserId)),
]
LEAVES: list[Typed] = [
    *HASHABLE,
    (Colour, st.sampled_from(Colour)),
    (bool, st.booleans()),
    (float, floats),
    (bytes, st.binary()),
    (Point, st.builds(Point, huge, floats)),
    (Slotted, st.builds(Slotted, zoned, decimals)),
]


OF: dict[str, Any] = {
    "list": list, "dict": dict, "set": frozenset, "tuple": tuple, "box": Box, "page": Page, "row": Row
}  # fmt: skip


@st.composite
def annotated(draw: st.DrawFn, depth: int, leaves: list[Typed]) -> Typed:
    """A type made of others, as deep as `depth`, with the values it has."""
    if depth == 0:
        return draw(st.sampled_from(leaves))
    kind = draw(st.sampled_from(["list", "dict", "set", "tuple", "row of", "optional", "box", "page", "row"]))
    if kind == "set":
        element, values = draw(st.sampled_from(HASHABLE))
        return OF["set"][element], st.frozensets(values, max_size=3)
    if kind == "page":  # a model's own settings hold in it, and they read bytes as text
        leaves = [each for each in leaves if each[0] is not bytes]
    inner, values = draw(annotated(depth - 1, leaves))
    lists = st.lists(values, max_size=3)
    if kind == "dict":
        key, keys = draw(st.sampled_from(HASHABLE))
        return OF["dict"][key, inner], st.dictionaries(keys, values, max_size=3)
    if kind == "tuple":
        second, seconds = draw(annotated(0, leaves))
        return OF["tuple"][inner, second], st.tuples(values, seconds)
    forms: dict[str, Typed] = {
        "list": (OF["list"][inner], lists),
        "row of": (OF["tuple"][inner, ...], lists.map(tuple)),
        "optional": (inner | None, st.none() | values),
        "box": (OF["box"][inner], st.builds(Box, values, st.dictionaries(text, values, max_size=2))),
        "page": (OF["page"][inner], st.builds(OF["page"][inner].model_construct, items=lists, next=st.none() | values)),
        "row": (OF["row"][inner], st.fixed_dictionaries({"cell": values}, optional={"note": text})),
    }
    return forms[kind]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str | None]]:
    """Takes the JSON of a value to a store and back."""
    home = tmp_path_factory.mktemp("typed") / "home"
    results = FileResults(home)
    store = SQLiteStore(home, Settings(home=home), results)
    waiter = Waiter()

    def there_and_back(text: str) -> str | None:
        row = run_row(result=text, owner=store.owner)
        store.put(LiveRun(row))
        store.confirm(waiter.ticket())
        waiter.wait()
        found = store.read_run(row.id)
        assert found is not None
        return read_result(results, found)

    yield there_and_back
    store.close()


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_value_of_any_type_comes_back_equal_from_a_store(
    stored: Callable[[str], str | None], data: st.DataObject
) -> None:
    annotation, values = data.draw(annotated(data.draw(st.integers(0, 4)), LEAVES))
    value = data.draw(values)
    back = decode(stored(encode(value)) or "", annotation)
    assert back == value
    # True is not 1 and 1.0 neither, though they are equal; sorted, because two equal sets may differ in order.
    assert sorted(encode(back)) == sorted(encode(value))


@pytest.mark.parametrize("value", [["é" * 40_000, "1" * 70_000], {"n": 10**70_000}])
def test_a_large_value_comes_back_equal_from_a_store(stored: Callable[[str], str | None], value: object) -> None:
    assert decode(stored(encode(value)) or "") == value


plain_json = st.recursive(
    st.none() | st.booleans() | huge | floats | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(plain_json)
def test_plain_json_comes_back_as_it_was_without_an_annotation(value: Any) -> None:
    assert decode(encode(value)) == value
    assert json.loads(encode(value)) == value


corpus_leaves = (
    st.none() | st.booleans() | huge | st.floats() | st.text() | st.binary() | decimals | st.complex_numbers()
    | st.just(object()) | st.just(MagicMock()) | st.just(Login(user="u", password=SecretStr("pw")))
)  # fmt: skip


@given(st.recursive(corpus_leaves, lambda x: st.lists(x) | st.dictionaries(st.text() | st.integers(), x), max_leaves=9))
def test_anything_is_written_or_refused_with_a_path(value: Any) -> None:
    try:
        text = encode(value)
    except NotJSONError as error:
        text = encode([error.path, error.problem])
        assert error.path.startswith("result")  # noqa: PT017  # not every value is refused
    decode(text)


SIZES = [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**4299, 10**5000, 10**20_000 + 7]


@pytest.mark.parametrize("size", SIZES, ids=[f"{size.bit_length()} bits" for size in SIZES])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_of_any_size_are_exact(size: int, sign: int) -> None:
    value = {"n": [sign * size, 1.5, "x" * 25, "1" * 30]}
    assert decode(encode(value)) == value
    assert decode(encode(value), dict[str, list[int | float | str]]) == value
    assert decode(encode([sign * size, b"\xff"]), list[int | bytes]) == [sign * size, b"\xff"]


class Unfriendly:
    """Everything about it raises."""

    def _fail(self, *_: object) -> Any:
        raise RuntimeError("no")

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __hash__ = __getattr__ = _fail
    __class__ = property(_fail)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")


class FailingList(list[int]):
    def __iter__(self) -> Any:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")


class FailingSet(set[int]):
    def __iter__(self) -> Any:
        raise KeyError("no")


@dataclass
class Unset:
    n: int = field(init=True)


def broken_dataclass() -> Unset:
    value = Unset(1)
    del value.n
    return value


def cyclic_dataclass() -> Plain:
    value = Plain(1)
    value.parts.append(value)
    return value


def cyclic_list() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


def nested(depth: int, bottom: Any) -> Any:
    for _ in range(depth):
        bottom = [bottom]
    return bottom


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("object in a dataclass", lambda: {"items": [1, 2, 3, Plain(1, parts=[object()])]}, "result.items[3].parts[0]"),  # type: ignore[list-item]
    ("function", lambda: {"items": [0, {"fn": len}]}, "result.items[1].fn"),
    ("key that is no identifier", lambda: {"a b": {"c-d": len}}, 'result["a b"]["c-d"]'),
    ("integer key", lambda: {5: {None: len}}, "result[5][None]"),
    ("nan", lambda: [{"x": 1, "y": [None, math.nan]}], "result[0].y[1]"),
    ("infinity", lambda: -math.inf, "result"),
    ("nan in a set", lambda: {"s": {math.nan}}, "result.s[0]"),
    ("nan in a deque", lambda: deque([math.nan]), "result[0]"),
    ("nan in a dataclass", lambda: [Slotted(datetime.now(UTC), math.nan)], "result[0].price"),  # type: ignore[arg-type]
    ("nan in a model", lambda: {"m": order(ratio=math.nan)}, "result.m.ratio"),
    ("nan deep in a model", lambda: [order(anything={"q": [1, math.nan]})], "result[0].anything.q[1]"),
    ("nan beside a large integer", lambda: [2**70, order(anything=[math.nan])], "result[1].anything[0]"),
    ("nan in a float key", lambda: {math.nan: 1}, "result[nan]"),
    ("decimal nan", lambda: [Decimal("NaN")], "result[0]"),
    ("decimal infinity", lambda: [Decimal("-Infinity")], "result[0]"),
    ("complex", lambda: [1j], "result[0]"),
    ("function in a model", lambda: [order(anything={"fn": len})], "result[0].anything.fn"),
    ("secret", lambda: {"token": SecretStr("hunter2")}, "result.token"),
    ("secret in a model", lambda: [Login(user="u", password=SecretStr("hunter2"))], "result[0].password"),
    ("secret beside a large integer", lambda: [2**70, Login(user="u", password=SecretStr("p"))], "result[1].password"),
    ("tuple key", lambda: {"d": {(1, 2): 3}}, "result.d[(1, 2)]"),
    ("keys of one text", lambda: {"d": {1: "a", "1": "b"}}, "result.d[\"1\"]"),
    ("true and 'true'", lambda: {True: "a", "true": "b"}, "result.true"),
    ("lone surrogate", lambda: ["ok", "bad \ud800"], "result[1]"),
    ("lone surrogate in a key", lambda: {"\udfff": 1}, 'result["\\udfff"]'),
    ("lone surrogate in a path", lambda: [Path("\udcff")], "result[0]"),
    ("lone surrogate in a model", lambda: order(anything=["\ud800"]), "result.anything[0]"),
    ("generator", lambda: [(x for x in range(3))], "result[0]"),
    ("lock", lambda: {"lock": threading.Lock()}, "result.lock"),
    ("class", lambda: [int], "result[0]"),
    ("exception", lambda: [ValueError("x")], "result[0]"),
    ("mock", lambda: [MagicMock()], "result[0]"),
    ("everything raises", lambda: [Unfriendly()], "result[0]"),
    ("set that raises", lambda: {"s": FailingSet({1})}, "result.s"),
    ("dataclass without its attribute", lambda: [broken_dataclass()], "result[0]"),
    ("list in itself", cyclic_list, "result[0].again"),
    ("dataclass in itself", cyclic_dataclass, "result.parts[0]"),
    ("model with a wrong type", lambda: [Login.model_construct(user=5, password=SecretStr(""))], "result[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "path"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_written_is_refused_by_path(make: Callable[[], Any], path: str) -> None:
    with pytest.raises(NotJSONError) as caught:
        encode(make())
    assert caught.value.path == path
    assert "hunter2" not in str(caught.value)


def test_a_list_that_overrides_iteration_is_written_or_refused() -> None:
    assert encode(FailingList([1])) == "[1]"
    with pytest.raises(NotJSONError):
        encode([FailingList([1]), 2**70])


async def test_coroutines_and_futures_are_refused() -> None:
    async def body() -> None:
        await asyncio.sleep(0)

    coroutine = body()
    with pytest.raises(NotJSONError, match=r"result\[0\]"):
        encode([coroutine])
    coroutine.close()


@pytest.mark.parametrize("bottom", [1, 2**70])
def test_depth_is_bounded_without_a_recursion_error(bottom: int) -> None:
    assert decode(encode(nested(MAX_DEPTH - 1, bottom))) == nested(MAX_DEPTH - 1, bottom)
    assert decode(encode(nested(240, bottom)), list[Any]) == nested(240, bottom)
    for depth in (300, 1_000, 100_000):
        deep = nested(depth, bottom)
        with pytest.raises(NotJSONError, match="nested"):
            encode(deep)
        while deep != bottom:  # taken apart by hand: freeing it would recurse in C
            deep = deep.pop()


def test_a_local_mean_time_keeps_its_instant() -> None:
    value = datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert value.utcoffset() == timedelta(minutes=53, seconds=28)
    assert decode(encode(value), datetime) == value


def test_sets_have_one_text_whatever_their_order() -> None:
    assert encode({"s": {"b", "a", "c"}}) == '{"s":["a","b","c"]}'
    assert sorted(decode(encode({1, "a"})), key=str) == [1, "a"]


def test_subclasses_of_plain_types_are_plain() -> None:
    class Number(float):
        pass

    class Text(str):
        __slots__ = ()

    assert encode([Number(1.5), Text("x"), OrderedDict(a=1), True]) == '[1.5,"x",{"a":1},true]'
    assert encode([2**70, Number(1.5), Text("x"), {Text("k"): Level.LOW}]) == f'[{2**70},1.5,"x",{{"k":1}}]'


def test_text_that_looks_like_a_loss_is_no_loss() -> None:
    for value in ("null", "**********", {"null": None, "**********": ["**********", None]}):
        assert decode(encode(value)) == value


def test_a_field_that_a_model_leaves_out_may_refer_back() -> None:
    class Node(BaseModel):
        name: str | None = None
        parent: Any = Field(default=None, exclude=True)

    node = Node()
    node.parent = node
    assert encode(node) == '{"name":null}'


def test_decoding_is_strict() -> None:
    for written, annotation in [('"5"', int), ("1", bool), ("5", str), ("[1.5]", list[int]), ("null", str)]:
        with pytest.raises(ValueError, match="validation error"):
            decode(written, annotation)
    for broken in ("", "{", "nul", "[1", "NaN"):
        with pytest.raises(ValueError):  # noqa: PT011  # orjson's and pydantic's texts differ
            decode(broken)
        with pytest.raises(ValueError):  # noqa: PT011
            decode(broken, list[int])


def test_an_annotation_that_cannot_be_read_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="cannot be read back"):
        decode("1", "NoSuchType")


def test_unions_that_differ_in_order_are_read_in_their_order() -> None:
    class A(BaseModel):
        x: int

    class B(BaseModel):
        x: int

    assert type(decode('{"x":1}', A | B)) is A
    assert type(decode('{"x":1}', B | A)) is B


def test_plain_values_need_no_pydantic() -> None:
    code = (
        "import sys\n"
        "from asyncflow.error_records import encode_error\nfrom asyncflow.serializers import decode, encode\n"
        "assert decode(encode({'a': [1, None, 2**80]})) == {'a': [1, None, 2**80]}\n"
        "for value, hint in ((1, int), ('x', str), ([1], list), ({}, dict), (None, None)):\n"
        "    assert decode(encode(value), hint) == value\n"
        "print('pydantic' in sys.modules)\n"
    )
    path = str(Path(__file__).parent.parent / "src")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


# --- previews ------------------------------------------------------------------------------


@given(st.recursive(corpus_leaves, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=30))
def test_a_preview_is_short_and_can_be_written(value: Any) -> None:
    shown = preview(value, 80)
    assert len(shown) <= 80
    shown.encode()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (5, "5"),
        ("text", "'text'"),
        (None, "None"),
        ([1, True, 2.5], "[1, True, 2.5]"),
        ({"a": {"b": (1,)}}, "{'a': {'b': (1,)}}"),
        (b"ab", "b'ab'"),
        (Colour.RED, "Colour.RED"),
        (Decimal("1.10"), "Decimal('1.10')"),
        (SecretStr("hunter2"), "SecretStr('**********')"),
        (Login(user="u", password=SecretStr("hunter2")), "Login(user='u', password=SecretStr('**********'))"),
        (Plain(1, parts=[]), "Plain(n=1, raw=b'', _hidden='h', parts=[])"),
        (10**5000, "<int of 16,610 bits>"),
        (object(), "<object>"),
        (Unfriendly(), f"<{__name__}.Unfriendly>"),
        (cyclic_list(), "[{'again': [{'again': […]}]}]"),
    ],
    ids=lambda value: value if type(value) is str else "",
)
def test_a_preview_says_what_it_is(value: Any, shown: str) -> None:
    assert preview(value) == shown


def test_a_preview_runs_no_repr_and_hides_what_its_class_hides() -> None:
    class Client:
        def __repr__(self) -> str:
            raise AssertionError("a preview must not ask")

    @dataclass
    class Settings:
        host: str
        token: str = field(repr=False)

    assert preview(Client()).endswith("Client>")
    assert preview([Client()]).endswith("Client>]")
    assert preview(Settings("h", "hunter2")) == "Settings(host='h')"


def test_a_preview_of_something_huge_takes_no_time() -> None:
    huge_value = {"rows": [list(range(1000))] * 1000, "text": "x" * 10**7, "raw": b"x" * 10**7}
    started = clock.perf_counter()
    for _ in range(20):
        preview(huge_value)
    assert clock.perf_counter() - started < 1


# --- exceptions ----------------------------------------------------------------------------


def caught(raiser: Callable[[], Any]) -> BaseException:
    try:
        raiser()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def chained() -> None:
    try:
        local_secret = "hunter2"
        raise KeyError("inner") from OSError(len(local_secret))
    except KeyError as error:
        error.add_note("a note")
        raise ValueError("outer") from error


def test_an_error_keeps_type_text_notes_traceback_and_causes() -> None:
    record = json.loads(encode_error(caught(chained)))
    assert (record["type"], record["module"], record["message"]) == ("ValueError", "builtins", "outer")
    assert 'raise ValueError("outer") from error' in record["traceback"]
    assert record["traceback"].endswith("ValueError: outer\n")
    assert (record["cause"]["type"], record["cause"]["notes"]) == ("KeyError", "a note")
    assert record["cause"]["cause"]["type"] == "OSError"


def test_a_context_is_kept_unless_it_was_suppressed() -> None:
    def implicit() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904

    def suppressed() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None

    assert json.loads(encode_error(caught(implicit)))["context"]["type"] == "KeyError"
    assert not {"context", "cause"} & json.loads(encode_error(caught(suppressed))).keys()


def test_our_own_frames_are_left_out_and_locals_are_not_written() -> None:
    def user_code() -> None:
        local_secret = "hunter2".upper()
        encode({"fn": local_secret.encode})

    record = encode_error(caught(user_code))
    assert "user_code" in record
    assert "asyncflow/serializers.py" not in record
    assert "HUNTER2" not in record


def test_an_error_all_of_whose_frames_are_ours_keeps_them() -> None:
    error = caught(lambda: encode(len))
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next and error.__traceback__.tb_next.tb_next
    assert "asyncflow/serializers.py" in encode_error(error)


def deep_group(depth: int) -> BaseException:
    error: Exception = ValueError("leaf")
    for _ in range(depth):
        error = ExceptionGroup("nest", [error])
    return error


def test_groups_nested_deep_are_no_recursion_error() -> None:
    error = deep_group(10_000)
    assert error_summary(error) == "ValueError: leaf"
    record = json.loads(encode_error(error))
    assert record["type"] == "ExceptionGroup"
    assert [leaf["message"] for leaf in record["exceptions"]] == ["leaf"]
    while isinstance(error, ExceptionGroup):  # taken apart by hand: freeing it would recurse in C
        error = error.exceptions[0]


def test_many_failures_are_told_up_to_a_hundred() -> None:
    group = ExceptionGroup("many", [ValueError(str(i)) for i in range(10_000)])
    record = json.loads(encode_error(group))
    assert [leaf["message"] for leaf in record["exceptions"]] == [str(i) for i in range(100)]
    assert record["left_out"] is True
    assert error_summary(group) == "ExceptionGroup: many (10000 sub-exceptions)"
    nested_groups = BaseExceptionGroup("a", [ValueError("1"), ExceptionGroup("b", [OSError("2"), KeyError("3")])])
    leaves = json.loads(encode_error(nested_groups))["exceptions"]
    assert [leaf["type"] for leaf in leaves] == ["ValueError", "OSError", "KeyError"]


def test_causes_that_form_a_ring_end() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    record = json.loads(encode_error(first))
    assert record["cause"]["message"] == "2"
    assert "cause" not in record["cause"]


def test_a_long_chain_of_causes_is_bounded() -> None:
    error = ValueError("0")
    for i in range(5_000):
        error, error.__cause__ = ValueError(str(i)), error
    assert encode_error(error).count('"cause"') <= 10


class EvilError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "error",
    [
        EvilError(),
        ValueError("\ud800 \x00 \N{RIGHT-TO-LEFT OVERRIDE} </script>"),
        ValueError("x" * 10**7),
        ValueError("\x00" * 10**6),
        ValueError("\N{PILE OF POO}" * 10**6),
        ExceptionGroup("g" * 10**6, [EvilError(), *(ValueError("\x01" * 10**5) for _ in range(200))]),
        KeyboardInterrupt(),
        SystemExit(3),
        StopIteration(object()),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("limit", [16 * 1024, 64 * 1024])
def test_every_error_fits_its_limit(error: BaseException, limit: int) -> None:
    written = encode_error(error, limit=limit)
    assert len(written.encode()) <= limit
    assert json.loads(written)["type"] == type(error).__name__
    assert len(error_summary(error)) <= 1000
    error_summary(error).encode()


def test_a_recursion_error_is_told() -> None:
    def forever() -> None:
        forever()

    record = json.loads(encode_error(caught(forever)))
    assert record["type"] == "RecursionError"
    assert "forever" in record["traceback"]


def test_a_summary_names_the_type_and_the_text() -> None:
    assert error_summary(ValueError("text")) == "ValueError: text"
    assert error_summary(ValueError()) == "ValueError"
    assert error_summary(EvilError()) == "EvilError: <its __str__ raised>"
    assert error_summary(ExceptionGroup("g", [ExceptionGroup("h", [KeyError("k")])])) == "KeyError: 'k'"


def test_validators_that_raise_anything_do_not_hide_what_was_read() -> None:
    class Odd(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            if n == 13:
                raise ZeroDivisionError(n)
            return n

    assert decode(encode(Odd(n=1)), Odd) == Odd(n=1)
    with pytest.raises(ZeroDivisionError):
        decode('{"n":13}', Odd)


def test_an_id_is_written_once_and_read_back() -> None:
    value = {uuid4(): [uuid4()]}
    assert decode(encode(value), dict[UUID, list[UUID]]) == value
