"""`@flow` and `@task` on everything that can be called, and copies with other options."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest

from asyncflow import Flow, FlowRun, Task, TaskRun, flow, get_client, runtime, task
from asyncflow.exceptions import NotAFunctionError, OptionError, ReservedParameterError, SyncCallOnEventLoopError


async def newest() -> FlowRun:
    return (await get_client().read_flow_runs(limit=1))[0]


async def newest_task() -> TaskRun:
    return (await get_client().read_task_runs(limit=1))[0]


class Shop:
    """Everything a class can hold."""

    def __init__(self, name: str) -> None:
        self.name = name

    @flow
    async def open(self, day: int) -> str:
        """Open the shop."""
        return f"{self.name} opens on {await self.double(day)}"

    @task
    async def double(self, x: int) -> int:
        return 2 * x

    @task
    def shout(self, times: int = 1) -> str:
        return self.name.upper() * times

    @flow
    def sync_open(self, day: int) -> str:
        return f"{self.shout()} {day}"

    @task
    @classmethod
    async def kind(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @task
    @staticmethod
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @staticmethod
    @task
    async def add_too(a: int, b: int = 1) -> int:
        return a + b

    @classmethod
    @task
    async def kind_too(cls, x: int) -> str:
        return f"{cls.__name__} {x}"


class Corner(Shop):
    pass


async def test_a_method_is_bound_to_its_object() -> None:
    shop = Corner("Ada")
    assert await shop.open(2) == "Ada opens on 4"
    run = await newest()
    assert (run.flow_name, run.parameters) == ("open", {"day": 2})
    assert (await newest_task()).task_name == "double"
    assert (await newest_task()).task_key.endswith("Shop.double")


async def test_methods_of_two_objects_do_not_mix() -> None:
    first, second = Shop("a"), Shop("b")
    call_first, call_second = first.open, second.open
    assert await call_first(1) == "a opens on 2"
    assert await call_second(1) == "b opens on 2"
    assert await first.shout.acall(2) == "AA"
    with pytest.raises(SyncCallOnEventLoopError):
        first.shout()


async def test_a_method_read_from_the_class_takes_the_object() -> None:
    assert await Shop.open(Shop("c"), 3) == "c opens on 6"


def test_sync_methods_without_a_loop() -> None:
    assert Shop("x").sync_open(5) == "X 5"
    assert Shop("x").shout(times=2) == "XX"


async def test_class_methods_and_static_methods_in_either_order() -> None:
    assert await Corner.kind(1) == await Corner("x").kind(1) == "Corner 1"
    assert await Corner.kind_too(1) == await Corner("x").kind_too(1) == "Corner 1"
    assert await Shop.add(1) == await Shop("x").add(1, b=1) == 2
    assert await Shop.add_too(1) == await Shop("x").add_too(1, b=1) == 2
    assert await Corner.kind.acall(1) == "Corner 1"
    assert (await Shop.add(1, return_state=True)).result() == 2


async def test_a_method_that_does_not_match_names_the_method() -> None:
    with pytest.raises(TypeError, match=r"Shop\.open\(\) missing 1 required positional argument: 'day'"):
        Shop("x").open()  # type: ignore[call-overload]


async def test_hooks_of_a_method_get_what_was_called() -> None:
    given: list[Any] = []

    class Thing:
        @task(on_completion=[lambda declared, *_: given.append(declared)])
        async def work(self) -> None: ...

    thing = Thing()
    await thing.work()
    assert isinstance(given[0], Task)
    assert given[0].name == "work"
    await given[0]()  # bound as it was


async def test_callables_work_in_either_colour() -> None:
    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def __call__(self, x: int) -> int:
            return x + self.n

    class AsyncAdder(Adder):
        async def __call__(self, x: int) -> int:  # type: ignore[override]
            await anyio.lowlevel.checkpoint()
            return x + self.n

    add, add_async = task(Adder(2)), flow(AsyncAdder(3))
    assert await add.acall(1) == 3
    assert await add_async(1) == 4
    assert (await newest()).flow_name == "AsyncAdder"
    assert (await newest_task()).task_name == "Adder"


async def test_partials_keep_the_colour_and_the_name_of_their_function() -> None:
    async def add(a: int, b: int, *, c: int = 0) -> int:
        return a + b + c

    def sync_add(a: int, b: int) -> int:
        return a + b

    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    add_one = flow(functools.partial(add, 1, c=10))
    assert await add_one(2) == 13
    assert await add_one(2, c=20) == 23
    assert (await newest()).flow_name == "add"
    assert add_one.__name__ == "add"
    assert await task(functools.partial(sync_add, 1)).acall(2) == 3
    assert await task(functools.partial(functools.partial(add, 1), 2))() == 3
    assert await task(functools.partial(Shop("x").add.fn, 1))(2) == 3
    assert await task(functools.partial(Adder(), 1))(2) == 3


async def test_lambdas_builtins_and_wrapped_functions() -> None:
    def wrapper(fn: Any) -> Any:
        @functools.wraps(fn)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            return [await fn(*args, **kwargs)]

        return inner

    @task
    @wrapper
    async def wrapped(a: int, b: int = 2) -> int:
        return a + b

    assert await task(lambda x: x + 1).acall(1) == 2
    assert await task(len).acall([1, 2]) == 2
    assert await task(max, name="biggest").acall(1, 5, 3) == 5
    assert (await newest_task()).task_name == "biggest"
    assert await wrapped(1) == [3]
    with pytest.raises(TypeError, match="missing 1 required"):
        wrapped()


async def test_a_class_is_a_function_that_makes_objects() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    make = task(Point, persist_result=False)
    assert (await make.acall(3)).x == 3


def test_a_declaration_looks_like_its_function() -> None:
    @flow(version="3")
    async def load_data(a: int, b: str = "x") -> bool:
        """Load it."""
        return True

    assert (load_data.__name__, load_data.__doc__) == ("load_data", "Load it.")
    assert getattr(load_data, "__qualname__", "").endswith("load_data")
    assert load_data.__module__ == __name__
    assert list(inspect.signature(load_data).parameters) == ["a", "b"]
    assert load_data.__wrapped__ is load_data.fn  # type: ignore[attr-defined]
    assert (load_data.name, load_data.version, load_data.description) == ("load-data", "3", "Load it.")
    assert repr(load_data) == "<flow 'load-data'>"
    assert type(load_data) is Flow


async def test_the_undecorated_function_records_nothing() -> None:
    @flow
    async def main(x: int) -> int:
        assert runtime.flow_run.id is None
        return x

    assert await main.fn(1) == 1
    assert await get_client().read_flow_runs() == []


@pytest.mark.parametrize("declare", [flow, task])
def test_the_decorator_with_and_without_parentheses(declare: Any) -> None:
    def body() -> int:
        return 1

    for declared in (declare(body), declare()(body), declare(name="named")(body), declare(body, name="named")):
        assert declared() == 1
        assert declared.fn is body


# --- options --------------------------------------------------------------------------------------


async def test_with_options_makes_a_copy_and_keeps_the_rest() -> None:
    calls = 0

    @task(name="first", retries=1, tags=["a"], version="1")
    async def part() -> list[str]:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise ValueError
        return runtime.task_run.tags

    other = part.with_options(retries=2, tags=["b"])
    assert await other() == ["b"]
    assert (other.name, other.version) == ("first", "1")
    with pytest.raises(ValueError):  # noqa: PT011  # the original still has one retry
        await part()
    assert calls == 5
    assert other is not part
    assert part.with_options(name="x").with_options(retries=0).name == "x"


async def test_with_options_of_a_method_stays_bound() -> None:
    shop = Shop("bound")
    quick = shop.open.with_options(name="quick")
    assert await quick(1) == "bound opens on 2"
    assert (await newest()).flow_name == "quick"
    assert await Corner.kind.with_options(retries=1)(2) == "Corner 2"
    assert await Shop.open.with_options(name="unbound")(shop, 1) == "bound opens on 2"
    assert shop.open.name == "open"


@pytest.mark.parametrize("declare", [flow, task])
def test_an_option_that_does_not_exist_is_a_type_error(declare: Any) -> None:
    with pytest.raises(TypeError, match="unexpected option 'retrys'"):
        declare(retrys=1)(print)
    with pytest.raises(TypeError, match="unexpected option 'retrys'"):
        declare(lambda: None).with_options(retrys=1)


@pytest.mark.parametrize(
    ("declare", "option"),
    [
        (flow, {"tags": ["x"]}),
        (flow, {"task_run_name": "x"}),
        (flow, {"run_name": "x"}),
        (task, {"flow_run_name": "x"}),
        (task, {"run_name": "x"}),
        (task, {"validate_parameters": False}),
    ],
)
def test_an_option_of_the_other_kind_is_a_type_error(declare: Any, option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"unexpected option {next(iter(option))!r}"):
        declare(**option)(lambda: None)


@pytest.mark.parametrize(
    "option",
    [
        {"timeout_seconds": -1},
        {"timeout_seconds": "1"},
        {"name": 3},
        {"version": 3},
        {"description": 3},
        {"durability": "never"},
        {"retries": None},
    ],
    ids=str,
)
def test_an_option_with_a_bad_value_is_refused_at_declaration(option: dict[str, Any]) -> None:
    (name,) = option
    for declare in (flow, task):
        with pytest.raises(OptionError, match=f"{name}={option[name]!r}: expected"):
            declare(**option)(lambda: None)


@pytest.mark.parametrize("value", [3, "text", [1]])
def test_what_cannot_be_called_is_refused(value: Any) -> None:
    with pytest.raises(NotAFunctionError, match="decorates a function"):
        flow(value)
    with pytest.raises(NotAFunctionError):
        task(name="x")(value)


@pytest.mark.parametrize("name", ["return_state", "wait_for", "run_key"])
def test_a_parameter_with_a_name_of_ours_is_refused(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def body({name}): ...", namespace)
    for declare in (flow, task):
        with pytest.raises(ReservedParameterError, match=f"rename it, for example to '{name}_'"):
            declare(namespace["body"])


async def test_parameters_may_have_any_other_name() -> None:
    @flow
    async def main(self: int, fn: int, cls: int, args: int, kwargs: int, home: int, parent: int) -> list[int]:
        return [self, fn, cls, args, kwargs, home, parent]

    assert await main(1, 2, 3, args=4, kwargs=5, home=6, parent=7) == [1, 2, 3, 4, 5, 6, 7]
    assert await main(self=1, fn=2, cls=3, args=4, kwargs=5, home=6, parent=7) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_flow_declared_in_a_function_may_use_its_classes_as_hints() -> None:
    class Local:
        pass

    @flow(persist_result=False)
    async def main(x: Local, y: int | None = None) -> Local:
        return x

    local = Local()
    assert await main(local) is local


async def test_one_declaration_is_called_from_many_threads_and_loops() -> None:
    @task
    async def own_id() -> UUID | None:
        return runtime.task_run.id

    found: list[UUID | None] = []
    threads = [threading.Thread(target=lambda: found.append(anyio.run(own_id))) for _ in range(8)]

    def run_all() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    await anyio.to_thread.run_sync(run_all)
    assert len(set(found)) == 8
    for run_id in found:
        assert run_id is not None
        assert (await get_client().read_task_run(run_id)).state.is_completed()
