"""Arguments bind as Python binds them, fit their hints, and are recorded as JSON by name."""

from __future__ import annotations

import builtins
import functools
import inspect
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Unpack
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr
from typing_extensions import TypedDict

from asyncflow.error_records import encode_error
from asyncflow.exceptions import ParametersTooLargeError, ParameterValidationError, ReservedParameterError
from asyncflow.parameters import Binder, ParameterModel, encode_parameters
from asyncflow.previews import PREVIEW_KEY
from asyncflow.serializers import decode


def binder(fn: Callable[..., Any], **options: Any) -> Binder:
    return Binder(fn, name="fn", kind="flow", **options)


def parameters(fn: Callable[..., Any], **options: Any) -> tuple[Binder, ParameterModel]:
    bound = binder(fn)
    return bound, ParameterModel(fn, bound, flow="my-flow", **options)


def problems(call: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, tuple[str, str]]:
    with pytest.raises(ParameterValidationError) as caught:
        call(*args, **kwargs)
    assert caught.value.flow == "my-flow"
    return {path: (message, shown) for path, message, shown in caught.value.problems}


# --- binding and calling -------------------------------------------------------------------

KINDS = [
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
]
names = st.sampled_from(
    ["a", "b", "c", "self", "cls", "context", "bind", "call", "function", "arguments", "fn", "kwargs", "args", "print"]
)


@st.composite
def functions(draw: st.DrawFn) -> Callable[..., Any]:
    """A function with any signature that gives back all it was called with."""
    kinds = sorted(draw(st.lists(st.sampled_from(KINDS), max_size=6)))
    for once in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        while kinds.count(once) > 1:
            kinds.remove(once)
    chosen = draw(st.lists(names, min_size=len(kinds), max_size=len(kinds), unique=True))
    built: list[inspect.Parameter] = []
    defaulted = False
    for kind, name in zip(kinds, chosen, strict=True):
        may = kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        must = defaulted and kind in KINDS[:2]
        has_default = may and (must or draw(st.booleans()))
        defaulted = has_default if kind in KINDS[:2] else defaulted
        built.append(inspect.Parameter(name, kind, default=0 if has_default else inspect.Parameter.empty))
    body = ", ".join(f"({each.name!r}, {each.name})" for each in built)
    namespace: dict[str, Any] = {}
    exec(f"def subject{inspect.Signature(built)}: return [{body}]", namespace)
    made: Callable[..., Any] = namespace["subject"]
    return made


keywords = st.dictionaries(names | st.sampled_from(["return", "class", "other name"]), st.integers(), max_size=4)


@given(functions(), st.lists(st.integers(), max_size=5), keywords)
def test_binding_and_calling_does_what_python_does(
    fn: Callable[..., Any], args: list[int], kwargs: dict[str, int]
) -> None:
    bound = binder(fn)
    try:
        expected = fn(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError, match=f"^{re.escape(str(error))}$"):
            bound.bind(*args, **kwargs)
        return
    arguments = bound.bind(*args, **kwargs)
    assert list(arguments.items()) == expected
    assert bound.call(fn, arguments) == expected


def test_defaults_are_the_same_objects_and_shared() -> None:
    shared: list[int] = []

    def fn(a: Any, items: Any = shared, *, more: Any = shared) -> Any:
        items.append(a)
        return items, more

    bound = binder(fn)
    first, second = bound.bind(1), bound.bind(2)
    assert first["items"] is second["items"] is first["more"] is shared
    bound.call(fn, first)
    assert bound.call(fn, second) == ([1, 2], [1, 2])


@pytest.mark.parametrize("name", ["return_state", "wait_for", "run_key"])
@pytest.mark.parametrize("shape", ["def fn(a, {}): ...", "def fn(*, {}=1): ...", "def fn(**{}): ..."])
def test_reserved_names_are_refused(name: str, shape: str) -> None:
    namespace: dict[str, Any] = {}
    exec(shape.format(name), namespace)
    with pytest.raises(ReservedParameterError, match=name):
        Binder(namespace["fn"], name="fn", kind="task")


class Service:
    def method(self, a: int, b: int = 2) -> tuple[Any, ...]:
        return self, a, b

    @classmethod
    def of_class(cls, a: int) -> tuple[Any, ...]:
        return cls, a

    @staticmethod
    def static(a: int) -> tuple[Any, ...]:
        return (a,)

    def __call__(self, a: int, *, b: int) -> tuple[Any, ...]:
        return a, b


def test_methods_callable_objects_and_partials() -> None:
    service = Service()
    unbound = binder(Service.method)
    assert unbound.bind(service, 1) == {"self": service, "a": 1, "b": 2}
    assert unbound.call(Service.method, unbound.bind(service, 1)) == (service, 1, 2)
    skipped = binder(Service.method, skip_first=True)
    assert skipped.bind(1, b=3) == {"a": 1, "b": 3}
    assert skipped.call(service.method, skipped.bind(1)) == (service, 1, 2)
    assert [binder(fn).bind(1) for fn in (service.method, Service.of_class, Service.static)] == [
        {"a": 1, "b": 2},
        {"a": 1},
        {"a": 1},
    ]
    bound = binder(service)
    assert bound.call(service, bound.bind(1, b=2)) == (1, 2)
    partial = functools.partial(Service.method, service, b=9)
    bound = binder(partial)
    assert bound.bind(1) == {"a": 1, "b": 9}
    assert bound.call(partial, bound.bind(1)) == (service, 1, 9)


def test_a_wrapper_is_called_the_way_it_can_be() -> None:
    def inner(a: int, b: int = 2) -> tuple[int, int]:
        return a, b

    @functools.wraps(inner)
    def by_keyword(**kwargs: Any) -> Any:
        return inner(**kwargs)

    @functools.wraps(inner)
    def by_position(*args: Any) -> Any:
        return inner(*args)

    for wrapper in (by_keyword, by_position):
        bound = binder(wrapper)
        assert bound.call(wrapper, bound.bind(a=1)) == (1, 2)


def test_builtins() -> None:
    bound = binder(builtins.max)  # does not tell its signature
    assert bound.bind(1, 2, key=abs) == {"args": (1, 2), "kwargs": {"key": abs}}
    assert bound.call(builtins.max, bound.bind(1, -2, key=abs)) == -2
    bound = binder(builtins.divmod)
    assert bound.call(builtins.divmod, bound.bind(7, 2)) == (3, 1)


def test_lambdas_and_classes() -> None:
    fn = lambda a, *rest, **named: (a, rest, named)  # noqa: E731
    bound = binder(fn)
    assert bound.call(fn, bound.bind(1, 2, x=3)) == (1, (2,), {"x": 3})
    bound = binder(Item)
    assert bound.call(Item, bound.bind(n=5)) == Item(n=5)


def test_a_stored_traceback_does_not_show_the_generated_call() -> None:
    def fails() -> None:
        raise ValueError("mine")

    bound = binder(fails)
    with pytest.raises(ValueError, match="mine") as caught:
        bound.call(fails, bound.bind())
    assert "binder" in "".join(traceback.format_tb(caught.value.__traceback__))
    record = json.loads(encode_error(caught.value))
    assert 'raise ValueError("mine")' in record["traceback"]
    assert "binder" not in record["traceback"]


# --- validation ----------------------------------------------------------------------------


class Item(BaseModel):
    n: int = 0


class Colour(Enum):
    RED = "red"


@dataclass
class Client:
    host: str = "h"


class Extra(TypedDict, total=False):
    size: int


def sample(a: int, /, b: str = "x", *args: int, when: datetime = None, item: Item | None = None, **kw: float) -> None:  # type: ignore[assignment]  # noqa: RUF013
    """A default that does not fit its hint is the author's choice."""


def test_values_are_coerced_by_their_hints() -> None:
    bound, model = parameters(sample)
    values = model.validate(bound.bind("1", "b", "2", "3", when="2024-01-02T03:04:05", item={"n": "4"}, x="1.5"))
    assert values == {
        "a": 1,
        "b": "b",
        "args": (2, 3),
        "when": datetime(2024, 1, 2, 3, 4, 5),  # noqa: DTZ001
        "item": Item(n=4),
        "kw": {"x": 1.5},
    }
    assert list(values) == list(bound.bind(1))


def test_defaults_are_not_validated() -> None:
    bound, model = parameters(sample)
    arguments = bound.bind(1)
    assert model.validate(arguments) == {"a": 1, "b": "x", "args": (), "when": None, "item": None, "kw": {}}
    assert model.validate(bound.bind("1"))["when"] is None


def test_every_bad_field_is_told_with_its_path_and_a_preview() -> None:
    bound, model = parameters(sample)
    found = problems(model.validate, bound.bind("q" * 1000, 5, 1, "two", item={"n": "many"}, x="y"))
    assert found.keys() == {"a", "b", "args.1", "item.n", "kw.x"}
    message, shown = found["item.n"]
    assert message == "Input should be a valid integer, unable to parse string as an integer"
    assert shown == "'many'"
    assert len(found["a"][1]) <= 200


def test_containers_are_copied_and_objects_keep_their_identity() -> None:
    def fn(numbers: list[int], anything: Any, client: Service, mapping: dict[str, Any], plain: object) -> None: ...

    bound, model = parameters(fn)
    given_ = bound.bind([1], [2], Service(), {"a": 1}, Client())
    values = model.validate(given_)
    assert values["numbers"] == [1]
    assert values["numbers"] is not given_["numbers"]
    assert values["mapping"] is not given_["mapping"]
    for name in ("anything", "client", "plain"):
        assert values[name] is given_[name]
    assert problems(model.validate, bound.bind([1], 2, "no service", {}, 3)).keys() == {"client"}


def test_any_name_can_be_a_parameter() -> None:
    def fn(
        self: int, schema: int, json: int, copy: int, model_config: int, validate: int, p0: int, p1: int, _x: int = 0
    ) -> None: ...

    bound, model = parameters(fn)
    given_ = {name: str(i) for i, name in enumerate([each.name for each in bound.parameters])}
    assert model.validate(bound.bind(**given_)) == {name: int(text) for name, text in given_.items()}
    assert model.schema().model_dump()["properties"].keys() == given_.keys() - {"self"}


def test_string_hints_find_closures_and_the_namespace_given() -> None:
    class Local(BaseModel):
        n: int

    def closed(x: list[Local]) -> Any:
        return Local

    def not_closed(x: dict[str, Local]) -> None: ...

    bound, model = parameters(closed)
    assert model.validate(bound.bind([{"n": 1}])) == {"x": [Local(n=1)]}
    bound, model = parameters(not_closed, namespace=locals())
    assert model.validate(bound.bind({"a": {"n": 1}})) == {"x": {"a": Local(n=1)}}
    bound, model = parameters(not_closed)
    ((message, shown),) = problems(model.validate, bound.bind({})).values()
    assert "cannot be resolved (name 'Local' is not defined)" in message
    assert shown == "'dict[str, Local]'"


def test_every_hint_that_cannot_be_resolved_is_told() -> None:
    def fn(a: int, b: Missing, c: list[AlsoMissing]) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    bound, model = parameters(fn)
    assert problems(model.validate, bound.bind(1, 2, 3)).keys() == {"b", "c"}
    assert problems(model.schema).keys() == {"b", "c"}


def test_a_model_that_refers_to_nothing_is_told() -> None:
    class Open(BaseModel):
        other: Nowhere  # type: ignore[name-defined]  # noqa: F821

    def fn(a: int, b: Open) -> Any:
        return Open

    bound, model = parameters(fn)
    assert problems(model.validate, bound.bind("1", {})).keys() == {"b"}


def test_a_hint_that_is_no_type_allows_anything() -> None:
    def fn(a: int, b: "a remark") -> None: ...  # type: ignore[valid-type]  # noqa: F722

    fn.__annotations__["b"] = 5
    bound, model = parameters(fn)
    assert model.validate(bound.bind("1", [2])) == {"a": 1, "b": [2]}
    assert model.schema().model_dump()["properties"]["b"] == {"title": "b", "position": 1}


def test_hints_of_many_kinds() -> None:
    def fn(
        a: Annotated[int, Field(gt=0)],
        b: Optional[int],  # noqa: UP045
        c: Literal["x", "y"],
        d: Colour,
        e: UUID,
        f: None,
        g: Callable[[int], int],
        **kw: Unpack[Extra],
    ) -> None: ...

    bound, model = parameters(fn)
    values = model.validate(bound.bind("1", None, "x", "red", "0" * 32, None, abs, size="3"))
    assert values == {
        "a": 1, "b": None, "c": "x", "d": Colour.RED, "e": UUID(int=0), "f": None, "g": abs, "kw": {"size": 3},
    }  # fmt: skip
    assert problems(model.validate, bound.bind(0, "x", "z", "blue", "no", 1, 2, size="many")).keys() == {
        "a", "b", "c", "d", "e", "f", "g", "kw.size",
    }  # fmt: skip


def test_secrets_are_in_no_message() -> None:
    class Login(BaseModel):
        user: str
        token: SecretStr
        port: int

    def fn(login: Login, key: SecretStr, count: int) -> Any:
        return Login

    bound, model = parameters(fn)
    arguments = bound.bind({"token": "hunter2", "port": "hunter2"}, ["hunter2"], "not secret")
    with pytest.raises(ParameterValidationError) as caught:
        model.validate(arguments)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in encode_error(caught.value)
    found = {path: shown for path, _, shown in caught.value.problems}
    assert found == {
        "login.user": "nothing",
        "login.port": "'**********'",
        "key": "'**********'",
        "count": "'not secret'",
    }


exact_values: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (str, st.text()),
    (float, st.floats(allow_nan=False)),
    (bool, st.booleans()),
    (bytes, st.binary()),
    (None, st.none()),
    (int | str | None, st.integers() | st.text() | st.none()),
    (Any, st.builds(object)),
]


@pytest.mark.parametrize(("hint", "values"), exact_values, ids=[str(hint) for hint, _ in exact_values])
@given(data=st.data())
def test_a_value_exactly_of_its_plain_hint_passes_untouched(
    hint: Any, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    def fn(x: Any, *args: Any, **kw: Any) -> None: ...

    fn.__annotations__ = {"x": hint, "args": hint, "kw": hint}
    bound, model = parameters(fn)
    arguments = bound.bind(data.draw(values), data.draw(values), key=data.draw(values))
    assert model.validate(arguments) is arguments
    # What the short way lets through unchanged, pydantic leaves as it is too.
    assert model.validate_keywords({"x": arguments["x"], "args": list(arguments["args"]), "kw": arguments["kw"]}) == (
        arguments
    )


def test_plain_hints_need_no_pydantic() -> None:
    code = (
        "import sys\n"
        "from asyncflow.parameters import Binder, ParameterModel, encode_parameters\n"
        "def fn(a: int, b: str | None = None, *args: float, c, **kw: bytes): ...\n"
        "bound = Binder(fn, name='fn', kind='flow')\n"
        "model = ParameterModel(fn, bound, flow='fn')\n"
        "values = model.validate(bound.bind(1, 'x', 2.5, c=[object], k=b'y'))\n"
        "assert encode_parameters(values, flow='fn', limit=1000)\n"
        "print('pydantic' in sys.modules)\n"
        "assert model.validate(bound.bind('1', c=2))['a'] == 1\n"
        "print('pydantic' in sys.modules)\n"
    )
    path = str(Path(__file__).parent.parent / "src")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["False", "True"], "")


def test_a_validator_that_raises_something_else_is_heard() -> None:
    def check(value: int) -> int:
        raise ZeroDivisionError(value)

    from pydantic import AfterValidator

    def fn(x: int) -> None: ...

    fn.__annotations__["x"] = Annotated[int, AfterValidator(check)]
    bound, model = parameters(fn)
    with pytest.raises(ZeroDivisionError):
        model.validate(bound.bind(1))


def test_values_from_outside_come_by_name() -> None:
    bound, model = parameters(sample)
    values = model.validate_keywords({"a": "1", "args": ["2"], "x": "1.5", "kw": {"y": 2}})
    assert values == {**bound.bind(1, "x", 2), "kw": {"x": 1.5, "y": 2.0}}
    assert problems(model.validate_keywords, {"b": 3, "x": "y"}).keys() == {"a", "b", "kw.x"}
    assert problems(model.validate_keywords, {"a": 1, "x": 1, "kw": {"x": 2}}).keys() == {"kw.x"}

    def fn(a: int, b: int) -> None: ...

    _, model = parameters(fn)
    found = problems(model.validate_keywords, {"a": "x", "c": [1]})
    assert found.keys() == {"a", "b", "c"}
    assert found["b"] == ("Missing, and it has no default", "nothing")
    assert found["c"] == ("No such parameter (there are: a, b)", "[1]")


def test_hints_read_recorded_parameters_back() -> None:
    bound, model = parameters(sample)
    values = model.validate(bound.bind(1, "b", 2**70, item={"n": 2}, x=1))
    recorded = json.loads(encode_parameters(values, flow="fn", limit=0))
    del values["when"], recorded["when"]  # its default does not fit its hint
    assert {name: decode(json.dumps(part), model.hints[name]) for name, part in recorded.items()} == values


# --- schema --------------------------------------------------------------------------------


def test_the_schema_describes_each_parameter() -> None:
    def fn(self: Any, item: Item, items: list[Item], n: int = 5, client: Service | None = None, raw: Any = abs) -> None:
        """Do it."""

    _, model = parameters(fn)
    schema = model.schema()
    assert isinstance(schema, BaseModel)
    dumped = schema.model_dump()
    assert dumped["title"] == "Parameters"
    assert dumped["type"] == "object"
    assert dumped["required"] == ["item", "items"]
    assert dumped["properties"] == {
        "item": {"$ref": "#/definitions/Item", "title": "item", "position": 1},
        "items": {"items": {"$ref": "#/definitions/Item"}, "type": "array", "title": "items", "position": 2},
        "n": {"type": "integer", "title": "n", "position": 3, "default": 5},
        "client": {"anyOf": [{}, {"type": "null"}], "title": "client", "position": 4, "default": None},
        "raw": {"title": "raw", "position": 5},
    }
    assert dumped["definitions"]["Item"]["properties"]["n"]["type"] == "integer"
    json.dumps(dumped)


GOOGLE = """Load orders.

    Args:
        first (int): The first
            of them.
        *rest: The others.

        named: Has a: colon.

    Returns:
        first: not this.
    """
NUMPY = """Load orders.

    Parameters
    ----------
    first : int
        The first
        of them.
    *rest
        The others.
    named : dict, optional
        Has a: colon.

    Returns
    -------
    first
        not this.
    """
REST = """Load orders.

    :param first: The first
        of them.
    :param int rest: The others.
    :param named: Has a: colon.
    :returns: not this.
    """


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_descriptions_come_from_the_docstring(docstring: str) -> None:
    def fn(first: int, *rest: int, named: int = 0, silent: int = 0) -> None: ...

    fn.__doc__ = docstring
    _, model = parameters(fn)
    found = {name: about.get("description") for name, about in model.schema().model_dump()["properties"].items()}
    assert found == {"first": "The first of them.", "rest": "The others.", "named": "Has a: colon.", "silent": None}


@given(st.text(st.sampled_from("Args:\n -Parameters:param x*(),é")))
def test_no_docstring_breaks_the_schema(docstring: str) -> None:
    def fn(x: int) -> None: ...

    fn.__doc__ = docstring
    _, model = parameters(fn)
    assert model.schema().model_dump()["required"] == ["x"]


# --- recording -----------------------------------------------------------------------------


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.lists(st.booleans())))
def test_parameters_are_recorded_by_name(arguments: dict[str, Any]) -> None:
    assert decode(encode_parameters(arguments, flow="fn", limit=0)) == arguments


def test_what_is_not_json_is_recorded_as_a_preview_and_nothing_else_looks_like_it() -> None:
    arguments = {
        "client": Service(),
        "token": SecretStr("hunter2"),
        "rows": [1, float("nan")],
        "lookalike": {PREVIEW_KEY: "text"},
        "inside": {"a": {PREVIEW_KEY: "text"}},
        "n": 1,
    }
    assert json.loads(encode_parameters(arguments, flow="fn", limit=0)) == {
        "client": {PREVIEW_KEY: f"<{__name__}.Service>"},
        "token": {PREVIEW_KEY: "SecretStr('**********')"},
        "rows": {PREVIEW_KEY: "[1, nan]"},
        "lookalike": {PREVIEW_KEY: "{'__preview__': 'text'}"},
        "inside": {"a": {PREVIEW_KEY: "text"}},
        "n": 1,
    }


@pytest.mark.parametrize("letter", ["x", "é", "\N{PILE OF POO}"])
def test_the_limit_counts_bytes_and_names_the_biggest(letter: str) -> None:
    arguments = {"small": 1, "big": letter * 100}
    size = len(encode_parameters(arguments, flow="fn", limit=0).encode())
    assert encode_parameters(arguments, flow="fn", limit=size)
    with pytest.raises(ParametersTooLargeError) as caught:
        encode_parameters(arguments, flow="my-flow", limit=size - 1)
    error = caught.value
    assert (error.flow, error.size, error.limit, error.biggest) == ("my-flow", size, size - 1, "big")
    assert error.biggest_size == len(letter.encode()) * 100 + 2
