"""`map_stream`: results over a source of any length, a bounded number of runs at a time, and every way it ends."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asyncflow import Runtime, State, flow, get_client, tags, task, unmapped
from asyncflow.context import current_run
from asyncflow.exceptions import NoRuntimeError, OptionError, WaitOnEventLoopError
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import RunPython

LONG = 30.0
EITHER_ORDER = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "as-completed"])
EITHER_SOURCE = pytest.mark.parametrize("kind", ["sync", "async"])


class Gauge:
    """What the runs of a test do: how many are in flight, and which were cancelled or cleaned up."""

    def __init__(self) -> None:
        self.now = self.most = self.begun = 0
        self.cancelled: list[int] = []
        self.cleaned: list[int] = []
        self.has_begun = anyio.Event()

    async def __call__(self, number: int) -> int:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(0)
        finally:
            self.now -= 1
        return number


def source_of(kind: str, items: Any, log: list[str] | None = None) -> Any:
    async def fed() -> AsyncIterator[Any]:
        try:
            for item in items:
                yield item
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0)
            if log is not None:
                log.append("source closed")

    def pulled() -> Iterator[Any]:
        try:
            yield from items
        finally:
            if log is not None:
                log.append("source closed")

    return fed() if kind == "async" else pulled()


async def states() -> Counter[str]:
    return Counter(each.state.type.value for each in await get_client().read_task_runs())


def blocks_from(first: int, gauge: Gauge) -> Any:
    """A task that waits until it is cancelled, but gives small numbers back as soon as another waits."""

    @task
    async def item(number: int) -> int:
        if number < first:
            await gauge.has_begun.wait()
            return number
        gauge.begun += 1
        gauge.has_begun.set()
        try:
            await anyio.sleep(LONG)
        except BaseException:
            gauge.cancelled.append(number)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            gauge.cleaned.append(number)
        return number

    return item


async def cancelled_when_begun(fn: Any, gauge: Gauge) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(fn)
        await gauge.has_begun.wait()
        group.cancel_scope.cancel()


# --- results -------------------------------------------------------------------------------


@EITHER_SOURCE
async def test_results_come_in_the_order_of_the_items(kind: str) -> None:
    @task
    async def last_first(number: int, *, base: int) -> int:
        await anyio.sleep((5 - number) * 0.01)
        return base + number

    @flow
    async def main() -> list[int]:
        return [each async for each in last_first.map_stream(source_of(kind, range(5)), limit=5, base=100)]

    assert await main() == [100, 101, 102, 103, 104]


@EITHER_SOURCE
async def test_results_come_as_they_are_done(kind: str) -> None:
    turns = [anyio.Event() for _ in range(4)]

    @task
    async def in_turn(number: int) -> int:
        await turns[number].wait()
        return number

    @flow
    async def main() -> list[int]:
        order = [2, 0, 3, 1]
        got: list[int] = []
        turns[order[0]].set()
        async for each in in_turn.map_stream(source_of(kind, range(4)), limit=4, ordered=False):
            got.append(each)
            if len(got) < len(order):
                turns[order[len(got)]].set()
        return got

    assert await main() == [2, 0, 3, 1]


@EITHER_ORDER
@EITHER_SOURCE
async def test_no_more_than_the_limit_are_in_flight(kind: str, ordered: bool) -> None:
    gauge, full = Gauge(), anyio.Event()

    @task
    async def work(number: int) -> int:
        gauge.now += 1
        gauge.most = max(gauge.most, gauge.now)
        if gauge.now == 7:
            full.set()  # from here on they end: on a busy machine some would have ended before the limit was reached
        await full.wait()
        await anyio.sleep(0)
        gauge.now -= 1
        return number

    @flow
    async def main() -> list[int]:
        return [each async for each in work.map_stream(source_of(kind, range(50)), limit=7, ordered=ordered)]

    assert sorted(await main()) == list(range(50))
    assert gauge.most == 7


@EITHER_ORDER
@EITHER_SOURCE
async def test_what_is_finished_and_not_taken_counts(kind: str, ordered: bool) -> None:
    gauge = Gauge()
    work = task(gauge.__call__)
    taken = 0

    @flow
    async def main() -> None:
        nonlocal taken
        async for _ in work.map_stream(source_of(kind, range(20)), limit=3, ordered=ordered):
            taken += 1
            await anyio.sleep(0.01)  # time enough for any number of these runs
            assert gauge.begun <= taken + 3

    await main()
    assert taken == gauge.begun == 20


@EITHER_SOURCE
async def test_an_item_is_pulled_only_when_there_is_room_for_its_run(kind: str) -> None:
    pulled: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            pulled.append(number)
            yield number

    work = task(Gauge().__call__)

    @flow
    async def main() -> None:
        stream = work.map_stream(source_of(kind, items()), limit=3)
        assert pulled == []
        async with stream:
            await anext(stream)
            await anyio.wait_all_tasks_blocked()
            assert len(pulled) <= 4

    await main()
    assert len(pulled) <= 4


async def test_results_do_not_wait_for_a_slow_source() -> None:
    work = task(Gauge().__call__)
    more = anyio.Event()

    async def slow() -> AsyncIterator[int]:
        yield 1
        yield 2
        await more.wait()
        yield 3

    @flow
    async def main() -> list[int]:
        got: list[int] = []
        with anyio.fail_after(LONG):
            async for each in work.map_stream(slow(), limit=8):
                got.append(each)
                if each == 2:
                    more.set()
        return got

    assert await main() == [1, 2, 3]


async def test_a_sync_source_may_depend_on_the_results() -> None:
    """It is pulled when the next result is asked for, so after the one before was dealt with."""
    links = {"a": ["b", "c"], "b": ["d"], "c": [], "d": []}

    @task
    async def fetch(page: str) -> list[str]:
        return links[page]

    @flow
    async def crawl() -> list[str]:
        frontier, seen = ["a"], ["a"]

        def pages() -> Iterator[str]:
            while frontier:
                yield frontier.pop(0)

        async for found in fetch.map_stream(pages(), limit=1):
            frontier.extend(found)
            seen.extend(found)
        return seen

    assert await crawl() == ["a", "b", "c", "d"]


async def test_keywords_go_to_each_run_as_they_are() -> None:
    @task
    async def join(left: str, *, others: list[str]) -> str:
        return left + "".join(others)

    @flow
    async def main() -> list[str]:
        first = [each async for each in join.map_stream(["a", "b"], limit=2, others=["x", "y"])]
        return first + [each async for each in join.map_stream(["c"], limit=2, others=unmapped(["z"]))]

    assert await main() == ["axy", "bxy", "cz"]


async def test_futures_among_the_items_are_resolved() -> None:
    @task
    async def double(number: int) -> int:
        return number * 2

    @flow
    async def main() -> list[int]:
        return [each async for each in double.map_stream(double.map([1, 2, 3]), limit=2)]

    assert await main() == [4, 8, 12]


@EITHER_ORDER
async def test_flows_and_sync_bodies(ordered: bool) -> None:
    @task
    def square(number: int) -> int:
        return number * number

    @flow
    async def nested(number: int) -> int:
        return await square.submit(number)

    @flow
    async def main() -> list[int]:
        return [each async for each in nested.map_stream(range(6), limit=2, ordered=ordered)]

    assert sorted(await main()) == [0, 1, 4, 9, 16, 25]
    client = get_client()
    assert Counter(each.flow_name for each in await client.read_flow_runs()) == {"main": 1, "nested": 6}


async def test_one_stream_feeds_another() -> None:
    @task
    async def add(number: int, *, more: int) -> int:
        await anyio.sleep(0)
        return number + more

    @flow
    async def main() -> list[int]:
        first = add.map_stream(source_of("async", range(30)), limit=3, more=1)
        return [each async for each in add.map_stream(first, limit=3, more=10)]

    assert await main() == [each + 11 for each in range(30)]
    assert await states() == {"COMPLETED": 60}


@EITHER_SOURCE
async def test_an_empty_source(kind: str) -> None:
    work = task(Gauge().__call__)

    @flow
    async def main() -> list[int]:
        stream = work.map_stream(source_of(kind, []), limit=3)
        got = [each async for each in stream]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        return got

    assert await main() == []


async def test_a_task_that_uses_a_stream_gives_its_place_to_the_items() -> None:
    work = task(Gauge().__call__)

    @task
    async def summed(count: int) -> int:
        return sum([each async for each in work.map_stream(range(count), limit=3)])

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def main() -> int:
        return await summed.submit(5)

    with anyio.fail_after(LONG):
        assert await main() == 10


@EITHER_SOURCE
async def test_the_runs_are_children_of_the_run_that_uses_the_stream(kind: str) -> None:
    @task
    async def around() -> str:
        run = current_run.get()
        assert run is not None
        assert run.parent is not None
        return run.parent.display_name

    @task
    async def item(_: int) -> Any:
        run = current_run.get()
        assert run is not None
        assert run.parent is not None
        return run.parent.spec.name, sorted(run.tags)

    @flow
    async def main() -> list[Any]:
        with tags("blue"):
            return [each async for each in item.map_stream(source_of(kind, range(2)), limit=2)]

    assert await main() == [("main", ["blue"])] * 2


@EITHER_SOURCE
async def test_outside_of_runs_in_an_open_runtime(kind: str) -> None:
    work = task(Gauge().__call__)
    with pytest.raises(NoRuntimeError, match="Runtime"):
        await anext(work.map_stream([1], limit=1))
    async with Runtime():
        assert [each async for each in work.map_stream(source_of(kind, range(9)), limit=2)] == list(range(9))
        assert await states() == {"COMPLETED": 9}


# --- failures ------------------------------------------------------------------------------


@EITHER_SOURCE
async def test_a_failed_item_raises_in_its_place_and_ends_the_stream(kind: str) -> None:
    gauge = Gauge()
    blocks = blocks_from(3, gauge)
    error = LookupError("of item 2")
    log: list[str] = []

    @task
    async def item(number: int) -> int:
        if number == 2:
            await gauge.has_begun.wait()
            raise error
        return await blocks.fn(number)  # type: ignore[no-any-return]

    @flow
    async def main() -> list[int]:
        got: list[int] = []
        stream = item.map_stream(source_of(kind, range(100), log), limit=5)
        with pytest.raises(LookupError) as caught:  # noqa: PT012  # the block is what is looked at
            async for each in stream:
                got.append(each)  # noqa: PERF401  # what came before the end counts
        assert caught.value is error
        # When it raises, nothing of the stream is left: not the runs, not the source.
        assert sorted(gauge.cleaned) == sorted(gauge.cancelled)
        assert len(gauge.cleaned) == gauge.begun
        assert 1 <= gauge.begun <= 4
        assert log == ["source closed"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        return got

    assert await main() == [0, 1]
    assert (await states())["FAILED"] == 1
    messages = {each.state.message for each in await get_client().read_task_runs(state="CANCELLED")}
    assert len(messages) == 1
    assert "of its map_stream failed" in str(messages.pop())


@EITHER_ORDER
async def test_states_instead_of_values_and_exceptions(ordered: bool, caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def odd_fail(number: int) -> int:
        if number % 2:
            raise LookupError(str(number))
        return number

    @flow
    async def main() -> list[State[int]]:
        stream = odd_fail.map_stream(range(6), limit=2, ordered=ordered, return_state=True)
        return [each async for each in stream if each.is_failed()]

    with pytest.raises(ExceptionGroup):
        await main()
    assert await states() == {"COMPLETED": 3, "FAILED": 3}
    assert "nobody looked" not in caplog.text


async def test_failures_that_are_taken_as_states_are_not_kept() -> None:
    @task
    async def fails(number: int) -> int:
        raise LookupError(str(number))

    @flow
    async def main() -> int:
        run = current_run.get()
        assert run is not None
        count = 0
        async for _ in fails.map_stream(range(50), limit=5, return_state=True):
            count += 1
            assert not run.unseen
        return count

    assert await main() == 50


async def test_failures_that_nobody_took_are_told(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def fails(number: int) -> int:
        raise LookupError(f"of {number}")

    @flow
    async def main() -> None:
        stream = fails.map_stream(range(3), limit=3)
        with pytest.raises(LookupError, match="of 0"):
            await anext(stream)

    with caplog.at_level(logging.WARNING):
        await main()
    assert "nobody looked at their futures" in caplog.text
    # Which of them: a run that gave way to other tasks before it began is cancelled with the stream.
    assert "of 1" in caplog.text or "of 2" in caplog.text
    assert "of 0" not in caplog.text


@EITHER_ORDER
@EITHER_SOURCE
async def test_an_exception_of_the_source_comes_after_the_results_before_it(kind: str, ordered: bool) -> None:
    work = task(Gauge().__call__)
    error = LookupError("of the source")

    def items() -> Iterator[int]:
        yield from range(4)
        raise error

    @flow
    async def main() -> list[int]:
        got: list[int] = []
        stream = work.map_stream(source_of(kind, items()), limit=8, ordered=ordered)
        with pytest.raises(LookupError) as caught:  # noqa: PT012  # the block is what is looked at
            async for each in stream:
                got.append(each)  # noqa: PERF401  # what came before the end counts
        assert caught.value is error
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        return sorted(got)

    assert await main() == [0, 1, 2, 3]
    assert await states() == {"COMPLETED": 4}


async def test_an_item_that_does_not_fit_the_function_raises_in_its_place() -> None:
    @task
    async def two(left: int, right: int) -> int:
        return left + right

    @flow
    async def main() -> None:
        with pytest.raises(TypeError, match="right"):
            await anext(two.map_stream([1], limit=1))

    await main()


# --- cancellation --------------------------------------------------------------------------


@EITHER_ORDER
@EITHER_SOURCE
async def test_a_wait_that_is_cancelled_takes_nothing(kind: str, ordered: bool) -> None:
    go_on = anyio.Event()

    @task
    async def item(number: int) -> int:
        await go_on.wait()
        return number

    @flow
    async def main() -> list[int]:
        stream = item.map_stream(source_of(kind, range(5)), limit=2, ordered=ordered)
        for _ in range(3):
            with anyio.move_on_after(0.01) as scope:
                await anext(stream)
            assert scope.cancelled_caught
        go_on.set()
        return [each async for each in stream]

    assert sorted(await main()) == [0, 1, 2, 3, 4]
    assert await states() == {"COMPLETED": 5}


@EITHER_SOURCE
async def test_leaving_async_with_under_a_cancellation_waits_for_the_clean_up(kind: str) -> None:
    gauge = Gauge()
    item = blocks_from(0, gauge)
    log: list[str] = []

    @flow
    async def main() -> None:
        async def use() -> None:
            async with item.map_stream(source_of(kind, range(10), log), limit=3) as results:
                await anext(results)

        await cancelled_when_begun(use, gauge)
        assert 1 <= len(gauge.cleaned) == gauge.begun <= 3
        assert log == ["source closed"]

    await main()
    assert {*await states()} == {"CANCELLED"}


@EITHER_SOURCE
async def test_cancelling_the_flow_ends_the_runs_and_the_source(kind: str) -> None:
    gauge = Gauge()
    item = blocks_from(0, gauge)
    log: list[str] = []

    @flow
    async def main() -> None:
        async for _ in item.map_stream(source_of(kind, range(10), log), limit=3):
            pass

    await cancelled_when_begun(main, gauge)
    assert 1 <= len(gauge.cleaned) == gauge.begun <= 3
    gc.collect()
    assert log == ["source closed"]
    assert {*await states()} == {"CANCELLED"}


async def test_a_source_that_waits_is_cancelled_where_it_waits() -> None:
    log: list[str] = []

    async def never() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            log.append("source closed")

    work = task(Gauge().__call__)

    @flow
    async def main() -> None:
        async with work.map_stream(never(), limit=3) as results:
            assert await anext(results) == 1
            await anyio.wait_all_tasks_blocked()
        assert log == ["source closed"]

    with anyio.fail_after(LONG / 2):
        await main()


async def test_a_source_may_hold_a_scope_over_its_yield() -> None:
    """It is entered and left in one task, whoever ends the stream."""

    async def scoped() -> AsyncIterator[int]:
        with anyio.CancelScope():
            for number in range(100):
                yield number

    work = task(Gauge().__call__)

    @flow
    async def main() -> None:
        async with work.map_stream(scoped(), limit=2) as results:
            assert await anext(results) == 0

    await main()


async def test_an_exception_of_the_sources_clean_up_is_raised_by_aclose() -> None:
    async def untidy() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            raise LookupError("in the clean-up")

    work = task(Gauge().__call__)

    @flow
    async def main() -> None:
        stream = work.map_stream(untidy(), limit=2)
        await anext(stream)
        with pytest.raises(LookupError, match="in the clean-up"):
            await stream.aclose()
        await stream.aclose()

    await main()


async def test_an_exception_of_the_sources_clean_up_is_logged_where_nobody_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def untidy() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            raise LookupError("in the clean-up")

    work = task(Gauge().__call__)

    @flow
    async def main() -> None:
        async for _ in work.map_stream(untidy(), limit=2):
            break

    await main()
    assert "in the clean-up" in caplog.text


async def test_a_source_that_ignores_its_cancellation_does_not_hold_the_run(caplog: pytest.LogCaptureFixture) -> None:
    over = anyio.Event()

    async def deaf() -> AsyncIterator[int]:
        yield 1
        while not over.is_set():
            with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                await over.wait()

    work = task(Gauge().__call__)

    @flow
    async def main() -> None:
        async for _ in work.map_stream(deaf(), limit=2):
            break

    async with Runtime(grace_seconds=0.1):
        with anyio.fail_after(LONG):
            await main()
        assert "ignored cancellation" in caplog.text
        over.set()
        await anyio.sleep(0.05)


# --- closing -------------------------------------------------------------------------------


@EITHER_ORDER
@EITHER_SOURCE
async def test_async_with_cancels_and_waits_for_what_is_in_flight(kind: str, ordered: bool) -> None:
    gauge = Gauge()
    item = blocks_from(1, gauge)
    log: list[str] = []

    @flow
    async def main() -> str:
        async with item.map_stream(source_of(kind, range(100), log), limit=3, ordered=ordered) as results:
            async for each in results:
                assert each == 0
                break
        assert len(gauge.cleaned) == gauge.begun
        assert log == ["source closed"]
        return "went on"

    assert await main() == "went on"
    assert 1 <= gauge.begun <= 3
    assert {*await states()} == {"COMPLETED", "CANCELLED"}


@EITHER_SOURCE
async def test_aclose_twice_and_after_the_end(kind: str) -> None:
    item = blocks_from(1, Gauge())

    @flow
    async def main() -> None:
        unused = item.map_stream(source_of(kind, range(9)), limit=2)
        await unused.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(unused)
        stream = item.map_stream(source_of(kind, range(9)), limit=2)
        await anext(stream)
        async with anyio.create_task_group() as group:
            group.start_soon(stream.aclose)
            group.start_soon(stream.aclose)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        ended = item.map_stream(source_of(kind, range(1)), limit=2)
        assert [each async for each in ended] == [0]
        await ended.aclose()

    await main()


async def test_aclose_in_another_task_ends_the_wait() -> None:
    item = blocks_from(0, Gauge())

    @flow
    async def main() -> str:
        stream = item.map_stream(range(5), limit=2)

        async def close() -> None:
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            async for _ in stream:
                pytest.fail("none of them ends by itself")
        return "ended"

    assert await main() == "ended"


@EITHER_SOURCE
async def test_the_run_around_a_bare_break_waits(kind: str) -> None:
    gauge = Gauge()
    item = blocks_from(1, gauge)
    log: list[str] = []

    @flow
    async def main() -> None:
        async for _ in item.map_stream(source_of(kind, range(100), log), limit=3):
            break
        # Asked to stop, without the end of the body: the collector told us.
        with anyio.fail_after(LONG / 2):
            while len(gauge.cleaned) < gauge.begun or not log:
                await anyio.sleep(0.01)

    await main()
    assert log == ["source closed"]
    assert len(gauge.cleaned) == gauge.begun > 0


@EITHER_ORDER
@EITHER_SOURCE
async def test_the_end_of_the_body_closes_a_stream_that_is_still_open(kind: str, ordered: bool) -> None:
    gauge = Gauge()
    item = blocks_from(1, gauge)
    log: list[str] = []
    kept: list[Any] = []

    @flow
    async def main() -> str:
        kept.append(item.map_stream(source_of(kind, range(100), log), limit=3, ordered=ordered))
        await anext(kept[0])
        return "done"

    with anyio.fail_after(LONG / 2):
        assert await main() == "done"
    assert len(gauge.cleaned) == gauge.begun
    assert log == ["source closed"]
    (message,) = {each.state.message for each in await get_client().read_task_runs(state="CANCELLED")}
    assert "flow run" in str(message)
    assert "ended before it" in str(message)
    with pytest.raises(StopAsyncIteration):
        await anext(kept[0])


async def test_the_end_of_the_body_ends_a_source_that_has_no_room() -> None:
    """The feeder waits for a consumer that never comes back."""
    work = task(Gauge().__call__)
    kept: list[Any] = []
    log: list[str] = []

    @flow
    async def main() -> None:
        kept.append(work.map_stream(source_of("async", range(100), log), limit=3))
        await anext(kept[0])
        await anyio.wait_all_tasks_blocked()

    with anyio.fail_after(LONG):
        await main()
    assert log == ["source closed"]


async def test_one_result_at_a_time() -> None:
    item = blocks_from(0, Gauge())

    @flow
    async def main() -> None:
        stream = item.map_stream(range(3), limit=1)
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="already waiting"):
                await anext(stream)
            group.cancel_scope.cancel()

    await main()


async def test_what_the_user_keeps_for_other_uses_is_not_closed() -> None:
    send, receive = anyio.create_memory_object_stream[int](10)
    work = task(Gauge().__call__)

    @flow
    async def main() -> int:
        for number in range(6):
            send.send_nowait(number)
        async with work.map_stream(receive, limit=1) as results:
            assert await anext(results) == 0
        send.send_nowait(99)
        last = -1
        while last != 99:
            last = await receive.receive()
        return last

    with send, receive:
        assert await main() == 99


# --- sync code -----------------------------------------------------------------------------


@EITHER_ORDER
async def test_a_sync_flow_in_a_thread(ordered: bool) -> None:
    threads: set[int] = set()

    @task
    def square(number: int) -> int:
        threads.add(threading.get_ident())
        return number * number

    @flow
    def main() -> list[int]:
        with square.map_stream(range(20), limit=3, ordered=ordered) as results:
            return sorted(results)

    assert await main.acall() == [each * each for each in range(20)]
    assert threading.get_ident() not in threads


async def test_a_sync_flow_in_a_thread_that_leaves_early() -> None:
    gauge = Gauge()
    item = blocks_from(1, gauge)

    @flow
    def main() -> int:
        with item.map_stream(range(100), limit=3) as results:
            first: int = next(results)
            threading.Event().wait(0.05)
        assert len(gauge.cleaned) == gauge.begun
        assert list(results) == []
        return first

    assert await main.acall() == 0


async def test_cancelling_a_sync_flow_in_its_thread() -> None:
    gauge = Gauge()
    item = blocks_from(0, gauge)

    @flow
    def main() -> None:
        for _ in item.map_stream(range(9), limit=3):
            pytest.fail("none of them ends by itself")

    await cancelled_when_begun(main.acall, gauge)
    assert 1 <= len(gauge.cleaned) == gauge.begun <= 3


@EITHER_ORDER
def test_a_plain_sync_flow(ordered: bool) -> None:
    @task
    def square(number: int) -> int:
        return number * number

    @task
    async def square_async(number: int) -> int:
        await anyio.sleep(0)
        return number * number

    @flow
    def main() -> list[int]:
        squares = [*square.map_stream(range(20), limit=3, ordered=ordered)]
        squares += square_async.map_stream(iter(range(20)), limit=3, ordered=ordered)
        return sorted(squares)

    assert main() == sorted([each * each for each in range(20)] * 2)


def test_a_plain_sync_flow_that_leaves_early() -> None:
    gauge = Gauge()
    item = blocks_from(1, gauge)

    @flow
    def main() -> None:
        for each in item.map_stream(range(100), limit=3):
            assert each == 0
            threading.Event().wait(0.05)
            break

    main()
    assert len(gauge.cleaned) == gauge.begun


def test_a_failed_item_in_a_plain_sync_flow() -> None:
    @task
    def fails(number: int) -> int:
        if number == 3:
            raise LookupError("of item 3")
        return number

    @flow
    def main() -> list[int]:
        got: list[int] = []
        with pytest.raises(LookupError, match="of item 3"):
            got.extend(fails.map_stream(range(100), limit=2))
        return list(fails.map_stream(range(3), limit=2))

    assert main() == [0, 1, 2]


def test_an_async_source_needs_async_code() -> None:
    work = task(Gauge().__call__)

    @flow
    def main() -> None:
        for _ in range(2):
            with pytest.raises(OptionError, match="async for"):
                next(work.map_stream(source_of("async", range(3)), limit=2))

    main()


async def test_sync_iteration_on_a_loop_is_refused_with_the_line_to_write() -> None:
    work = task(Gauge().__call__)
    stream = work.map_stream([1], limit=1)
    with pytest.raises(WaitOnEventLoopError, match="async for result in"):
        iter(stream)
    with pytest.raises(WaitOnEventLoopError, match="await anext"):
        next(stream)
    with pytest.raises(WaitOnEventLoopError, match="async with"), stream:
        pass
    with pytest.raises(WaitOnEventLoopError, match="aclose"):
        stream.close()


async def test_a_thread_of_an_async_flow_takes_the_results() -> None:
    work = task(Gauge().__call__)

    @flow
    async def main() -> list[int]:
        return await anyio.to_thread.run_sync(lambda: list(work.map_stream(range(200), limit=7)))

    assert await main() == list(range(200))


# --- options -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, None, "3"])
def test_the_limit_is_a_whole_number_from_1(limit: Any) -> None:
    work = task(Gauge().__call__)
    with pytest.raises(OptionError, match=r"limit=.*whole number from 1"):
        work.map_stream([1], limit=limit)


@pytest.mark.parametrize("iterable", [5, None, "abc", b"abc"])
def test_what_cannot_be_iterated_over_is_refused(iterable: Any) -> None:
    work = task(Gauge().__call__)
    with pytest.raises(OptionError, match=r"iterable=.*an iterable of items"):
        work.map_stream(iterable, limit=1)


async def test_a_future_is_refused() -> None:
    work = task(Gauge().__call__)

    @flow
    async def main() -> None:
        future = work.submit(1)
        with pytest.raises(OptionError, match="iterable=<TaskFuture"):
            work.map_stream(future, limit=1)  # type: ignore[call-overload]
        await future

    await main()


def test_generators_are_streamed_not_mapped() -> None:
    @task
    async def generator(number: int) -> AsyncIterator[int]:
        yield number

    with pytest.raises(TypeError, match="yields its items"):
        generator.map_stream([1], limit=1)


# --- size ----------------------------------------------------------------------------------

MANY = """
import resource, sys
import anyio
from asyncflow import flow, task

@task
async def same(number: int) -> int:
    return number

async def numbers(count: int):
    for number in range(count):
        yield number

def megabytes() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6

@flow
async def main() -> float:
    count, total, first = int(sys.argv[2]), 0, 0.0
    source = numbers(count) if sys.argv[3] == "async" else range(count)
    async for number in same.map_stream(source, limit=100):
        total += number
        if number == count // 5:
            first = megabytes()
    assert total == count * (count - 1) // 2
    return megabytes() - first

print(anyio.run(main, backend=sys.argv[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@EITHER_SOURCE
def test_memory_stays_the_same_over_100_000_items(run_python: RunPython, backend: str, kind: str) -> None:
    assert float(run_python(MANY, backend, "100000", kind, timeout=200).stdout) < 8
