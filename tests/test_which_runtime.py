"""Which runtime a call outside of any run uses, where no context says it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncflow import Runtime, flow, get_client, task
from asyncflow.exceptions import NoRuntimeError, SeveralRuntimesError
from asyncflow.runtime import HOME

LONG = 30.0


@flow
async def hello() -> str:
    return "hello"


@flow
def hello_sync() -> str:
    return "hello"


@task
async def background() -> None: ...


async def in_a_fresh_context(call: Callable[[], Awaitable[Any]]) -> None:
    """As a request handler is called: in a task that inherits nothing of where the server was started.

    The context is copied from one that was never in the block.
    """
    outcome: list[BaseException | None] = []

    async def run() -> None:
        try:
            await call()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    async with anyio.create_task_group() as group:
        contextvars.Context().run(group.start_soon, run)
    (error,) = outcome
    if error is not None:
        raise error


async def count(runtime: Runtime) -> int:
    return len(await get_client(runtime).read_flow_runs())


async def test_a_handler_uses_the_one_entered_on_its_loop(home: Path, tmp_path: Path) -> None:
    async with Runtime(tmp_path / "mine") as runtime:
        await in_a_fresh_context(hello)
        await in_a_fresh_context(submit_one)
        assert await count(runtime) == 1
    assert not home.exists()


async def submit_one() -> None:
    background.submit()


async def test_two_are_an_error_that_names_both(tmp_path: Path) -> None:
    async with Runtime(tmp_path / "one") as one, Runtime(tmp_path / "two"):
        with pytest.raises(SeveralRuntimesError) as caught:
            await in_a_fresh_context(hello)
        assert str(tmp_path / "one") in str(caught.value)
        assert str(tmp_path / "two") in str(caught.value)
        assert "with runtime.as_current():" in str(caught.value)

        async def says_which() -> None:
            with one.as_current():
                await hello()

        await in_a_fresh_context(says_which)
        assert await count(one) == 1
        assert caught.value.homes == (str(tmp_path / "one"), str(tmp_path / "two"))


async def test_after_it_is_left_the_default_one_is_used_again(home: Path, tmp_path: Path) -> None:
    async with Runtime(tmp_path / "mine"):
        pass
    await in_a_fresh_context(hello)
    assert home.exists()
    with pytest.raises(NoRuntimeError):
        await in_a_fresh_context(submit_one)


async def test_a_nested_one_is_in_force_in_its_block(tmp_path: Path) -> None:
    async with Runtime(tmp_path / "outer") as outer:
        async with Runtime(tmp_path / "inner") as inner:
            await hello()
        await hello()
        assert (await count(outer), inner.services) == (1, None)


async def test_sync_handlers_in_worker_threads_use_it_too(tmp_path: Path) -> None:
    async with Runtime(tmp_path / "mine") as runtime:

        async def handler() -> None:
            assert await anyio.to_thread.run_sync(hello_sync) == "hello"

        await in_a_fresh_context(handler)
        assert await count(runtime) == 1


def test_loops_in_different_threads_have_their_own(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    found: dict[str, int] = {}
    problems: list[BaseException] = []

    async def main(name: str) -> None:
        async with Runtime(tmp_path / name) as runtime:
            await anyio.to_thread.run_sync(both.wait)
            for _ in range(3):
                await in_a_fresh_context(hello)
            await anyio.to_thread.run_sync(both.wait)
            found[name] = await count(runtime)

    def run(name: str, backend: str) -> None:
        try:
            anyio.run(main, name, backend=backend)
        except BaseException as error:
            problems.append(error)
            both.abort()

    threads = [
        threading.Thread(target=run, args=("a", "asyncio")),
        threading.Thread(target=run, args=("b", "trio")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert problems == []
    assert found == {"a": 3, "b": 3}


def test_one_entered_in_a_script_is_used_by_its_threads(home: Path, tmp_path: Path) -> None:
    with Runtime(tmp_path / "mine"):
        thread = threading.Thread(target=hello_sync)
        thread.start()
        thread.join(LONG)
        other = threading.Thread(target=lambda: asyncio.run(in_a_fresh_context(hello)))
        other.start()
        other.join(LONG)
        services = HOME.in_force()
        assert services is not None
        assert services.settings.home == tmp_path / "mine"
        assert services.store.count_outermost() == 2
    assert not home.exists()
