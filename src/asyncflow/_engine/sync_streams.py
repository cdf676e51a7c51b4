"""Sync generators: the consumer's thread drives the engine's coroutine from item to item.

It is suspended there at each item, and nowhere else. Kept apart from `streams`, whose bodies run
in tasks and threads of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from asyncflow._backend.inline import InlineCancelled
from asyncflow._causes import Cause
from asyncflow._engine.calls import CallKeywords, Home, deliver, open_run, refuse_on_loop
from asyncflow._engine.execution import execute
from asyncflow._engine.items import produce
from asyncflow._engine.streams import CLOSED, refuse_return_state, thrown
from asyncflow._run import Run
from asyncflow._specs import Spec
from asyncflow.context import current_run
from asyncflow.states import State

__all__ = ["SyncStream", "open_sync_stream"]

Y_co = TypeVar("Y_co", covariant=True)


def open_sync_stream(
    home: Home, owner: object, spec: Spec, arguments: dict[str, Any], keywords: CallKeywords
) -> SyncStream[Any]:
    """A plain call of a sync generator."""
    refuse_return_state(spec, keywords.return_state)
    refuse_on_loop(spec)
    return SyncStream(_SyncChannel(home, owner, spec, arguments))


class _Emit:
    """Awaiting it suspends the engine's coroutine with an item; what `send` was given comes back."""

    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item

    def __await__(self) -> Generator[_Emit, Any, Any]:
        return (yield self)


async def _emit(item: Any) -> Any:
    return await _Emit(item)


class _InlineItems:
    """The items of a generator that runs where its consumer does."""

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator

    async def send(self, value: Any) -> Any:
        try:
            return self._generator.send(value)
        except StopIteration:
            raise StopAsyncIteration from None

    async def stop(self, error: BaseException) -> None:
        self._generator.close()


class _SyncChannel:
    """The engine's coroutine of a sync stream, driven item by item by its consumer."""

    def __init__(self, home: Home, owner: object, spec: Spec, arguments: dict[str, Any]) -> None:
        self.context: Context = copy_context()
        self.open: Callable[[], Awaitable[Run]] = partial(
            open_run, home, owner, spec, arguments, self.context.get(current_run)
        )
        self.run: Run | None = None
        self.done: bool = False
        self._coroutine = self._live()
        self._begun = False

    async def _live(self) -> None:
        run = self.run = await self.open()
        run.stream = self
        await execute(run)

    async def produce(self, run: Run) -> None:
        """The body of the attempt: hand over each item where it is made."""
        await produce(run, _InlineItems(run.spec.binder.call(run.spec.fn, run.arguments)), _emit)

    def step(self, value: Any) -> Any:
        if self.done:
            raise StopIteration
        sent = value if self._begun else None
        self._begun = True
        try:
            emitted: _Emit = self.context.run(self._coroutine.send, sent)
        except StopIteration:
            self.done = True
            if self.run is not None and self.run.error is not None:
                deliver(self.run, False)
            raise
        except BaseException:
            self.done = True
            raise
        return emitted.item

    def stop(self, cause: Cause = CLOSED) -> None:
        """End the body at its `yield`, now, on this thread."""
        if self.done:
            return
        self.done = True
        if not self._begun or self.run is None:
            self._coroutine.close()
            return
        self.run.mark(cause)
        try:
            self.context.run(self._coroutine.throw, InlineCancelled())
        except StopIteration:
            error = self.run.error
            if error is not None and not isinstance(error, InlineCancelled):
                deliver(self.run, False)  # what the body's `finally` raised


class SyncStream(Generator[Y_co, Any, None], Generic[Y_co]):
    """The items of a sync generator run, on the consumer's thread. Also a context manager."""

    def __init__(self, channel: _SyncChannel) -> None:
        self._channel = channel

    @property
    def state(self) -> State[None] | None:
        """The run's state; None before the first item was asked for."""
        run = self._channel.run
        return None if run is None else run.state()

    def send(self, value: Any) -> Y_co:
        """Like a generator's: `value` is what the body's `yield` gives."""
        return self._channel.step(value)  # type: ignore[no-any-return]

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> Y_co:
        """Close the stream and raise the exception here: what the consumer threw is the consumer's."""
        self.close()
        raise thrown(typ, val, tb)

    def close(self) -> None:
        """End the body at its `yield`; does nothing after the end."""
        self._channel.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._channel.stop()
