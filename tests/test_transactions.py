"""Transactions: what is committed, what is undone, in which order, how often; what a cancellation or a kill leaves."""

# To mypy, lines after a helper that swallows an exception are never reached; and the hooks here are of any type.
# mypy: disable-error-code="unreachable, untyped-decorator, no-any-return"

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncflow import Runtime, cancel_flow_run, flow, get_client, runtime, task
from asyncflow._rows import ACTIVE, COMMITTED, FLOW, INTERRUPTED, ROLLED_BACK, STATE_CODES, CachedRow, TransactionRow
from asyncflow._run import current_transaction
from asyncflow.abc import RunQuery
from asyncflow.cache_policies import INPUTS
from asyncflow.exceptions import (
    LimitDeadlockError,
    NotJSONError,
    OptionError,
    RunCancelledError,
    StoreError,
    TransactionEndedError,
    TransactionReusedError,
    TransactionValueError,
    WaitOnEventLoopError,
)
from asyncflow.runtime import HOME
from asyncflow.states import StateType
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing import Attempt, cancel_everywhere
from asyncflow.transactions import Transaction, TransactionState, get_transaction, transaction
from tests.conftest import RunPython

Seen = list[str]
LONG = 30.0


@contextmanager
def failing() -> Iterator[None]:
    """A block that raises what it says itself: `raise ValueError("why")`."""
    with pytest.raises(ValueError, match="why"):
        yield


@contextmanager
def interrupted_in_the_end() -> Iterator[None]:
    with pytest.raises(KeyboardInterrupt):
        yield


def hooked(seen: Seen, name: str, *, colour: str = "async") -> Any:
    """A task of that name whose body and hooks note what they do; the hooks are of the colour, too."""

    async def body() -> str:
        seen.append(name)
        return name

    def sync_body() -> str:
        seen.append(name)
        return name

    made: Any = task(body, name=name) if colour == "async" else task(sync_body, name=name)
    for option in ("commit", "rollback"):
        getattr(made, f"on_{option}")(noting(seen, f"{option} {name}", colour))
    return made


def noting(seen: Seen, what: str, colour: str) -> Any:
    def hook(txn: Transaction) -> None:
        assert isinstance(txn, Transaction)
        assert get_transaction() is None
        seen.append(what)

    async def async_hook(txn: Transaction) -> None:
        await anyio.sleep(0)
        hook(txn)

    return hook if colour == "sync" else async_hook


def rows(*, key: str | None = None) -> list[TransactionRow]:
    """The recorded transactions of the default runtime, oldest first."""
    services = HOME.in_force()
    assert services is not None
    return services.store.read_transactions(key=key)[::-1]


async def read_rows() -> list[TransactionRow]:
    return await anyio.to_thread.run_sync(rows)


def states_of(found: list[TransactionRow]) -> list[int]:
    return [row.state for row in found]


# --- what can be asked for -----------------------------------------------------------------


@pytest.mark.parametrize("key", ["", 3, b"x"])
def test_a_key_is_a_text(key: Any) -> None:
    with pytest.raises(OptionError, match="key="):
        transaction(key)


def test_the_isolation_is_one_of_two_and_serializable_needs_a_key() -> None:
    with pytest.raises(OptionError, match="isolation="):
        transaction("x", isolation="snapshot")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="a key="):
        transaction(isolation="serializable")


async def test_with_on_an_event_loop_says_what_to_write() -> None:
    with pytest.raises(WaitOnEventLoopError, match=r"async with transaction\('x'\):"):
        transaction("x").__enter__()


def test_hooks_are_added_to_the_task_itself_and_given_back() -> None:
    def hook(txn: Transaction) -> None: ...

    class Shop:
        @task
        def pay(self) -> None: ...

        assert pay.on_rollback(hook) is hook

    @task
    def part() -> None: ...

    before = part.with_options(name="other")
    assert part.on_commit(hook) is hook
    assert part.on_commit(print) is print
    assert part._spec.options.on_commit == (hook, print)
    assert part.with_options(name="copy")._spec.options.on_commit == (hook, print)
    assert before._spec.options.on_commit == ()
    assert Shop().pay._spec.options.on_rollback == (hook,)
    with pytest.raises(OptionError, match="on_commit="):
        part.on_commit("nothing that can be called")  # type: ignore[type-var]


# --- committing and rolling back -----------------------------------------------------------


async def test_commit_hooks_run_in_order_after_the_block() -> None:
    seen: Seen = []
    a, b, c = (hooked(seen, name) for name in "abc")

    @flow
    async def main() -> str:
        async with transaction() as txn:
            assert get_transaction() is txn
            assert txn.state is TransactionState.ACTIVE
            await a()
            await b()
            await c()
            assert seen == ["a", "b", "c"]
        assert get_transaction() is None
        return txn.state.value

    assert await main() == "committed"
    assert seen == ["a", "b", "c", "commit a", "commit b", "commit c"]
    [row] = await read_rows()
    assert row.state == COMMITTED
    assert row.ended is not None
    assert row.hooks is None
    assert row.run_id == (await get_client().read_flow_runs())[0].id.bytes


@pytest.mark.parametrize("hooks", ["async", "sync"])
async def test_rollback_hooks_run_once_in_reverse_and_the_exception_passes(hooks: str) -> None:
    seen: Seen = []
    a, b, c = (hooked(seen, name, colour=hooks) for name in "abc")
    error = ValueError("why")
    states: list[TransactionState] = []

    @flow
    async def main() -> None:
        txn = transaction()
        try:
            async with txn:
                await a.acall()
                await b.acall()
                await c.acall()
                raise error
        finally:
            states.append(txn.state)

    with pytest.raises(ValueError, match="why") as raised:
        await main()
    assert raised.value is error
    assert seen == ["a", "b", "c", "rollback c", "rollback b", "rollback a"]
    assert states == [TransactionState.ROLLED_BACK]
    assert states_of(await read_rows()) == [ROLLED_BACK]


def test_in_sync_code(home: Path) -> None:
    seen: Seen = []
    a, b = (hooked(seen, name, colour="sync") for name in "ab")
    threads: set[int] = set()
    a.on_rollback(lambda _: threads.add(threading.get_ident()))
    c = hooked(seen, "c")  # async: its body and its hooks run on the process's own loop

    @flow
    def main(fails: bool) -> str:
        with transaction() as txn:
            a()
            b()
            c.submit()
            if fails:
                raise ValueError("why")
        return txn.state.value

    assert main(False) == "committed"
    assert sorted(seen[:3]) == ["a", "b", "c"]
    assert seen[3:] == ["commit a", "commit b", "commit c"]
    seen.clear()
    with pytest.raises(ValueError, match="why"):
        main(True)
    # What was submitted and goes on when the block raises is cancelled, or has just ended.
    assert [each for each in seen if each.startswith("rollback")][-2:] == ["rollback b", "rollback a"]
    assert not [each for each in seen if each.startswith("commit")]
    assert threads == {threading.get_ident()}
    assert states_of(rows()) == [COMMITTED, ROLLED_BACK]


def test_outside_of_runs_and_without_a_runtime(home: Path) -> None:
    seen: Seen = []
    a = hooked(seen, "a", colour="sync")
    with transaction("first") as txn:
        a()
    assert txn.state is TransactionState.COMMITTED
    assert seen == ["a", "commit a"]
    assert [(row.key, row.run_id) for row in rows()] == [("first", None)]


async def test_runs_of_every_kind_inside_belong_to_it() -> None:
    seen: Seen = []
    called, submitted, mapped, nested, threaded = (
        hooked(seen, name) for name in ("called", "submitted", "mapped", "nested", "threaded")
    )
    sync = hooked(seen, "sync", colour="sync")

    @flow
    async def inner() -> None:
        await nested()

    @flow
    def sync_inner() -> None:
        sync()

    @flow
    async def main() -> None:
        async with transaction():
            await called()
            await submitted.submit()
            await mapped.with_options(name="mapped").submit()
            await inner()
            await sync_inner.acall()
            async with anyio.create_task_group() as group:
                group.start_soon(threaded)
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        await main()
    order = ["called", "submitted", "mapped", "nested", "sync", "threaded"]
    assert seen == [*order, *(f"rollback {name}" for name in reversed(order))]


async def test_only_what_completed_has_hooks_to_be_called() -> None:
    seen: Seen = []
    a = hooked(seen, "a")

    @task
    async def broken() -> None:
        raise ZeroDivisionError

    broken.on_rollback(noting(seen, "rollback broken", "sync"))
    broken.on_commit(noting(seen, "commit broken", "sync"))

    @flow
    async def main(*, catch: bool) -> None:
        async with transaction():
            await a()
            try:
                await broken()
            except ZeroDivisionError:
                if not catch:
                    raise

    await main(catch=True)
    assert seen == ["a", "commit a"]  # a call whose exception was caught was looked at
    with pytest.raises(ZeroDivisionError):
        await main(catch=False)
    assert seen[2:] == ["a", "rollback a"]


async def test_a_submitted_run_that_failed_unseen_rolls_back_and_its_exception_is_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: Seen = []
    a = hooked(seen, "a")
    error = KeyError("in a task")

    @task
    async def broken() -> None:
        await anyio.sleep(0.01)
        raise error

    @flow
    async def main(*, look: bool) -> bool:
        async with transaction():
            future = broken.submit()
            await a()
            if look:
                await future.wait_async()
                assert future.state.is_failed()
        return True

    with pytest.raises(KeyError) as raised:
        await main(look=False)
    assert raised.value is error
    assert seen == ["a", "rollback a"]
    assert "nobody looked" not in caplog.text  # the block's end did
    assert await main(look=True)
    assert seen[2:] == ["a", "commit a"]


async def test_the_end_of_the_block_waits_for_runs_that_go_on() -> None:
    seen: Seen = []

    @task
    async def slow() -> None:
        await anyio.sleep(0.05)
        seen.append("slow")

    slow.on_commit(noting(seen, "commit slow", "async"))

    @flow
    async def main() -> None:
        async with transaction():
            slow.submit()
        seen.append("after")

    await main()
    assert seen == ["slow", "commit slow", "after"]


async def test_the_end_of_the_block_waits_for_what_follows_the_end_of_a_run() -> None:
    seen: Seen = []

    async def slowly(*_: Any) -> None:
        await anyio.sleep(0.05)
        seen.append("slowly")

    @task(on_completion=[slowly])
    async def part() -> None: ...

    @flow
    async def main() -> None:
        async with transaction():
            part.submit()
        seen.append("after")

    await main()
    assert seen == ["slowly", "after"]


async def test_a_stream_that_is_left_open_is_closed_with_the_block() -> None:
    seen: Seen = []

    @task
    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            seen.append("closed")

    @flow
    async def main() -> None:
        async with transaction():
            stream = numbers.stream()
            async for _ in stream:
                break
        seen.append("after")
        del stream

    with anyio.fail_after(LONG):
        await main()
    assert seen == ["closed", "after"]


async def test_in_a_sync_task_in_a_worker_thread() -> None:
    seen: Seen = []
    a, c = hooked(seen, "a", colour="sync"), hooked(seen, "c")

    @task
    def work(*, fails: bool) -> None:
        with transaction():
            a()
            c.submit().result()
            if fails:
                raise ValueError("why")

    @flow
    async def main(*, fails: bool) -> None:
        await work.acall(fails=fails)

    await main(fails=False)
    assert seen == ["a", "c", "commit a", "commit c"]
    seen.clear()
    with pytest.raises(ValueError, match="why"):
        await main(fails=True)
    assert seen == ["a", "c", "rollback c", "rollback a"]


async def test_a_block_that_raises_cancels_what_goes_on_before_its_hooks_run() -> None:
    seen: Seen = []
    a = hooked(seen, "a")
    begun = anyio.Event()

    @task
    async def endless() -> None:
        begun.set()
        try:
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            seen.append("endless has ended")

    @flow
    async def main() -> str:
        with failing():
            async with transaction():
                await a()
                endless.submit()
                await begun.wait()
                raise ValueError("why")
        return "goes on"

    assert await main() == "goes on"
    assert seen == ["a", "endless has ended", "rollback a"]
    [ended] = [run for run in await get_client().read_task_runs() if run.state.is_cancelled()]
    assert ended.state.message == "cancelled because its transaction is rolled back"


async def test_rollback_can_be_asked_for_and_raises_nothing() -> None:
    seen: Seen = []
    a, b = (hooked(seen, name) for name in "ab")

    @flow
    async def main() -> str:
        async with transaction() as txn:
            await a()
            txn.rollback()
            await b()
        return txn.state.value

    assert await main() == "rolled back"
    assert seen == ["a", "b", "rollback b", "rollback a"]


@pytest.mark.parametrize("hooks", ["async", "sync"])
async def test_a_commit_hook_that_raises_rolls_everything_back(hooks: str) -> None:
    seen: Seen = []
    a, b = (hooked(seen, name, colour=hooks) for name in "ab")
    error = ZeroDivisionError("in a hook")

    def refuse(_: Transaction) -> None:
        raise error

    async def async_refuse(_: Transaction) -> None:
        raise error

    b.on_commit(async_refuse if hooks == "async" else refuse)

    @flow
    async def main() -> None:
        async with transaction():
            await a.acall()
            await b.acall()

    with pytest.raises(ZeroDivisionError) as raised:
        await main()
    assert raised.value is error
    assert seen == ["a", "b", "commit a", "commit b", "rollback b", "rollback a"]
    assert states_of(await read_rows()) == [ROLLED_BACK]


async def test_a_rollback_hook_that_raises_is_logged_and_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: Seen = []
    a, b, c = (hooked(seen, name) for name in "abc")

    async def bad(_: Transaction) -> None:
        raise ZeroDivisionError("in a hook")

    def exits(_: Transaction) -> None:
        sys.exit("in a hook")

    b.on_rollback(bad)
    c.on_rollback(exits)

    @flow
    async def main() -> None:
        async with transaction():
            await a()
            await b()
            await c()
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        await main()
    assert seen[3:] == ["rollback c", "rollback b", "rollback a"]
    assert "bad of task run 'b-" in caplog.text
    assert "exits of task run 'c-" in caplog.text


async def test_what_a_rollback_hook_calls_is_recorded_and_stays() -> None:
    @task
    async def pay() -> str:
        return "paid"

    @task
    async def pay_back() -> str:
        return "paid back"

    @pay.on_rollback
    async def undo(txn: Transaction) -> None:
        assert await pay_back() == "paid back"

    @flow
    async def main() -> None:
        async with transaction():
            await pay()
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        await main()
    assert {run.task_name for run in await get_client().read_task_runs()} == {"pay", "pay_back"}


async def test_results_of_a_transaction_that_was_rolled_back_are_marked() -> None:
    @task
    async def work(number: int) -> int:
        return number

    @flow
    async def inner() -> int:
        return await work(2)

    @flow
    async def main() -> None:
        await work(0)
        async with transaction():
            await work(1)
        with failing():
            async with transaction():
                await inner()
                async with transaction():
                    await work(3)
                raise ValueError("why")

    await main()
    marked = {
        json.loads(row.result or "null")
        for row in await anyio.to_thread.run_sync(all_runs)
        if row.kind == 1 and json.loads(row.details or "{}").get("rolled_back")
    }
    assert marked == {2, 3}


def all_runs() -> list[Any]:
    services = HOME.in_force()
    assert services is not None
    [root] = services.store.read_oldest(1)
    return services.store.read_tree(root)


# --- nesting -------------------------------------------------------------------------------


async def test_an_inner_transaction_is_committed_with_the_outer_one() -> None:
    seen: Seen = []
    a, b, c = (hooked(seen, name) for name in "abc")

    @flow
    async def main(*, fails: bool) -> list[TransactionState]:
        states: list[TransactionState] = []
        try:
            async with transaction() as outer:
                await a()
                async with transaction() as inner:
                    await b()
                states.append(inner.state)
                await c()
                if fails:
                    raise ValueError
        except ValueError:
            pass
        return [*states, inner.state, outer.state]

    state = TransactionState
    main = main.with_options(persist_result=False)
    assert await main(fails=False) == [state.STAGED, state.COMMITTED, state.COMMITTED]
    assert seen == ["a", "b", "c", "commit a", "commit b", "commit c"]
    seen.clear()
    assert await main(fails=True) == [state.STAGED, state.ROLLED_BACK, state.ROLLED_BACK]
    assert seen == ["a", "b", "c", "rollback c", "rollback b", "rollback a"]


async def test_an_inner_transaction_that_rolled_back_leaves_the_outer_one_alive() -> None:
    seen: Seen = []
    a, b, c = (hooked(seen, name) for name in "abc")

    @flow
    async def main() -> str:
        async with transaction() as outer:
            await a()
            with failing():
                async with transaction():
                    await b()
                    raise ValueError("why")
            assert seen == ["a", "b", "rollback b"]
            await c()
        return outer.state.value

    assert await main() == "committed"
    assert seen[3:] == ["c", "commit a", "commit c"]
    assert states_of(await read_rows()) == [COMMITTED, ROLLED_BACK]


async def test_an_inner_block_that_outlives_the_outer_one_is_rolled_back() -> None:
    seen: Seen = []
    a = hooked(seen, "a")
    entered, left = anyio.Event(), anyio.Event()
    errors: list[BaseException] = []

    async def inner() -> None:
        try:
            async with transaction():
                await a()
                entered.set()
                await left.wait()
        except TransactionEndedError as error:
            errors.append(error)

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            async with transaction():
                group.start_soon(inner)
                await entered.wait()
            left.set()

    await main()
    assert seen == ["a", "rollback a"]
    assert len(errors) == 1


# --- values --------------------------------------------------------------------------------


async def test_values_are_copies_seen_by_what_is_inside_and_by_hooks() -> None:
    given: list[Any] = []
    a = hooked([], "a")
    a.on_commit(lambda txn: given.append(txn.get("outer")))

    @flow
    async def main() -> None:
        async with transaction() as outer:
            value = {"list": [1]}
            outer.set("outer", value)
            value["list"].append(2)
            outer.get("outer")["list"].append(3)
            async with transaction() as inner:
                await a()
                assert inner.get("outer") == {"list": [1]}
                inner.set("inner", object)
            assert outer.get("inner", None) is None
            assert inner.get("inner") is object
            with pytest.raises(TransactionValueError, match=r"txn\.get\('inner', None\)"):
                outer.get("inner")

    await main()
    assert given == [{"list": [1]}]
    [row] = await read_rows()
    assert json.loads(row.data or "") == {"outer": {"list": [1]}}


async def test_with_a_key_a_value_has_to_be_json() -> None:
    async with transaction("k") as txn:
        with pytest.raises(NotJSONError, match="x is not JSON"):
            txn.set("x", object())
        txn.set("y", 1)
    with pytest.raises(TransactionEndedError, match="'z' was set"):
        txn.set("z", 1)


# --- what may not be -----------------------------------------------------------------------


async def test_a_transaction_is_entered_once() -> None:
    txn = transaction()
    async with txn:
        with pytest.raises(TransactionReusedError):
            await txn.__aenter__()
    with pytest.raises(TransactionReusedError):
        await txn.__aenter__()


async def test_nothing_begins_inside_a_transaction_that_is_ending_or_has_ended() -> None:
    seen: Seen = []
    a, stray = hooked(seen, "a"), hooked(seen, "stray")
    rolling, tried = anyio.Event(), anyio.Event()
    errors: list[TransactionEndedError] = []

    @a.on_rollback
    async def slowly(_: Transaction) -> None:
        rolling.set()
        await tried.wait()

    async def call() -> None:
        for attempt in (stray, stray.submit, enter):
            try:
                await attempt()
            except TransactionEndedError as error:
                errors.append(error)

    async def enter() -> None:
        async with transaction():
            pass

    async def late() -> None:
        await rolling.wait()
        await call()
        tried.set()

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            with failing():
                async with transaction("k"):
                    group.start_soon(late)
                    await a()
                    raise ValueError("why")
            async with transaction("other"):
                after = current_transaction.get()
            current_transaction.set(after)  # as in a task that was started inside
            await call()

    await main()
    assert seen == ["a", "rollback a"]
    assert len(errors) == 6
    assert "'stray' was called inside transaction('k'), whose block is ending or has ended" in str(errors[0])
    assert "transaction() was entered inside transaction('other')" in str(errors[5])


# --- cancelling ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["scope", "flow run"])
async def test_a_cancellation_in_the_middle_rolls_back_whatever_comes_after_it(how: str) -> None:
    seen: Seen = []
    a, b = (hooked(seen, name) for name in "ab")
    third, rolling = anyio.Event(), anyio.Event()

    @task
    async def c() -> None:
        third.set()
        await anyio.sleep(LONG)

    @a.on_rollback
    async def slowly(_: Transaction) -> None:
        rolling.set()
        await anyio.sleep(0.1)
        seen.append("slowly")

    ids: list[Any] = []

    @flow
    async def main() -> None:
        ids.append(runtime.flow_run.id)
        async with transaction():
            await a()
            await b()
            await c()

    async with anyio.create_task_group() as group:

        async def call() -> None:
            try:
                await main()
            except RunCancelledError:
                assert how == "flow run"

        async def stop() -> None:
            if how == "scope":
                group.cancel_scope.cancel()
            else:
                await cancel_flow_run(ids[0])

        group.start_soon(call)
        with anyio.CancelScope(shield=True):
            await third.wait()
            await stop()
            await rolling.wait()
            await stop()
            await anyio.sleep(0.01)
            await stop()
    assert seen == ["a", "b", "rollback b", "slowly", "rollback a"]
    with anyio.CancelScope(shield=True):
        assert states_of(await read_rows()) == [ROLLED_BACK]
        [run] = await get_client().read_flow_runs()
        assert run.state.is_cancelled()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_second_and_a_third_native_cancel_do_not_cut_the_hooks_short() -> None:
    seen: Seen = []
    a, b = (hooked(seen, name) for name in "ab")
    third, rolling = asyncio.Event(), asyncio.Event()

    @task
    async def c() -> None:
        third.set()
        await asyncio.sleep(LONG)

    @b.on_rollback
    async def slowly(_: Transaction) -> None:
        rolling.set()
        await asyncio.sleep(0.1)
        seen.append("slowly")

    @flow
    async def main() -> None:
        async with transaction():
            await a()
            await b()
            await c()

    running = asyncio.create_task(main())
    await third.wait()
    running.cancel("first")
    await rolling.wait()
    running.cancel("second")
    await asyncio.sleep(0.01)
    running.cancel("third")
    with pytest.raises(asyncio.CancelledError, match="first"):
        await running
    assert seen == ["a", "b", "slowly", "rollback b", "rollback a"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_during_the_rollback_of_an_exception_passes_on() -> None:
    a = hooked([], "a")
    rolling = asyncio.Event()

    @a.on_rollback
    async def slowly(_: Transaction) -> None:
        rolling.set()
        await asyncio.sleep(0.05)

    async def block() -> None:
        async with transaction():
            await a()
            raise ValueError("why")

    running = asyncio.create_task(block())
    await rolling.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await running
    assert isinstance(cancelled.value.__context__, ValueError)


@pytest.mark.parametrize("how", ["scope", "native", "wait_for"])
async def test_cancelled_at_any_await_it_is_committed_or_undone_and_the_record_says_which(how: Any) -> None:
    seen: Seen = []
    a, b, c = (hooked(seen, name) for name in "abc")

    @flow
    async def main() -> None:
        async with transaction() as txn:
            await a()
            async with transaction():
                await b.submit()
            txn.set("x", 1)
            c.submit()
        seen.append("end")

    async def call() -> None:
        seen.clear()
        before.update(row.id for row in store.read_transactions())
        await main()

    def check(attempt: Attempt) -> None:
        # The record of a block that never began is ended behind its back.
        assert soon(lambda: all(row.ended is not None for row in store.read_transactions()))
        new = [row for row in store.read_transactions() if row.id not in before]
        done = [name for name in ("a", "b", "c") if name in seen]
        commits = [each for each in seen if each.startswith("commit")]
        undone = [each for each in seen if each.startswith("rollback")]
        if new and new[-1].state == COMMITTED:  # the outer one is the first
            assert commits == ["commit a", "commit b", "commit c"]
            assert undone == []
        else:
            assert "end" not in seen
            assert all(row.state == ROLLED_BACK for row in new)
            assert len(set(undone)) == len(undone)
            left = [name for name in done if f"rollback {name}" not in undone]
            assert set(left) <= unfinished(store), "what completed is undone"
            assert undone == sorted(undone, reverse=True)

    store, before = MemoryStore(), set[bytes]()
    with Runtime(store=store):
        report = await cancel_everywhere(call, how=how, check=check)
    assert report.points >= 3  # eager tasks suspend seldom


def unfinished(store: MemoryStore) -> set[str]:
    """Names of the tasks of the latest run that did not complete."""
    root = max(row.id for row in store.read_runs(RunQuery(kinds=frozenset({FLOW}))))
    return {row.function for row in store.read_tree(root) if row.state != STATE_CODES[StateType.COMPLETED]}


async def test_a_cancellation_while_the_end_waits_or_a_commit_hook_runs_rolls_back() -> None:
    seen: Seen = []
    a, b = (hooked(seen, name) for name in "ab")
    waiting = anyio.Event()

    @task
    async def slow() -> None:
        waiting.set()
        await anyio.sleep(LONG)

    @b.on_commit
    async def hangs(_: Transaction) -> None:
        waiting.set()
        await anyio.sleep(LONG)

    async def cancelled(block: Callable[[], Any]) -> None:
        nonlocal waiting
        waiting = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(block)
            await waiting.wait()
            group.cancel_scope.cancel()

    @flow
    async def waits() -> None:
        async with transaction():
            await a()
            slow.submit()

    @flow
    async def commits() -> None:
        async with transaction():
            await a()
            await b()

    await cancelled(waits)
    assert seen == ["a", "rollback a"]
    seen.clear()
    await cancelled(commits)
    assert seen == ["a", "b", "commit a", "commit b", "rollback b", "rollback a"]


async def test_rollback_hooks_have_a_deadline_and_what_was_not_undone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    seen: Seen = []
    async with Runtime(store=MemoryStore(), hook_seconds=0.1) as opened:
        a, b, c = (hooked(seen, name) for name in "abc")

        @b.on_rollback
        async def hangs(_: Transaction) -> None:
            await anyio.sleep(LONG)

        @flow
        async def main() -> None:
            async with transaction():
                await a()
                await b()
                await c()
                raise ValueError("why")

        started = time.monotonic()
        with pytest.raises(ValueError, match="why"):
            await main()
        assert time.monotonic() - started < LONG / 3
        assert seen == ["a", "b", "c", "rollback c"]
        assert opened.services is not None
        [row] = opened.services.store.read_transactions()
    assert row.state == ROLLED_BACK
    left = [each.rpartition("<locals>.")[2].partition(" of ")[0] for each in json.loads(row.hooks or "[]")]
    assert left == ["hangs", "async_hook", "async_hook"]
    assert "in part" in caplog.text


def test_a_deadline_in_sync_code(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: Seen = []
    with Runtime(hook_seconds=0.05):
        a, b = (hooked(seen, name, colour="sync") for name in "ab")
        b.on_rollback(lambda _: time.sleep(0.06))  # nothing can cut it short; it is the last one that is called
        with failing(), transaction():
            a()
            b()
            raise ValueError("why")
    assert seen == ["a", "b"]
    assert "in part" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_ctrl_c_in_sync_code_rolls_back_and_a_second_one_cuts_one_hook_short(home: Path) -> None:
    seen: Seen = []
    a, b, c = (hooked(seen, name, colour="sync") for name in "abc")

    @b.on_rollback
    def interrupted(_: Transaction) -> None:
        signal.raise_signal(signal.SIGINT)
        seen.append("went on")

    @flow
    def main() -> None:
        with transaction():
            a()
            b()
            c()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        main()
    assert seen == ["a", "b", "c", "rollback c", "rollback b", "rollback a"]
    assert states_of(rows()) == [ROLLED_BACK]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_who_insists_on_ctrl_c_leaves_word_of_what_was_not_undone(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: Seen = []
    a = hooked(seen, "a", colour="sync")
    for _ in range(3):
        a.on_rollback(lambda _: signal.raise_signal(signal.SIGINT))
    with interrupted_in_the_end(), transaction() as txn:
        a()
        raise ValueError("why")
    assert seen == ["a"]
    assert txn.state is TransactionState.INTERRUPTED
    assert "not called to their end" in caplog.text
    assert soon(lambda: states_of(rows()) == [INTERRUPTED])


def soon(is_so: Callable[[], bool]) -> bool:
    """Whether something comes true within a time that is long on any machine."""
    until = time.monotonic() + LONG
    while not is_so():
        if time.monotonic() > until:
            return False
        os.sched_yield()  # not a sleep, which no loop may do; what is waited for is a thread
    return True


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_coroutine_that_is_closed_leaves_word_and_waits_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: Seen = []
    a = hooked(seen, "a")
    txn = transaction()

    async def block() -> None:
        async with txn:
            await a()
            await Forever()

    coroutine = block()
    task = asyncio.ensure_future(_driven(coroutine))
    while not seen or txn.state is TransactionState.PENDING:
        await asyncio.sleep(0)
    await asyncio.wait([task])
    coroutine.close()
    assert txn.state is TransactionState.INTERRUPTED
    assert "async_hook of task run 'a-" in caplog.text
    assert await asyncio.to_thread(soon, lambda: states_of(rows()) == [INTERRUPTED])


class Forever:
    """Suspends, and says so."""

    def __await__(self) -> Any:
        yield "forever"


async def _driven(coroutine: Any) -> None:
    """Drives a coroutine until it waits for ever."""

    class Step:
        def __await__(self) -> Any:
            sent = None
            while True:
                waits = coroutine.send(sent)
                if waits == "forever":
                    return
                sent = yield waits

    await Step()


async def test_an_async_generator_that_is_closed_is_rolled_back() -> None:
    seen: Seen = []
    a = hooked(seen, "a")

    async def items() -> AsyncIterator[int]:
        async with transaction():
            await a()
            yield 1

    @flow
    async def main() -> None:
        generator: Any = items()
        async for _ in generator:
            break
        await generator.aclose()

    await main()
    assert seen == ["a", "rollback a"]
    assert states_of(await read_rows()) == [ROLLED_BACK]


# --- keys ----------------------------------------------------------------------------------


async def test_a_key_is_done_once() -> None:
    seen: Seen = []
    a = hooked(seen, "a")

    @flow
    async def main(*, fails: bool = False) -> Any:
        async with transaction("order 4711") as txn:
            if txn.is_committed():
                return txn.get("number")
            txn.set("number", await number())
            await a()
            if fails:
                raise ValueError("why")
            return "new"

    @task
    async def number() -> int:
        return 7

    with pytest.raises(ValueError, match="why"):
        await main(fails=True)
    assert await main() == "new"
    assert await main() == 7
    assert await main() == 7
    assert seen == ["a", "rollback a", "a", "commit a"]
    assert states_of(await read_rows()) == [ROLLED_BACK, COMMITTED]


async def test_work_that_is_done_again_under_a_committed_key_is_a_transaction_as_well() -> None:
    seen: Seen = []
    a = hooked(seen, "a")
    for value in (1, 2):
        async with transaction("k") as txn:
            assert txn.is_committed() == (value == 2)
            txn.set("value", value)
            await a()
        assert txn.is_committed()
    with failing():
        async with transaction("k") as txn:
            assert txn.get("value") == 2
            await a()
            raise ValueError("why")
    assert txn.state is TransactionState.ROLLED_BACK
    assert seen == ["a", "commit a"] * 2 + ["a", "rollback a"]
    async with transaction("k") as txn:
        assert txn.get("value") == 2


async def test_a_key_inside_is_committed_with_what_is_around() -> None:
    for fails in (True, False):
        try:
            async with transaction():
                async with transaction("inner") as inner:
                    assert not inner.is_committed()
                    inner.set("x", 1)
                assert inner.state is TransactionState.STAGED
                if fails:
                    raise ValueError
        except ValueError:
            assert inner.state is TransactionState.ROLLED_BACK
    async with transaction("inner") as again:
        assert again.is_committed()
        assert again.get("x") == 1


def test_another_process_knows_what_was_committed(run_python: RunPython, home: Path) -> None:
    code = """
import sys
from asyncflow.transactions import transaction
with transaction("k") as txn:
    print(txn.is_committed(), txn.get("made by", None))
    if not txn.is_committed():
        txn.set("made by", sys.argv[1])
"""
    assert run_python(code, "first").stdout == "False None\n"
    assert run_python(code, "second").stdout == "True first\n"


async def test_serializable_lets_one_of_fifty_do_the_work() -> None:
    inside = most = done = 0

    @task
    async def work() -> None:
        nonlocal inside, most, done
        inside += 1
        most = max(most, inside)
        await anyio.sleep(0.01)
        inside -= 1
        done += 1

    @flow
    async def main() -> None:
        async with transaction("k", isolation="serializable") as txn:
            if not txn.is_committed():
                await work()

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(main)
    assert (done, most) == (1, 1)


async def test_serializable_blocks_of_a_key_inside_each_other_are_refused() -> None:
    async with transaction("k", isolation="serializable"):
        with pytest.raises(LimitDeadlockError, match=r"transaction\('k'\)"):
            await transaction("k", isolation="serializable").__aenter__()
        async with transaction("other", isolation="serializable"):
            pass


HOLDER = """
import sys, time
from asyncflow.transactions import transaction
with transaction("k", isolation="serializable") as txn:
    print("in", flush=True)
    sys.stdin.readline()
    txn.set("by", "the other process")
"""


@pytest.fixture
def holder(home: Path) -> Any:
    """Another process that is in the block of key k, until it is told to leave, or killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ.copy(), text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


async def test_serializable_waits_for_another_process(holder: subprocess.Popen[str]) -> None:
    entered = anyio.Event()

    async def enter() -> None:
        async with transaction("k", isolation="serializable") as txn:
            entered.set()
            assert txn.get("by") == "the other process"

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            # One that waits and is cancelled is gone at once, and does not have the key when it is free.
            with anyio.move_on_after(0.2) as scope:
                await enter()
            assert scope.cancelled_caught
            group.start_soon(enter)
            await anyio.sleep(0.2)
            assert not entered.is_set()
            await anyio.to_thread.run_sync(lambda: holder.communicate("\n"))


async def test_a_killed_process_gives_its_key_back(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    with anyio.fail_after(LONG):
        async with transaction("k", isolation="serializable") as txn:
            assert not txn.is_committed()


# --- the record ----------------------------------------------------------------------------

KILLED = """
import sys, time
from asyncflow import flow, task
from asyncflow.transactions import transaction

@task
def pay():
    return 1

@pay.on_rollback
def pay_back(txn):
    ...

@flow
def main():
    with transaction("order") as txn:
        txn.set("amount", 3)
        pay()
        print("paid", flush=True)
        time.sleep(60)

main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_a_process_that_is_killed_inside_is_reported(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, env=os.environ.copy())
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"paid\n"
        with Runtime() as opened:  # it lives: nobody takes its transaction for interrupted
            services = opened.services
            assert services is not None
            store = services.store
            assert soon(lambda: "pay_back of task run 'pay-" in (store.read_transactions()[0].hooks or ""))
            assert store.read_transactions()[0].state == ACTIVE
    finally:
        process.kill()
        process.communicate()
    assert not caplog.text
    with Runtime() as opened, transaction("order") as txn:
        assert not txn.is_committed()
        services = opened.services
        assert services is not None
        [row] = services.store.read_transactions(state=INTERRUPTED)
    assert json.loads(row.data or "") == {"amount": 3}
    warning = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert "on_rollback pay_back of task run 'pay-" in warning
    assert "'order'" in warning


async def test_values_to_be_cached_are_written_when_it_is_committed() -> None:
    cached = CachedRow(key="k", task="t", run_id=b"r" * 16, created=1, expires=None, result="7", result_file=None)

    def read() -> CachedRow | None:
        services = HOME.in_force()
        assert services is not None
        return services.store.read_cached("k")

    for fails in (True, False):
        with failing() if fails else anyio.CancelScope():
            async with transaction():
                async with transaction():
                    enclosing = current_transaction.get()
                    assert enclosing is not None
                    enclosing.stage(cached)
                assert await anyio.to_thread.run_sync(read) is None
                if fails:
                    raise ValueError("why")
        assert (await anyio.to_thread.run_sync(read) is None) == fails


async def test_a_cached_task_is_run_once_and_has_its_hooks_called_once_however_its_transactions_end() -> None:
    seen: Seen = []

    @task(cache_policy=INPUTS)
    async def work(number: int) -> int:
        seen.append("work")
        return number

    work.on_commit(noting(seen, "commit", "async"))
    work.on_rollback(noting(seen, "rollback", "async"))

    @flow
    async def main(*, fails: bool) -> int:
        async with transaction():
            future = work.submit(1)
            if fails:
                await future
                raise ValueError("why")
        return await future

    with pytest.raises(ValueError, match="why"):
        await main(fails=True)
    assert seen == ["work", "rollback"]
    assert await main(fails=False) == 1
    assert seen[2:] == ["work", "commit"]
    assert await main(fails=False) == 1
    with pytest.raises(ValueError, match="why"):
        await main(fails=True)
    assert seen[4:] == []  # its value came from the cache: there is nothing of it to commit or to undo


class Unwritable(MemoryStore):
    """A store that cannot record a commit: its disk is full, say."""

    def write_transaction(self, row: TransactionRow, rolled_back: Any = ()) -> None:
        if row.state == COMMITTED:
            raise StoreError("writing", "here", "no space left")
        super().write_transaction(row, rolled_back)


async def test_what_cannot_be_recorded_as_committed_is_rolled_back() -> None:
    seen: Seen = []
    store = Unwritable()
    async with Runtime(store=store):
        a = hooked(seen, "a")
        with pytest.raises(StoreError, match="no space left"):
            async with transaction() as txn:
                await a()
        assert seen == ["a", "commit a", "rollback a"]
        assert txn.state is TransactionState.ROLLED_BACK
        assert states_of(store.read_transactions()) == [ROLLED_BACK]


async def test_nothing_is_kept_of_a_transaction_that_has_ended() -> None:
    a = hooked([], "a")
    async with transaction() as txn:
        await a()
    from weakref import ref

    gone = ref(txn)
    del txn
    gc.collect()
    assert gone() is None


# --- any program ---------------------------------------------------------------------------


class Block(NamedTuple):
    """A transaction's block: what is called in it (names of tasks, and blocks inside), and how it ends."""

    calls: tuple[str | Block, ...]
    end: str


NAMES = st.sampled_from(["a", "b", "c", "broken", "stubborn"])
ENDS = ["normal", "normal", "raise", "base", "ask", "unseen", "cancel"]
BLOCKS = st.recursive(
    st.builds(Block, st.lists(NAMES, max_size=3).map(tuple), st.sampled_from(ENDS)),
    lambda inner: st.builds(Block, st.lists(NAMES | inner, max_size=4).map(tuple), st.sampled_from(ENDS)),
    max_leaves=6,
)


def expected(block: Block) -> tuple[Seen, list[str] | None]:
    """What is noted while the block goes on, and the tasks it leaves to be committed; None where it rolled back."""
    noted: Seen = []
    staged: list[str] = []
    for call in block.calls:
        if isinstance(call, Block):
            inner, left = expected(call)
            noted += inner
            staged += left or []
        else:
            noted.append(f"do {call}")
            staged += [] if call == "broken" else [call]
    if block.end == "normal":
        return noted, staged
    return [*noted, *(f"undo {name}" for name in reversed(staged))], None


def expected_in_all(block: Block) -> Seen:
    noted, staged = expected(block)
    for position, name in enumerate(staged or ()):
        if name == "stubborn":  # its commit hook raises
            commits = [f"commit {each}" for each in (staged or ())[: position + 1]]
            return [*noted, *commits, *(f"undo {each}" for each in reversed(staged or ()))]
    return [*noted, *(f"commit {name}" for name in staged or ())]


class Stop(BaseException):
    """What no `except Exception` holds."""


def tasks_of(seen: Seen, colour: str) -> dict[str, Any]:
    """The tasks of the programs: one fails, one refuses to be committed; each hook notes that it was called."""

    def make(name: str) -> Any:
        def body() -> None:
            seen.append(f"do {name}")
            if name == "broken":
                raise LookupError("why")

        async def async_body() -> None:
            await anyio.sleep(0)
            body()

        def commit(_: Transaction) -> None:
            seen.append(f"commit {name}")
            if name == "stubborn":
                raise ValueError("why")

        async def undo(_: Transaction) -> None:
            await anyio.sleep(0)
            seen.append(f"undo {name}")
            raise LookupError("in a hook")

        def sync_undo(_: Transaction) -> None:
            seen.append(f"undo {name}")
            raise LookupError("in a hook")

        made: Any = task(name=name)(body if colour == "sync" else async_body)
        made.on_commit(commit)
        made.on_rollback(undo if colour == "async" else sync_undo)
        return made

    return {name: make(name) for name in ["a", "b", "c", "broken", "stubborn"]}


@task
async def unseen_failure() -> None:
    raise ValueError("why")


async def run_block(block: Block, tasks: dict[str, Any]) -> None:
    with suppress(ValueError, Stop), anyio.CancelScope() as scope:
        async with transaction() as txn:
            for call in block.calls:
                if isinstance(call, Block):
                    await run_block(call, tasks)
                else:
                    with suppress(LookupError):
                        await tasks[call].acall()
            if block.end == "unseen":
                unseen_failure.submit()
            elif block.end == "cancel":
                scope.cancel()
                await anyio.sleep(LONG)
            else:
                end_of(block, txn)


def run_sync_block(block: Block, tasks: dict[str, Any]) -> None:
    with suppress(ValueError, Stop), transaction() as txn:
        for call in block.calls:
            if isinstance(call, Block):
                run_sync_block(call, tasks)
            else:
                with suppress(LookupError):
                    tasks[call]()
        if block.end == "unseen":
            unseen_failure.submit()
        else:
            end_of(block, txn)


def end_of(block: Block, txn: Transaction) -> None:
    match block.end:
        case "raise":
            raise ValueError("why")
        case "base" | "cancel":
            raise Stop
        case "ask":
            txn.rollback()
        case _:
            return


@pytest.mark.parametrize("colour", ["asyncio", "trio", "sync"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(block=BLOCKS)
def test_any_program_of_nested_transactions(colour: str, block: Block) -> None:
    seen: Seen = []
    tasks = tasks_of(seen, "sync" if colour == "sync" else "async")
    store = MemoryStore()
    with Runtime(store=store):

        @flow
        async def main() -> None:
            await run_block(block, tasks)

        @flow
        def sync_main() -> None:
            run_sync_block(block, tasks)

        if colour == "sync":
            sync_main()
        else:
            anyio.run(main, backend=colour)
        assert seen == expected_in_all(block)
        found = store.read_transactions()
        is_committed = any(each.startswith("commit") for each in seen) and "commit stubborn" not in seen
        assert not is_committed or found[-1].state == COMMITTED
        assert all(row.state in (COMMITTED, ROLLED_BACK) and row.ended is not None for row in found)
