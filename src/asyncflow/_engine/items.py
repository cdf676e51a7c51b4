"""What a generator's body yields: where it comes from, and how it is recorded.

An item that is recorded is put into the store before it is handed over, under a number that rises
with each item. A body that runs again, because it is tried once more or resumed, begins at its
start, and nobody can know whether it will yield the same again. So the items of another attempt are
others: the numbers of each attempt begin above all of those before, and tell which attempt it was.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import copy_context
from functools import partial
from inspect import GEN_RUNNING, getgeneratorstate
from typing import Any, Protocol
from uuid import UUID

from asyncflow._rows import ItemRow
from asyncflow._run import Run
from asyncflow._specs import Colour
from asyncflow.exceptions import AsyncflowError, StoreError
from asyncflow.serializers import encode

__all__ = ["Items", "Recorder", "attempt_of", "first_number", "items_of", "produce", "record_items"]

_BITS = 32


def first_number(attempt: int) -> int:
    """The number of the first item that this attempt (from 1) yields: 1 in the first attempt."""
    return ((attempt - 1) << _BITS) + 1


def attempt_of(number: int) -> int:
    """Which attempt yielded the item with this number."""
    return ((number - 1) >> _BITS) + 1


class Items(Protocol):
    """The items of one attempt, as its body makes them."""

    async def send(self, value: Any) -> Any:
        """The next one; raises what the body raised, or `StopAsyncIteration` at its end."""
        ...

    async def stop(self, error: BaseException) -> None:
        """Have the body end at its `yield`, where it sees `error`; raises what it raised instead."""
        ...


def items_of(run: Run) -> Items:
    """Call the run's function; nothing of its body is executed yet."""
    generator = run.spec.binder.call(run.spec.fn, run.arguments)
    return _AsyncItems(generator) if run.spec.colour is Colour.ASYNC_GENERATOR else _ThreadItems(run, generator)


class _AsyncItems:
    """The items of an async generator."""

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generator = generator

    async def send(self, value: Any) -> Any:
        return await self._generator.asend(value)

    async def stop(self, error: BaseException) -> None:
        try:
            await self._generator.athrow(error)
        except StopAsyncIteration:
            return
        except BaseException as raised:
            if raised is not error:
                raise
            return
        await self._generator.aclose()  # it yielded once more: now it must end


class _ThreadItems:
    """The items of a sync generator, each made in a worker thread, all in one context."""

    def __init__(self, run: Run, generator: Generator[Any, Any, Any]) -> None:
        self._run = run
        self._generator = generator
        self._context = copy_context()

    async def send(self, value: Any) -> Any:
        try:
            return await self._call(partial(_next, self._generator, value))
        except BaseException as error:
            if self._run.host.is_cancellation(error):
                await self.stop(error)  # in its own context and off the loop, not where it is collected
            raise

    async def stop(self, error: BaseException) -> None:  # a sync body is told by GeneratorExit
        async def close() -> None:
            # One whose thread has not come back by the grace time cannot be closed.
            if getgeneratorstate(self._generator) != GEN_RUNNING:
                await self._call(self._generator.close)

        await self._run.host.protect(close, self._run.services.settings.grace_seconds)

    async def _call(self, fn: Callable[[], Any]) -> Any:
        run = self._run
        job = await run.host.call_sync(
            fn, run.services.threads, run.services.settings.grace_seconds, _nothing, _nothing, self._context
        )
        if job.error is not None:
            raise job.error
        return job.value


def _next(generator: Generator[Any, Any, Any], value: Any) -> Any:
    try:
        return generator.send(value)
    except StopIteration:
        raise StopAsyncIteration from None  # a StopIteration cannot leave a coroutine


def _nothing() -> None:
    """A generator that is asked to stop gets there at its next `yield`; its state stays Running till then."""


class Recorder:
    """Records the items of one attempt; those who follow its run in this process look at it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._first = first_number(run.run_count)
        self._count = 0
        self.is_over = False
        """Whether the body has ended, and the run is about to."""
        run.services.recorders[run.id] = self

    def has_news(self, after: int) -> bool:
        """Whether there is, or will be in a moment, more on record than the item with this number. From any thread."""
        return self.is_over or self._first + self._count - 1 > after

    async def keep(self, item: Any) -> None:
        """Record one more item, soon; waits while the disk is behind.

        Raises `NotJSONError` for one that cannot be recorded.
        """
        run, number = self._run, self._first + self._count
        text = encode(item, where=f"items[{self._count}]")
        store, results = run.services.store, run.services.results
        if results is not None and results.seals:
            text = await run.host.run_blocking(partial(results.seal, text, f"items of run {UUID(bytes=run.id)}"))
        store.put_item(ItemRow(run.id, number, text))
        self._count += 1
        # Here and not only where runs begin: a body whose items nobody waits for would fill the
        # memory, and one that never waits would keep the loop, and the store's thread, from going on.
        if run.host.wants_to_relax():
            await run.host.relax(store, run.services.settings.queue_limit)

    async def finish(self, error: BaseException | None = None) -> None:
        """The body has ended, with `error` if it raised: wait until its items are on disk.

        A run's final state may be written before items that were put before it: in the place of an
        earlier state that still waited. A crash must not leave a run that is Completed and lacks items.
        """
        self.is_over = True
        if isinstance(error, GeneratorExit):
            return  # the coroutine is being closed: it must not wait for anything
        run, services = self._run, self._run.services
        try:
            on_disk, problem, held_back = await run.host.confirm(services.store, services.settings.durability_seconds)
        except AsyncflowError:  # the store was closed
            if error is None:
                raise
            return
        if held_back is not None and (error is None or isinstance(error, Exception)):
            raise held_back from error
        if error is None and not on_disk:
            reason = problem or services.store.last_error or "there was no word from the disk in time"
            raise StoreError(f"recording the items of run {run.display_name!r}", services.settings.home, reason)


async def produce(run: Run, items: Items, hand_over: Callable[[Any], Awaitable[Any]]) -> None:
    """The body of an attempt: take each item, record it if it is to be recorded, and hand it over."""
    recorder = Recorder(run) if run.spec.keeps_items else None
    try:
        await _take_all(items, recorder, hand_over)
    except BaseException as error:
        if recorder is not None:
            await recorder.finish(error)
        raise
    if recorder is not None:
        await recorder.finish()


async def _take_all(items: Items, recorder: Recorder | None, hand_over: Callable[[Any], Awaitable[Any]]) -> None:
    value: Any = None
    while True:
        try:
            item = await items.send(value)
        except StopAsyncIteration:
            return
        try:
            if recorder is not None:
                await recorder.keep(item)
            value = await hand_over(item)
        except BaseException as error:
            await items.stop(error)
            raise


async def record_items(run: Run) -> None:
    """The body of an attempt whose items nobody takes: it was submitted, or is run again."""
    await produce(run, items_of(run), _drop)


async def _drop(item: Any) -> None:
    """It is on record, or will be in a moment."""
