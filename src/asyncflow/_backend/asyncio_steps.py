"""Watching asyncio's tasks suspend: each task's coroutine is wrapped as the task is made.

By a task factory, which is asyncio's own way of changing how tasks are made; what factory was set
before still makes them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any

import anyio

from asyncflow._backend.points import Act, Make, Outcome, Points, StepLoop, Way, suspended_at

__all__ = ["AsyncioSteps"]

_TURNS = 3


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that tells each of its suspensions.

    A class, not an `async def` around the other: a task that is cancelled before its first step
    throws into a coroutine that has not begun, which only a class can pass on to the one inside.
    """

    __slots__ = ("_coroutine", "_points")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], points: Points) -> None:
        self._coroutine = coroutine
        self._points = points

    def send(self, value: Any) -> Any:
        return self._seen(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._seen(self._coroutine.throw(*error))

    def _seen(self, yielded: Any) -> Any:
        task = asyncio.current_task()
        self._points.suspended("?" if task is None else task.get_name(), self._coroutine)
        return yielded

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("it belongs to its task, which alone drives it")

    def __getattr__(self, name: str) -> Any:
        # `cr_frame`, `__qualname__` and their like: anyio, asyncio and debuggers ask a task's coroutine for them.
        return getattr(self._coroutine, name)


def _stepping(factory: Any, points: Points) -> Any:
    """A task factory that does what `factory` does, with stepped coroutines."""
    if sys.version_info >= (3, 12) and getattr(factory, "__code__", None) is asyncio.eager_task_factory.__code__:
        # One of the same make again: anyio knows the eager factory by its code, and starts no task of its own eagerly.
        make_task = factory.__closure__[0].cell_contents

        def construct(coroutine: Any, **options: Any) -> Any:
            return make_task(_Stepped(coroutine, points), **options)

        return asyncio.create_eager_task_factory(construct)

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        stepped = _Stepped(coroutine, points)
        return asyncio.Task(stepped, loop=loop, **options) if factory is None else factory(loop, stepped, **options)

    return make


class AsyncioSteps(StepLoop):
    """The running asyncio loop: plain, with eager tasks, or uvloop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def tasks(self) -> set[Any]:
        return asyncio.all_tasks(self._loop)

    def describe(self, task: Any) -> str:
        return f"{task.get_name()!r} at {suspended_at(task.get_coro())}"

    @contextmanager
    def watch(self, points: Points) -> Generator[list[str]]:
        loop, reports = self._loop, list[str]()
        factory, handler = loop.get_task_factory(), loop.get_exception_handler()
        loop.set_task_factory(_stepping(factory, points))
        loop.set_exception_handler(lambda _, context: reports.append(_told(context)))
        try:
            yield reports
        finally:
            loop.set_task_factory(factory)
            loop.set_exception_handler(handler)

    async def call(self, make: Make, how: Way | Act, points: Points, seconds: float) -> Outcome:
        outcome = Outcome()
        # In a task of its own, past every factory: a native cancel must not be the calling test's, and what the
        # call leaves behind in its task is to be seen.
        task = asyncio.Task(_Stepped(_caller(make, how, points, outcome), points), loop=self._loop, name="caller")
        try:
            await asyncio.wait([task], timeout=seconds)
        finally:
            points.close()
            if not task.done():
                task.cancel()
        outcome.ended = task.done()
        if outcome.ended:
            task.result()
        return outcome

    async def turn(self) -> None:
        await asyncio.sleep(0)


def _told(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return context["message"] if error is None else f"{context['message']}: {error!r}"


async def _caller(make: Make, how: Way | Act, points: Points, outcome: Outcome) -> None:
    task = asyncio.current_task()
    assert task is not None
    try:
        if how == "scope":
            await _in_scope(make, points, outcome)
        elif how == "native":
            await _in_task(task, make, points, outcome)
        elif how == "wait_for":
            await _in_timeout(make, points, outcome)
        else:
            await _beside(how, make, points, outcome)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  # judged by whoever called
        outcome.error = error
    outcome.left = task.cancelling() - (how == "native" and points.hit)
    try:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
    except asyncio.CancelledError as error:
        # One asked for while the call needed no further wait is delivered here, as it should.
        if how != "native" or not points.hit or outcome.cancelled:
            outcome.stray = error


async def _in_scope(make: Make, points: Points, outcome: Outcome) -> None:
    with anyio.CancelScope() as scope:
        points.open(scope.cancel)
        try:
            outcome.value = await make()
        finally:
            points.close()
    outcome.cancelled = scope.cancelled_caught


async def _in_task(task: asyncio.Task[Any], make: Make, points: Points, outcome: Outcome) -> None:
    points.open(task.cancel)
    try:
        outcome.value = await make()
    except asyncio.CancelledError:
        if not points.hit:
            raise
        outcome.cancelled = True
    finally:
        points.close()


async def _in_timeout(make: Make, points: Points, outcome: Outcome) -> None:
    # What `asyncio.wait_for` is from CPython 3.12 on. (The one of 3.11 cancels a task of its own, as `native` does.)
    loop = asyncio.get_running_loop()
    timeout = asyncio.timeout(None)
    try:
        async with timeout:
            points.open(lambda: timeout.reschedule(loop.time()))
            try:
                outcome.value = await make()
            finally:
                points.close()
    except TimeoutError as error:
        if not (timeout.expired() and isinstance(error.__cause__, asyncio.CancelledError)):
            raise
        outcome.cancelled = True


async def _beside(how: Act, make: Make, points: Points, outcome: Outcome) -> None:
    acting: list[asyncio.Task[None]] = []

    async def act() -> None:
        await how()

    points.open(lambda: acting.append(asyncio.Task(act())))  # past the factory: its own suspensions are no points
    try:
        outcome.value = await make()
    finally:
        points.close()
        for task in acting:
            await asyncio.wait([task])
            points.failure = points.failure or task.exception()
