"""Submitting: from where, what, with what arguments, under what; and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pydantic
import pytest

from asyncflow import (
    FlowRunFuture,
    Runtime,
    State,
    TaskFuture,
    TaskRun,
    allow_failure,
    detached,
    flow,
    get_client,
    quote,
    runtime,
    task,
)
from asyncflow._backend.detect import host_here
from asyncflow.clock import SystemClock
from asyncflow.exceptions import (
    NestingTooDeepError,
    NoRuntimeError,
    ParameterValidationError,
    RunCancelledError,
    RunEndedError,
    UpstreamFailedError,
    WaitCycleError,
    WaitTimeoutError,
)
from asyncflow.futures import RunFuture
from tests.conftest import BACKENDS, Backend
from tests.sync_flows import everywhere, in_sync_flow

LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be stopped."""
label: ContextVar[str] = ContextVar("label", default="")


class Box:
    """Something that asyncflow does not look into: for futures that a body is to handle itself."""

    def __init__(self) -> None:
        self.futures: dict[str, RunFuture[Any]] = {}
        self.ready = anyio.Event()

    def __getitem__(self, name: str) -> RunFuture[Any]:
        return self.futures[name]


@task
async def give(value: Any = None) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


@task
def give_sync(value: Any = None) -> Any:
    return value


@flow
async def nested(value: Any = None) -> Any:
    return await give(value)


@flow
def nested_sync(value: Any = None) -> Any:
    return give_sync(value)


KINDS: list[Any] = [give, give_sync, nested, nested_sync]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["async task", "sync task", "async flow", "sync flow"])


@task
async def fail(text: str = "because") -> None:
    raise ValueError(text)


@task
async def sleep(seconds: float = LONG) -> str:
    await anyio.sleep(seconds)
    return "slept"


async def task_runs(name: str) -> list[TaskRun]:
    return [each for each in await get_client().read_task_runs(limit=20_000) if each.task_name == name]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = caplog.get_records("call")
    return [each.getMessage() for each in records if each.name.startswith("asyncflow") and each.levelno >= 30]


# --- from where, and what -------------------------------------------------------------------------


@pytest.mark.parametrize("submitter", ["async flow", "sync flow", "async task", "sync task"])
async def test_every_kind_is_submitted_from_every_kind(submitter: str) -> None:
    async def in_async() -> Any:
        return [await kind.submit(7) for kind in KINDS], runtime.flow_run.id, runtime.task_run.id

    def in_sync() -> Any:
        return [kind.submit(7).result() for kind in KINDS], runtime.flow_run.id, runtime.task_run.id

    @flow
    async def main() -> Any:
        body: Any = in_async if submitter.startswith("async") else in_sync
        declared: Any = flow(body) if submitter.endswith("flow") else task(body)
        return await declared.acall()

    values, flow_id, task_id = await main()
    assert values == [7] * 4
    above = task_id if submitter.endswith("task") else None
    for kind in KINDS:  # of a flow, the task run that stands for it
        records = await task_runs(kind.name)
        assert (flow_id, above) in [(record.flow_run_id, record.parent_task_run_id) for record in records]
        assert all(record.state.is_completed() for record in records)


@everywhere
def test_every_kind_is_submitted_from_sync_flows(place: Backend | None) -> None:
    def main() -> Any:
        return [kind.submit([kind.submit(1), kind.submit(2)]).result() for kind in KINDS]

    assert in_sync_flow(place, main) == [[1, 2]] * 4


async def test_async_bodies_run_on_the_loop_of_their_flow_and_sync_ones_in_threads() -> None:
    clock = SystemClock()
    seen: dict[str, Any] = {}

    @task
    async def on_the_loop(name: str) -> None:
        seen[name] = host_here(clock)

    @task
    def in_a_thread() -> None:
        seen["thread"] = threading.current_thread()
        on_the_loop.submit("from a thread").result()

    @flow
    async def inner() -> None:
        await on_the_loop.submit("nested")

    @flow
    async def main() -> None:
        seen["flow"] = host_here(clock)
        await on_the_loop.submit("submitted")
        await in_a_thread.submit()
        await inner.submit()

    await main()
    assert seen["submitted"] is seen["nested"] is seen["from a thread"] is seen["flow"]
    assert seen["thread"] is not threading.current_thread()
    assert seen["thread"].daemon


async def test_context_variables_are_copied_in_and_do_not_come_back() -> None:
    seen: list[str] = []

    @task
    async def look(name: str) -> None:
        seen.append(label.get())
        label.set(name)
        seen.append(label.get())

    @task
    def look_sync(name: str) -> None:
        seen.append(label.get())
        label.set(name)

    @flow
    async def main() -> None:
        label.set("at the submit")
        futures: list[RunFuture[Any]] = [look.submit("inside")]
        label.set("later")
        futures.append(look_sync.submit("in a thread"))
        label.set("last")
        for future in futures:
            await future
        assert label.get() == "last"

    await main()
    assert sorted(seen) == ["at the submit", "inside", "later"]


async def test_what_a_submit_refuses_at_once() -> None:
    @task
    async def items() -> Any:
        yield 1

    @flow
    async def main() -> None:
        with pytest.raises(TypeError, match=r"future\.state"):
            give.submit(1, return_state=True)
        with pytest.raises(TypeError, match="argument"):
            give.submit(1, 2)
        with pytest.raises(TypeError, match=r"items\.stream"):
            items.submit()

    await main()
    assert await task_runs("give") == []


async def test_methods_are_submitted_too() -> None:
    class Scraper:
        def __init__(self, base: int) -> None:
            self.base = base

        @task(persist_result=False)
        async def add(self, number: int) -> int:
            return self.base + number

        @task(persist_result=False)
        @staticmethod
        def twice(number: int) -> int:
            return number * 2

    @flow
    async def main() -> Any:
        scraper = Scraper(10)
        first = scraper.add.submit(1)
        return await Scraper.twice.submit(first), await scraper.add.map([1, 2])

    assert await main() == (22, [11, 12])


async def test_a_retried_submitted_run_has_its_inputs_in_each_attempt() -> None:
    seen: list[Any] = []

    @task(retries=2)
    async def body(values: Any) -> Any:
        seen.append(values)
        if len(seen) < 3:
            raise ValueError("again")
        return values

    @flow
    async def main() -> Any:
        return await body.submit([give.submit(1), give.submit(2)])

    assert await main() == [1, 2]
    assert seen == [[1, 2]] * 3


# --- futures inside the arguments -----------------------------------------------------------------


@dataclass
class Point:
    x: Any
    inside: list[Any] = field(default_factory=list[Any])


@dataclass(frozen=True)
class FrozenPoint:
    x: Any


class Named(NamedTuple):
    first: Any
    second: Any


class Model(pydantic.BaseModel):
    x: Any = None
    inside: dict[str, Any] = {}


CONTAINERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "itself": (lambda f: f, lambda v: v),
    "list": (lambda f: [0, f], lambda v: v[1]),
    "tuple": (lambda f: (f, 0), lambda v: v[0]),
    "set": (lambda f: {f, 0}, lambda v: max(v)),
    "frozen set": (lambda f: frozenset({f}), lambda v: max(v)),
    "dict": (lambda f: {"a": f}, lambda v: v["a"]),
    "key of a dict": (lambda f: {f: 1}, lambda v: next(iter(v))),
    "dataclass": (Point, lambda v: v.x),
    "frozen dataclass": (FrozenPoint, lambda v: v.x),
    "named tuple": (lambda f: Named(0, f), lambda v: v.second),
    "pydantic model": (lambda f: Model(x=f), lambda v: v.x),
    "nested": (
        lambda f: [{"a": (Point(0, [Model(inside={"b": [f]})]),)}],
        lambda v: v[0]["a"][0].inside[0].inside["b"][0],
    ),
    "twice": (lambda f: [f, [f]], lambda v: v[0] if v[0] is v[1][0] else None),
}


@pytest.mark.parametrize("how", ["submit", "call", "acall of sync", "keyword"])
async def test_futures_anywhere_in_the_arguments_are_replaced_by_their_values(how: str) -> None:
    got: list[Any] = []

    @task(persist_result=False)
    async def body(value: Any) -> None:
        got.append(value)

    @task(persist_result=False)
    def body_sync(value: Any) -> None:
        got.append(value)

    async def pass_on(given: Any) -> None:
        if how == "submit":
            await body.submit(given)
            await body_sync.submit(given)
        elif how == "call":
            await body(given)
        elif how == "keyword":
            await body.submit(value=given)
        else:
            await body_sync.acall(given)

    @flow
    async def main() -> None:
        for name, (put, get) in CONTAINERS.items():
            got.clear()
            future = give.submit(41)
            given = put(future)
            await pass_on(given)
            assert got, name
            assert [get(value) for value in got] == [41] * len(got), name
            if name == "list":
                assert given == [0, future]  # the caller's own objects are never written to

    await main()


@everywhere
def test_futures_in_the_arguments_of_sync_code(place: Backend | None) -> None:
    def main() -> Any:
        future = give.submit(1)
        other = give_sync.submit([future])
        return give_sync({"called": other}), give_sync.submit(Point(other)).result(), nested_sync([future, other])

    called, submitted, flowed = in_sync_flow(place, main)
    assert (called, submitted, flowed) == ({"called": [1]}, Point([1]), [1, [1]])


async def test_a_future_of_another_flow_or_of_one_that_has_ended_is_an_argument_too() -> None:
    kept: list[Callable[[], RunFuture[Any]]] = []

    @flow
    async def first() -> None:
        future = give.submit("from the first")
        kept.append(lambda: future)

    await first()
    assert await give(kept[0]()) == "from the first"
    assert await nested([kept[0]()]) == ["from the first"]


async def test_quoted_futures_are_passed_as_they_are() -> None:
    @task(persist_result=False)
    async def body(future: Any, inside: list[Any]) -> Any:
        assert isinstance(future, TaskFuture)
        assert inside == [future]
        return await future

    @flow
    async def main() -> Any:
        slow = sleep.submit(0.01)
        submitted = body.submit(quote(slow), quote([slow]))
        return await submitted, await body(quote(slow), quote([slow]))

    assert await main() == ("slept", "slept")


async def test_flow_parameters_are_resolved_before_they_are_validated() -> None:
    @flow
    async def declared(x: int, points: list[int]) -> Any:
        return x, points

    @flow
    def declared_sync(x: int, points: list[int]) -> Any:
        return x, points

    # To type checkers, futures fit only where a submit has one as its first argument.
    typed: Any = declared
    typed_sync: Any = declared_sync

    @flow
    async def main() -> None:
        text, bad = give.submit("3"), give.submit("three")
        expected = (3, [3, 4])
        assert await typed(text, [text, 4]) == expected
        assert await typed.submit(text, [text, 4]) == expected
        assert await typed_sync.acall(text, [text, 4]) == expected
        state = await typed(bad, [], return_state=True)
        assert state.is_failed()
        with pytest.raises(ParameterValidationError, match="x"):
            state.result()
        future = typed.submit(1, [bad])
        with pytest.raises(ParameterValidationError, match=r"points"):
            await future
        assert future.state.is_failed()

    await main()
    client = get_client()
    recorded = [run.parameters for run in await client.read_flow_runs(flow_name="declared")]
    assert recorded.count({"x": 3, "points": [3, 4]}) == 2
    assert {"x": "three", "points": []} in recorded


# --- wait_for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["submit", "call", "map"])
async def test_wait_for_waits_and_passes_nothing(how: str) -> None:
    order: list[str] = []

    @task
    async def first() -> None:
        await anyio.sleep(0.01)
        order.append("first")

    @task
    async def second(name: str = "second") -> None:
        order.append(name)

    @flow
    async def main() -> None:
        upstream = first.submit()
        if how == "submit":
            await second.submit(wait_for=[upstream])
        elif how == "call":
            await second(wait_for=upstream)
        else:
            await second.map(["second"], wait_for={"any": [upstream]})

    await main()
    assert order == ["first", "second"]


@everywhere
def test_wait_for_in_sync_code(place: Backend | None) -> None:
    order: list[str] = []

    @task
    async def first() -> None:
        await anyio.sleep(0.01)
        order.append("first")

    @task
    def second() -> None:
        order.append("second")

    def main() -> Any:
        second.submit(wait_for=[first.submit()]).result()
        second(wait_for=[first.submit()])
        state = second(wait_for=[fail.submit()], return_state=True)
        return state.name, state.type.value

    assert in_sync_flow(place, main) == ("NotReady", "FAILED")
    assert order == ["first", "second"] * 2


async def test_wait_for_a_failed_one_is_not_ready_unless_that_is_allowed() -> None:
    @flow
    async def main() -> list[str]:
        failed = fail.submit()
        refused = give.submit(1, wait_for=[failed])
        allowed = give.submit(2, wait_for=[allow_failure(failed)])
        await refused.wait_async()
        assert await allowed == 2
        state = await give(3, wait_for=[failed], return_state=True)
        return [refused.state.name, state.name]

    assert await main() == ["NotReady"] * 2


# --- NotReady -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["submit", "call", "return_state"])
async def test_a_failed_upstream_keeps_its_downstream_from_beginning(how: str) -> None:
    ran: list[int] = []

    @task(retries=3)
    async def body(_: Any) -> None:
        ran.append(1)

    @flow
    async def main() -> State[Any]:
        upstream = fail.submit("because")
        future = None
        if how == "submit":
            future = body.submit([upstream])
            with pytest.raises(UpstreamFailedError, match="was not begun") as caught:
                await future
            state = future.state
        elif how == "call":
            with pytest.raises(UpstreamFailedError, match="was not begun") as caught:
                await body([upstream])
            return upstream.state
        else:
            state = await body({"a": upstream}, return_state=True)
            with pytest.raises(UpstreamFailedError) as caught:
                state.result()
        assert caught.value.upstream == upstream.name
        assert isinstance(caught.value.__cause__, ValueError)
        assert caught.value.state == upstream.state
        return Kept(state)  # type: ignore[return-value]

    class Kept:
        def __init__(self, state: State[Any]) -> None:
            self.state = state

    state = await main(return_state=True)
    assert state.is_completed() == (how != "call"), state
    (run,) = await task_runs("body")
    assert (run.state.type.value, run.state.name, run.run_count, run.start_time) == ("FAILED", "NotReady", 0, None)
    assert "upstream run 'fail-" in (run.state.message or "")
    states = [each.name for each in await get_client().read_states(run.id)]
    assert states == ["Pending", "NotReady"]
    assert ran == []


async def test_not_ready_goes_on_down_the_line() -> None:
    ran: list[int] = []

    @task
    async def body(_: Any) -> None:
        ran.append(1)

    @flow
    async def main() -> None:
        root = fail.submit("the root")
        first = body.submit(root)
        second = body.submit([first])
        third = nested.submit(second)
        with pytest.raises(UpstreamFailedError) as caught:
            await third
        causes: list[BaseException] = []
        error: BaseException | None = caught.value
        while error is not None:
            causes.append(error)
            error = error.__cause__
        assert [type(each) for each in causes] == [UpstreamFailedError] * 3 + [ValueError]
        assert [each.state.name for each in (first, second, third)] == ["NotReady"] * 3

    await main()
    assert ran == []


async def test_a_cancelled_upstream() -> None:
    @flow
    async def main() -> None:
        upstream = sleep.submit()
        downstream = give.submit(upstream)
        allowed = give_sync.with_options(persist_result=False).submit(allow_failure([upstream, 1]))
        await anyio.wait_all_tasks_blocked()
        upstream.cancel()
        with pytest.raises(UpstreamFailedError) as caught:
            await downstream
        assert isinstance(caught.value.__cause__, RunCancelledError)
        assert downstream.state.name == "NotReady"
        assert not downstream.state.is_cancelled()
        error, one = await allowed
        assert isinstance(error, RunCancelledError)
        assert one == 1

    await main()


async def test_allow_failure_passes_the_exception_itself() -> None:
    error = ValueError("because")

    @task
    async def failing() -> None:
        raise error

    @task(persist_result=False)
    async def body(*values: Any) -> Any:
        return values

    @flow(persist_result=False)
    async def main() -> Any:
        failed, done = failing.submit(), give.submit(1)
        assert await body(allow_failure(failed), allow_failure(done)) == (error, 1)
        got = await body.submit(allow_failure({"a": [failed, done]}), done)
        assert got == ({"a": [error, 1]}, 1)
        with pytest.raises(UpstreamFailedError):
            await body(allow_failure(failed), failed)
        return {"seen": got}

    assert (await main())["seen"][0]["a"][0] is error


async def test_a_direct_call_waits_for_its_futures_and_can_be_cancelled_meanwhile() -> None:
    @flow
    async def main() -> Any:
        upstream = sleep.submit()
        with anyio.move_on_after(0.01) as scope:
            await give(upstream)
        assert scope.cancelled_caught
        assert not upstream.done()
        assert not upstream.run.waiters
        upstream.cancel()
        return runtime.flow_run.id

    await main()
    (run,) = await task_runs("give")
    assert (run.state.type.value, run.state.message, run.run_count) == ("CANCELLED", "cancelled by its caller", 0)


# --- cycles ---------------------------------------------------------------------------------------


async def wait_for(box: Box, name: str) -> Any:
    await box.ready.wait()
    return await box[name]


def told(error: BaseException) -> str:
    assert isinstance(error, WaitCycleError), error
    assert "neither could ever go on" in str(error)
    return error.run


async def outcomes(futures: dict[str, RunFuture[Any]]) -> dict[str, BaseException | None]:
    with anyio.fail_after(5):
        for future in futures.values():
            await future.wait_async(60)
    found = {name: future.result(raise_on_failure=False) for name, future in futures.items()}
    return {name: error if isinstance(error, BaseException) else None for name, error in found.items()}


@pytest.mark.parametrize("colour", ["async", "sync"])
@pytest.mark.parametrize("length", [1, 2, 3, 10])
async def test_runs_that_wait_for_each_other_are_told_at_once(colour: str, length: int) -> None:
    names = [str(number) for number in range(length)]

    @task
    async def waits(box: Box, name: str) -> Any:
        return await wait_for(box, name)

    @task
    def waits_sync(box: Box, name: str) -> Any:
        anyio.from_thread.run(box.ready.wait)
        return box[name].result()

    @flow(persist_result=False)
    async def main() -> dict[str, BaseException | None]:
        box = Box()
        body = waits if colour == "async" else waits_sync
        for number, name in enumerate(names):
            box.futures[name] = body.submit(box, names[(number + 1) % length])
        box.ready.set()
        return await outcomes(box.futures)

    began = time.monotonic()
    errors = await main()
    assert time.monotonic() - began < 5
    # Each that was refused failed, and those that waited for it got its error.
    assert all(isinstance(error, WaitCycleError) for error in errors.values())
    recorded = await task_runs("waits" if colour == "async" else "waits_sync")
    assert {(run.state.type.value, run.state.name) for run in recorded} == {("FAILED", "Failed")}
    if length == 1:
        assert "itself" in str(errors["0"])


async def test_a_cycle_through_arguments() -> None:
    @flow
    async def main() -> tuple[str, str]:
        arguments: list[Any] = [sleep.submit(0.02)]
        itself = give.submit(arguments)
        arguments.append(itself)
        two: list[Any] = [arguments[0]]
        first = give.submit(two)
        two.append(give.submit([first]))
        for future in (itself, first, two[1]):
            with anyio.fail_after(5):
                await future.wait_async(60)
        told(itself.result(raise_on_failure=False))
        errors = [first.result(raise_on_failure=False), two[1].result(raise_on_failure=False)]
        assert sum(isinstance(error, WaitCycleError) for error in errors) == 1
        assert sum(isinstance(error, UpstreamFailedError) for error in errors) == 1
        return itself.state.type.value, itself.state.name

    assert await main() == ("FAILED", "Failed")


@pytest.mark.parametrize("how", ["submit", "call", "nested flow", "argument", "deep"])
async def test_a_run_that_waits_for_one_above_it_is_told_at_once(how: str) -> None:
    box = Box()

    @task
    async def child(_: Any = None) -> Any:
        return await wait_for(box, "parent")

    @flow
    async def inner() -> Any:
        return await wait_for(box, "parent")

    @flow
    async def deeper() -> Any:
        return await child()

    @task
    async def parent() -> Any:
        await box.ready.wait()
        if how == "submit":
            return await child.submit()
        if how == "call":
            return await child()
        if how == "nested flow":
            return await inner()
        if how == "deep":
            return await deeper.submit()
        return await give(box["parent"])

    @flow(persist_result=False)
    async def main() -> BaseException | None:
        box.futures["parent"] = parent.submit()
        box.ready.set()
        return (await outcomes(box.futures))["parent"]

    error = await main()
    assert error is not None
    assert told(error)


async def test_a_cycle_between_a_tasks_wait_and_its_parents_end() -> None:
    """The parent does not await its child; it waits for it all the same, at its end."""
    box = Box()

    @task
    async def child() -> Any:
        return await wait_for(box, "parent")

    @task
    async def parent() -> str:
        await box.ready.wait()
        box.futures["child"] = child.submit()
        return "done"

    @flow(persist_result=False)
    async def main() -> Any:
        box.futures["parent"] = parent.submit()
        box.ready.set()
        with anyio.fail_after(5):
            assert await box["parent"] == "done"
        return {"error": box["child"].result(raise_on_failure=False)}

    told((await main())["error"])


async def test_a_flow_cannot_return_what_waits_for_it() -> None:
    box = Box()

    @flow
    async def inner() -> Any:
        await box.ready.wait()
        return box["inner"]

    @flow(persist_result=False)
    async def main() -> Any:
        box.futures["inner"] = inner.submit()
        box.ready.set()
        return await outcomes(box.futures)

    told((await main())["inner"])


async def test_after_the_refusal_everything_can_go_on() -> None:
    box = Box()

    @task
    async def first() -> str:
        try:
            return f"first and {await wait_for(box, 'second')}"
        except WaitCycleError:
            await anyio.sleep(0.01)
            return "first"

    @task
    async def second() -> str:
        await box.ready.wait()
        await anyio.sleep(0.005)
        try:
            return f"second and {await box['first']}"
        except WaitCycleError:
            return "second"

    @flow
    async def main() -> Any:
        box.futures.update(first=first.submit(), second=second.submit())
        box.ready.set()
        return [await box["first"], await box["second"]]

    assert await main() in (["first", "second and first"], ["first and second", "second"])


async def test_a_wait_with_a_time_limit_is_no_cycle() -> None:
    box = Box()

    @task
    def waits() -> str:
        anyio.from_thread.run(box.ready.wait)
        with pytest.raises(WaitTimeoutError):
            box["itself"].result(0.01)
        return "went on"

    @flow
    async def main() -> Any:
        box.futures["itself"] = waits.submit()
        box.ready.set()
        return await box["itself"]

    assert await main() == "went on"


# --- what nobody looked at ------------------------------------------------------------------------


async def test_a_failure_that_nobody_looked_at_is_logged_once_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    @flow(flow_run_name="the flow")
    async def main() -> str:
        fail.with_options(task_run_name="the lost one").submit("lost")
        waited = fail.with_options(task_run_name="the waited one").submit("waited")
        await waited.wait_async()
        return "fine"

    assert await main() == "fine"
    (message,) = warnings_of(caplog)
    for part in ("'the flow'", "'the lost one'", "ValueError: lost", "'the waited one'"):
        assert part in message


@pytest.mark.parametrize("how", ["await", "result", "state", "argument", "allowed", "returned", "listed", "cancelled"])
async def test_a_failure_that_somebody_looked_at_is_not_logged(how: str, caplog: pytest.LogCaptureFixture) -> None:
    @flow(persist_result=False)
    async def main() -> Any:
        future = sleep.submit() if how == "cancelled" else fail.submit()
        if how == "cancelled":
            return {"cancelled": future.cancel()}
        if how == "await":
            with pytest.raises(ValueError, match="because"):
                await future
        elif how == "returned":
            return future
        elif how == "listed":
            return [future, 1]
        elif how in ("argument", "allowed"):
            body = give.with_options(persist_result=False)
            await body(allow_failure(future) if how == "allowed" else future, return_state=True)
        else:
            await future.wait_async()
            assert future.state.is_failed() if how == "state" else future.result(raise_on_failure=False)
        return None

    await main(return_state=True)
    assert warnings_of(caplog) == []


async def test_many_failures_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    @flow
    async def main() -> None:
        fail.map([str(number) for number in range(205)])

    await main()
    (message,) = warnings_of(caplog)
    assert "200 more" in message


@everywhere
def test_in_sync_code_what_nobody_looked_at_is_logged(place: Backend | None, caplog: pytest.LogCaptureFixture) -> None:
    def main() -> None:
        fail.submit("lost")
        seen = fail.submit("seen")
        with pytest.raises(ValueError, match="seen"):
            seen.result()

    in_sync_flow(place, main)
    (message,) = warnings_of(caplog)
    assert "lost" in message
    assert "seen)" not in message


async def test_a_failure_in_a_runtime_that_nobody_looked_at_is_logged(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Runtime(home):
        fail.submit("lost")
        seen = fail.submit("seen")
        with pytest.raises(ValueError, match="seen"):
            await seen
    (message,) = warnings_of(caplog)
    assert "lost" in message
    assert "seen)" not in message


# --- under what -----------------------------------------------------------------------------------


@kinds
async def test_outside_of_any_run_it_needs_an_open_runtime(kind: Any) -> None:
    with pytest.raises(NoRuntimeError, match=r"async with asyncflow\.Runtime\(\)") as caught:
        kind.submit(1)
    assert caught.value.function == kind.__name__
    assert f"Await {kind.__name__}.acall(...)" in str(caught.value)
    await give(1)  # the default runtime is open now, and does not count
    with pytest.raises(NoRuntimeError):
        kind.submit(1)
    with pytest.raises(NoRuntimeError):
        kind.map([1])


def test_outside_of_any_run_in_a_script() -> None:
    with pytest.raises(NoRuntimeError):
        give_sync.submit(1)


@kinds
async def test_in_a_runtime_it_outlives_its_caller(kind: Any, home: Path) -> None:
    ended: list[str] = []

    @task
    async def slow(value: Any) -> Any:
        await anyio.sleep(0.02)
        ended.append("slow")
        return value

    async with Runtime(home):
        futures: list[RunFuture[Any]] = []

        async def caller() -> None:
            futures.append(kind.submit(slow.submit(3)))

        async with anyio.create_task_group() as group:
            group.start_soon(caller)
        assert not futures[0].done()
    assert ended == ["slow"]
    assert futures[0].done()
    assert await futures[0] == 3
    assert futures[0].state.is_completed()
    if isinstance(futures[0], FlowRunFuture):
        assert futures[0].task_run_id is None
        record: Any = await get_client().read_flow_run(futures[0].flow_run_id)
    else:
        assert isinstance(futures[0], TaskFuture)
        record = await get_client().read_task_run(futures[0].task_run_id)
        assert record.flow_run_id is None
    assert record.state == futures[0].state


async def test_a_runtime_waits_also_for_what_its_runs_submit_in_it(home: Path) -> None:
    ended: list[int] = []

    @task
    async def again(left: int) -> None:
        await anyio.sleep(0.002)
        if left:
            with detached():
                again.submit(left - 1)
        ended.append(left)

    async with Runtime(home):
        again.submit(4)
    assert sorted(ended) == [0, 1, 2, 3, 4]


async def test_a_runtime_whose_block_fails_interrupts_what_was_submitted(home: Path) -> None:
    ended: list[str] = []
    began = anyio.Event()

    @flow
    async def inner() -> None:
        began.set()
        try:
            await sleep.submit()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            ended.append("cleaned")

    futures: list[FlowRunFuture[None]] = []

    async def block() -> None:
        async with Runtime(home):
            futures.append(inner.submit())
            await began.wait()
            raise LookupError

    with pytest.raises(LookupError):
        await block()
    (future,) = futures
    assert ended == ["cleaned"]
    assert future.done()
    assert future.state.message == "interrupted because its runtime is stopping"
    for run in (await get_client().read_flow_run(future.flow_run_id), *await task_runs("sleep")):
        assert run.state.name == "Interrupted"


async def test_a_runtime_whose_block_is_cancelled_interrupts_what_was_submitted(home: Path) -> None:
    began = anyio.Event()
    futures: list[RunFuture[Any]] = []

    @task
    async def body() -> None:
        began.set()
        await anyio.sleep(LONG)

    async def block() -> None:
        async with Runtime(home):
            futures.append(body.submit())
            await anyio.sleep(LONG)

    async with anyio.create_task_group() as group:
        group.start_soon(block)
        await began.wait()
        group.cancel_scope.cancel()
    assert futures[0].done()
    assert futures[0].state.name == "Interrupted"


@pytest.mark.parametrize("fails", [False, True])
def test_in_a_script_a_runtime_waits_for_what_was_submitted(home: Path, fails: bool) -> None:
    ended: list[str] = []
    began = threading.Event()

    @task
    async def slow() -> str:
        began.set()
        try:
            await asyncio.sleep(LONG if fails else 0.02)
        finally:
            ended.append("slow")
        return "slow"

    @task
    def quick() -> str:
        ended.append("quick")
        return "quick"

    futures: list[RunFuture[Any]] = []
    try:
        with Runtime(home):
            futures += [slow.submit(), quick.submit()]
            assert began.wait(LONG)
            assert futures[1].result(LONG) == "quick"
            if fails:
                raise LookupError
    except LookupError:
        assert fails
    assert sorted(ended) == ["quick", "slow"]
    assert [each.state.type.value for each in futures] == ["PAUSED" if fails else "COMPLETED", "COMPLETED"]


async def test_under_a_run_that_has_ended_it_is_refused() -> None:
    go = anyio.Event()
    errors: list[BaseException] = []
    ended = anyio.Event()

    async def later() -> None:
        await go.wait()
        for call in (lambda: give.submit(1), lambda: give.map([1]), lambda: nested.submit(1)):
            try:
                call()
            except RunEndedError as error:
                errors.append(error)
        ended.set()

    @flow
    async def main(group: Any) -> None:
        group.start_soon(later)

    async with anyio.create_task_group() as group:
        await main.with_options(validate_parameters=False)(group)
        go.set()
        await ended.wait()
    assert len(errors) == 3
    assert "asyncflow.detached()" in str(errors[0])
    assert await task_runs("give") == []


async def test_when_its_body_raises_what_it_submitted_is_cancelled_first() -> None:
    began = anyio.Event()

    @task
    async def body() -> None:
        began.set()
        await anyio.sleep(LONG)

    @flow
    async def main() -> None:
        body.submit()
        give.submit(body.submit())
        await began.wait()
        raise LookupError("main")

    with pytest.raises(LookupError):
        await main()
    runs = [*await task_runs("body"), *await task_runs("give")]
    assert [run.state.type.value for run in runs] == ["CANCELLED"] * 3
    assert all("failed with LookupError" in (run.state.message or "") for run in runs)


async def test_when_its_body_returns_the_rest_is_waited_for() -> None:
    ended: list[str] = []

    @task
    async def slow() -> None:
        await anyio.sleep(0.02)
        ended.append("task")

    @flow
    async def inner() -> None:
        slow.submit()
        ended.append("inner")

    @flow
    async def main() -> None:
        inner.submit()
        ended.append("main")

    await main()
    assert sorted(ended) == ["inner", "main", "task"]
    assert ended[-1] == "task"


# --- depth and width ------------------------------------------------------------------------------


@flow(persist_result=False, validate_parameters=False)
async def down(levels: int) -> int:
    return 1 if levels == 1 else 1 + await down(levels - 1)


@flow(persist_result=False, validate_parameters=False)
async def down_submitted(levels: int) -> int:
    return 1 if levels == 1 else 1 + await down_submitted.submit(levels - 1)


@flow(persist_result=False, validate_parameters=False)
def down_sync(levels: int) -> int:
    return 1 if levels == 1 else 1 + down_sync(levels - 1)


@flow(persist_result=False, validate_parameters=False)
def down_threads(levels: int) -> int:
    return 1 if levels == 1 else 1 + down_threads.submit(levels - 1).result()


DEPTHS: list[Any] = [down, down_submitted, down_sync, down_threads]


async def at_the_limit(declared: Any) -> None:
    runs = await get_client().read_flow_runs(flow_name=declared.name, limit=1_000)
    assert len(runs) == 100 + 101
    states = [run.state.type.value for run in runs]
    assert (states.count("COMPLETED"), states.count("FAILED")) == (100, 101)
    (deepest,) = [run for run in runs if run.run_count == 0]
    assert deepest.state.is_failed()
    assert "NestingTooDeepError" in (deepest.state.message or "")


@pytest.mark.parametrize("declared", DEPTHS, ids=lambda each: each.name)
async def test_a_hundred_runs_nested_in_each_other(declared: Any) -> None:
    assert await declared.acall(100) == 100
    with pytest.raises(NestingTooDeepError, match="ASYNCFLOW_NESTING_LIMIT"):
        await declared.acall(101)
    await at_the_limit(declared)


@pytest.mark.parametrize("declared", [down_sync, down_threads], ids=lambda each: each.name)
def test_a_hundred_sync_runs_nested_in_each_other(declared: Any) -> None:
    assert declared(100) == 100
    with pytest.raises(NestingTooDeepError):
        declared(101)
    anyio.run(at_the_limit, declared)


@pytest.mark.parametrize("place", BACKENDS)
def test_ten_thousand_submitted_tasks(place: Backend) -> None:
    @task(persist_result=False)
    async def body(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return number

    @flow(persist_result=False)
    async def main() -> int:
        return sum(await body.map(range(10_000)))

    backend, options = place
    if backend == "asyncio":  # in debug mode it takes a traceback for each task
        options = {**options, "debug": False}
    assert anyio.run(main, backend=backend, backend_options=options) == sum(range(10_000))
    runs = anyio.run(task_runs, "body")
    assert len(runs) == 10_000
    assert all(run.state.is_completed() for run in runs)


async def test_a_thousand_nested_flows_at_once() -> None:
    now = most = 0
    everybody = anyio.Event()

    @flow(persist_result=False, validate_parameters=False)
    async def inner(number: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 1_000:
            everybody.set()
        await everybody.wait()
        now -= 1
        return int(await give(number))

    @flow(persist_result=False)
    async def main() -> int:
        return sum(await inner.map(range(1_000)), 0)

    assert await main() == sum(range(1_000))
    assert most == 1_000
    assert len(await get_client().read_flow_runs(flow_name="inner", limit=2_000)) == 1_000


def test_nothing_is_logged_for_work_of_a_runtime_that_went_well(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with Runtime(home):
        give_sync.submit(1)
    assert warnings_of(caplog) == []
