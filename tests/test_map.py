"""`map`: what is taken apart, what is not, and what the list of futures can be asked."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncflow import FutureList, Runtime, TaskFuture, allow_failure, flow, get_client, quote, task, unmapped
from asyncflow.exceptions import MapError, NoRuntimeError, RunCancelledError, UpstreamFailedError, WaitTimeoutError
from tests.conftest import Backend
from tests.sync_flows import everywhere, in_sync_flow

LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be stopped."""


@task(persist_result=False)
async def pair(first: Any, second: Any = None) -> tuple[Any, Any]:
    await anyio.lowlevel.checkpoint()
    return first, second


@task(persist_result=False)
def pair_sync(first: Any, second: Any = None) -> tuple[Any, Any]:
    return first, second


@flow(persist_result=False)
async def pair_flow(first: Any, second: Any = None) -> tuple[Any, Any]:
    return await pair(first, second)


@flow(persist_result=False)
def pair_flow_sync(first: Any, second: Any = None) -> tuple[Any, Any]:
    return pair_sync(first, second)


KINDS: list[Any] = [pair, pair_sync, pair_flow, pair_flow_sync]


@task
async def fail(text: str) -> str:
    if text:
        raise ValueError(text)
    return "fine"


@task
async def sleep(seconds: float = LONG) -> float:
    await anyio.sleep(seconds)
    return seconds


def in_flow(body: Callable[[], Any]) -> Any:
    """A call of `body` as an async flow."""
    return flow(body, persist_result=False)()


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await anyio.lowlevel.checkpoint()
        yield number


# --- what is taken apart --------------------------------------------------------------------------


async def test_one_run_per_item_in_the_order_of_the_items() -> None:
    async def body() -> Any:
        for kind in KINDS:
            found = await mapped(kind)
            assert found["values"] == found["each"] == [(1, None), (2, None), (3, None)]

    async def mapped(kind: Any) -> Any:
        futures = kind.map([1, 2, 3])
        assert isinstance(futures, FutureList)
        assert len(futures) == 3
        return {"values": await futures, "each": [await future for future in futures]}

    await in_flow(body)


@everywhere
def test_in_sync_code(place: Backend | None) -> None:
    def body() -> Any:
        return {"values": [kind.map([1, 2], second=(3, 4)).result() for kind in KINDS]}

    assert in_sync_flow(place, body) == {"values": [[(1, 3), (2, 4)]] * 4}


@dataclass
class Config:
    name: str


def generator(items: Any) -> Iterator[Any]:
    yield from items


ARGUMENTS: dict[str, tuple[Callable[[], Any], list[tuple[Any, Any]]]] = {
    "two lists": (lambda: pair.map([1, 2], [3, 4]), [(1, 3), (2, 4)]),
    "keywords": (lambda: pair.map(first=[1, 2], second=[3, 4]), [(1, 3), (2, 4)]),
    "a value beside": (lambda: pair.map([1, 2], 9), [(1, 9), (2, 9)]),
    "text is whole": (lambda: pair.map([1, 2], "ab"), [(1, "ab"), (2, "ab")]),
    "bytes are whole": (lambda: pair.map([1, 2], b"ab"), [(1, b"ab"), (2, b"ab")]),
    "a bytearray is whole": (lambda: pair.map([1], bytearray(b"ab")), [(1, bytearray(b"ab"))]),
    "an object is whole": (lambda: pair.map([1], Config("x")), [(1, Config("x"))]),
    "None is whole": (lambda: pair.map([1, 2], None), [(1, None), (2, None)]),
    "unmapped": (lambda: pair.map([1, 2], unmapped([3, 4, 5])), [(1, [3, 4, 5]), (2, [3, 4, 5])]),
    "unmapped keyword": (lambda: pair.map([1], second=unmapped({"a": 1})), [(1, {"a": 1})]),
    "quoted": (lambda: pair.map([1], quote([3, 4, 5])), [(1, [3, 4, 5])]),
    "the keys of a dict": (lambda: pair.map({"a": 1, "b": 2}), [("a", None), ("b", None)]),
    "a range and a generator": (lambda: pair.map(range(2), generator("xy")), [(0, "x"), (1, "y")]),
    "an iterator that can be read once": (lambda: pair.map(iter([1, 2])), [(1, None), (2, None)]),
    "lists in a list": (lambda: pair.map([[1, 2], []]), [([1, 2], None), ([], None)]),
    "texts in a list": (lambda: pair.map(["ab", "c"]), [("ab", None), ("c", None)]),
    "empty": (lambda: pair.map([]), []),
    "both empty": (lambda: pair.map([], ()), []),
    "quoted items": (lambda: pair.map([quote(1), unmapped(2)]), [(1, None), (2, None)]),
}


async def test_what_is_taken_apart_and_what_is_not() -> None:
    async def body() -> None:
        for name, (start, expected) in ARGUMENTS.items():
            assert await start() == expected, name

    await in_flow(body)


async def test_futures_as_items_and_beside_are_replaced_by_their_values() -> None:
    async def body() -> None:
        first = pair.map([1, 2])
        assert await pair.map(first, [3, 4]) == [((1, None), 3), ((2, None), 4)]
        assert await pair.map(tuple(first)) == [((1, None), None), ((2, None), None)]
        assert await pair.map([[first[0]], {"a": first[1]}]) == [([(1, None)], None), ({"a": (2, None)}, None)]
        whole = unmapped(first)
        assert await pair.map([5, 6], whole) == [(5, [(1, None), (2, None)]), (6, [(1, None), (2, None)])]
        assert await pair.map([7], unmapped(first[0])) == [(7, (1, None))]

    await in_flow(body)


async def test_failed_items_fail_their_own_runs_only() -> None:
    async def body() -> None:
        upstream = fail.map(["", "because"])
        downstream = pair.map(upstream)
        assert await downstream[0] == ("fine", None)
        with pytest.raises(UpstreamFailedError):
            await downstream
        (ready, allowed) = await pair.map([allow_failure(each) for each in upstream])
        assert ready == ("fine", None)
        assert isinstance(allowed[0], ValueError)

    await in_flow(body)


async def test_it_waits_for_others() -> None:
    order: list[Any] = []

    @task
    async def first() -> None:
        await anyio.sleep(0.01)
        order.append("first")

    @task
    async def then(number: int) -> None:
        order.append(number)

    async def body() -> None:
        await then.map([1, 2], wait_for=[first.submit()])
        failed = fail.submit("because")
        refused = then.map([3, 4], wait_for=[failed])
        for future in refused:
            assert isinstance(future, TaskFuture)
            await future.wait_async()
            assert future.state.name == "NotReady"

    await in_flow(body)
    assert order[0] == "first"
    assert sorted(order[1:]) == [1, 2]


# --- what is refused ------------------------------------------------------------------------------


async def test_nothing_is_submitted_when_it_is_refused() -> None:
    async def body() -> None:
        future = pair.submit(1)
        refusals: list[tuple[Callable[[], Any], str]] = [
            (lambda: pair.map([1, 2], [3]), r"argument 1 has 2, argument 2 has 1"),
            (lambda: pair.map([1, 2], second=generator([3])), r"argument 1 has 2, second has 1"),
            (lambda: pair.map([1, 2], {"a": 3}), "lengths differ"),
            (lambda: pair.map([], [1]), "lengths differ"),
            (lambda: pair.map(5), "submit"),
            (lambda: pair.map("text"), "submit"),
            (lambda: pair.map(b"bytes"), "submit"),
            (lambda: pair.map(), "submit"),
            (lambda: pair.map(unmapped([1, 2])), "submit"),
            (lambda: pair.map(future), "await future"),
            (lambda: pair.map([1], second=future), "unmapped"),
        ]
        for call, message in refusals:
            with pytest.raises(MapError, match=message) as caught:
                call()
            assert caught.value.function == "pair"
            assert isinstance(caught.value, ValueError)
        await future

    await in_flow(body)
    assert len(await get_client().read_task_runs()) == 1  # the future's own


async def test_arguments_that_do_not_fit_are_a_type_error() -> None:
    async def body() -> None:
        with pytest.raises(TypeError):
            pair.map([1], [2], [3])
        with pytest.raises(TypeError):
            pair.map([1], third=[3])
        with pytest.raises(TypeError, match=r"future\.state"):
            pair.map([1], return_state=True)

    await in_flow(body)


async def test_an_iterable_that_raises_submits_nothing() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("source")

    async def body() -> None:
        with pytest.raises(LookupError, match="source"):
            pair.map(broken())

    await in_flow(body)
    assert await get_client().read_task_runs() == []


async def test_outside_of_any_run_it_needs_a_runtime(home: Any) -> None:
    with pytest.raises(NoRuntimeError):
        pair.map([1])
    async with Runtime(home):
        futures = pair.map([1, 2])
    assert await futures == [(1, None), (2, None)]


async def test_allow_failure_of_a_list_is_taken_apart() -> None:
    async def body() -> None:
        found = await pair.map(allow_failure(fail.map(["", "because"])))
        assert found[0] == ("fine", None)
        assert isinstance(found[1][0], ValueError)

    await in_flow(body)


# --- the list of futures --------------------------------------------------------------------------


async def test_one_failure_is_raised_as_it_is_and_several_as_a_group() -> None:
    async def body() -> None:
        one = fail.map(["", "only", ""])
        with pytest.raises(ValueError, match="only"):
            await one
        several = fail.map(["first", "", "second"])
        with pytest.raises(ExceptionGroup) as caught:
            await several
        assert [str(each) for each in caught.value.exceptions] == ["first", "second"]
        assert caught.value.exceptions[0] is several[0].result(raise_on_failure=False)
        found = several.result(raise_on_failure=False)
        assert found[1] == "fine"
        assert [type(each) for each in found] == [ValueError, str, ValueError]

    await in_flow(body)


@everywhere
def test_in_sync_code_failures_are_raised_or_given(place: Backend | None) -> None:
    def body() -> None:
        with pytest.raises(ValueError, match="only"):
            fail.map(["", "only"]).result()
        several = fail.map(["first", "second"])
        with pytest.raises(ExceptionGroup):
            several.result(LONG)
        assert [str(each) for each in several.result(raise_on_failure=False)] == ["first", "second"]

    in_sync_flow(place, body)


async def test_it_waits_for_all_of_them_before_it_raises() -> None:
    ended: list[str] = []

    @task
    async def slow(text: str) -> None:
        await anyio.sleep(0.02 if text == "slow" else 0)
        ended.append(text)
        if text == "bad":
            raise ValueError

    async def body() -> None:
        with pytest.raises(ValueError):  # noqa: PT011  # it has no text
            await slow.map(["bad", "slow"])
        assert ended == ["bad", "slow"]

    await in_flow(body)


async def test_cancelled_ones_count_as_failures() -> None:
    async def body() -> None:
        futures = sleep.map([0.001, LONG])
        futures[1].cancel()
        with pytest.raises(RunCancelledError):
            await futures

    await in_flow(body)


@everywhere
def test_in_sync_code_a_wait_has_a_time_limit_for_all_together(place: Backend | None) -> None:
    release = threading.Event()

    @task
    def body(_: int) -> None:
        assert release.wait(LONG)

    def main() -> None:
        futures = body.map([1, 2, 3])
        began = time.monotonic()
        assert not futures.wait(0.03)
        with pytest.raises(WaitTimeoutError):
            futures.result(0.03)
        assert time.monotonic() - began < 5
        release.set()
        assert futures.wait(LONG)
        assert futures.wait()
        assert futures.result(LONG) == [None] * 3

    in_sync_flow(place, main)


def test_an_empty_one_is_done() -> None:
    def main() -> None:
        futures = pair.map([])
        assert (futures.result(), futures.result(0), futures.wait(), futures.wait(0)) == ([], [], True, True)

    in_sync_flow(None, main)


async def test_cancelling_the_wait_for_all_cancels_none() -> None:
    async def body() -> None:
        futures = sleep.map([0.05, 0.05])
        with anyio.move_on_after(0.005) as scope:
            await futures
        assert scope.cancelled_caught
        assert await futures == [0.05, 0.05]

    await in_flow(body)


async def test_a_flow_may_return_what_map_gave() -> None:
    @flow
    async def inner(text: list[str]) -> Any:
        return fail.map(text)

    async def body() -> None:
        assert await inner(["", ""]) == ["fine", "fine"]
        state = await inner(["", "because"], return_state=True)
        assert state.is_failed()
        assert state.message == "1/2 states failed."

    await in_flow(body)


# --- async iterables ------------------------------------------------------------------------------


async def test_an_async_iterable_is_submitted_while_it_is_awaited() -> None:
    async def body() -> None:
        futures = pair.map(numbers(3), "x")
        assert await futures == [(0, "x"), (1, "x"), (2, "x")]
        assert len(futures) == 3
        assert await futures == [(0, "x"), (1, "x"), (2, "x")]  # once only
        assert await pair.map(numbers(2), [5, 6]) == [(0, 5), (1, 6)]
        assert await pair.map([5, 6], second=numbers(2)) == [(5, 0), (6, 1)]
        assert await pair.map(numbers(0)) == []

    await in_flow(body)


async def test_items_of_an_async_iterable_run_while_the_next_ones_come() -> None:
    ran = anyio.Event()

    @task
    async def first(_: int) -> None:
        ran.set()

    async def source() -> AsyncIterator[int]:
        yield 0
        await ran.wait()
        yield 1

    async def body() -> None:
        with anyio.fail_after(5):
            await first.map(source())

    await in_flow(body)


async def test_async_iterables_of_different_lengths_are_refused() -> None:
    async def body() -> None:
        with pytest.raises(MapError, match="lengths differ"):
            await pair.map(numbers(2), [1, 2, 3])
        with pytest.raises(MapError, match="lengths differ"):
            await pair.map([1, 2, 3], numbers(2))

    await in_flow(body)


async def test_an_async_iterable_that_raises() -> None:
    async def source() -> AsyncIterator[int]:
        yield 0
        raise LookupError("source")

    async def body() -> None:
        futures = pair.map(source())
        with pytest.raises(LookupError, match="source"):
            await futures
        assert await futures[0] == (0, None)  # it was submitted, and goes on

    await in_flow(body)


async def test_when_the_wait_is_cancelled_the_source_is_closed() -> None:
    closed: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 0
            await anyio.sleep(LONG)
        finally:
            closed.append("closed")

    async def body() -> None:
        futures = pair.map(source())
        with anyio.move_on_after(0.01):
            await futures
        assert closed == ["closed"]

    await in_flow(body)


@everywhere
def test_a_map_over_an_async_iterable_cannot_be_waited_for_before_it_was_awaited(place: Backend | None) -> None:
    def main() -> None:
        with pytest.raises(MapError, match="await"):
            pair.map(numbers(2)).result()
        with pytest.raises(MapError, match="await"):
            pair.map(numbers(2)).wait()

    in_sync_flow(place, main)


async def test_when_lengths_differ_the_sources_are_closed() -> None:
    closed: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 0
            yield 1
        finally:
            closed.append("closed")

    async def body() -> None:
        with pytest.raises(MapError):
            await pair.map(source(), [1])
        assert closed == ["closed"]

    await in_flow(body)


@pytest.mark.parametrize("how", ["cancelled", "two tasks"])
async def test_an_async_map_awaited_again_is_not_a_part_of_it(how: str) -> None:
    go_on = anyio.Event()
    waits = anyio.Event()
    found: list[Any] = []

    async def source() -> AsyncIterator[int]:
        yield 0
        waits.set()
        await go_on.wait()
        yield 1

    async def body() -> None:
        futures = pair.map(source())

        async def wait() -> None:
            try:
                found.append(await futures)
            except MapError as error:  # to refuse the second is honest as well
                found.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await waits.wait()
            if how == "cancelled":
                group.cancel_scope.cancel()
            else:
                group.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                go_on.set()
        if how == "cancelled":
            go_on.set()
            with anyio.CancelScope():
                await wait()

    await in_flow(body)
    assert [(0, None)] not in found
    assert found
