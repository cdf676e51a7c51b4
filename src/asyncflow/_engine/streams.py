"""Generators: runs that hand over items as their body makes them.

An async stream's body runs in a task of its own, in its run's context, in step with its consumer:
it stays at its `yield` until the next item is asked for. So no scope of the body ever lies around
the consumer's code, and backpressure needs no buffer.

The object in the consumer's hand and the channel the body holds are two: when the consumer drops
its object (a bare `break`), Python tells us, and the body is asked to stop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

from asyncflow._backend.base import Host, Signal
from asyncflow._causes import Cause
from asyncflow._engine.calls import CallKeywords, Home, deliver, open_run
from asyncflow._engine.execution import execute
from asyncflow._engine.items import items_of, produce
from asyncflow._run import Run
from asyncflow._specs import Spec
from asyncflow.context import current_run
from asyncflow.exceptions import RunCancelledError
from asyncflow.states import State

__all__ = ["CLOSED", "Stream", "open_stream", "refuse_return_state", "thrown"]

Y_co = TypeVar("Y_co", covariant=True)
CLOSED = Cause("closed by its consumer")
_GIVEN_UP = Cause("cancelled by its caller")


def open_stream(
    home: Home, owner: object, spec: Spec, arguments: dict[str, Any], keywords: CallKeywords
) -> Stream[Any]:
    """A call of an async generator, or `.stream(...)` of either colour.

    Its run begins with the first item asked for.
    """
    refuse_return_state(spec, keywords.return_state)
    return Stream(_Channel(home, owner, spec, arguments))


def refuse_return_state(spec: Spec, return_state: bool) -> None:
    """Raise where a generator is called with `return_state=True`."""
    if return_state:
        raise TypeError(f"{spec.name!r} yields its items: its state is `stream.state`, not return_state=True")


def thrown(kind: Any, value: Any, tb: TracebackType | None) -> BaseException:
    """What `throw(type, value, traceback)` means, in its old form too."""
    error: BaseException = (kind() if isinstance(kind, type) else kind) if value is None else value
    return error.with_traceback(tb)


class _Channel:
    """What the body's task and the consumer share."""

    def __init__(self, home: Home, owner: object, spec: Spec, arguments: dict[str, Any]) -> None:
        self.context: Context = copy_context()
        self.open: Callable[[], Awaitable[Run]] = partial(
            open_run, home, owner, spec, arguments, self.context.get(current_run)
        )
        self.run: Run | None = None
        self.done: bool = False
        self.busy: bool = False
        self.failure: BaseException | None = None
        self._host: Host
        self._item: Any = None
        self._has_item = False
        self._sent: Any = None
        self._asked: Signal
        self._answered: Signal
        self._finished: Signal

    # the consumer's side

    async def ask(self, value: Any) -> Any:
        """The next item; raises what the run raised, or `StopAsyncIteration` at its end."""
        if self.busy:
            raise RuntimeError("this stream is already waiting for its next item in another task")
        if self.done:
            self._raise_end()  # it may have ended, by its deadline, while nobody waited
        self.busy = True
        try:
            await self._request(value)
        except GeneratorExit:
            self.stop(_GIVEN_UP)
            raise  # the consumer's coroutine is being closed: it must not wait for anything
        except BaseException:
            await self._give_up(_GIVEN_UP)
            raise
        finally:
            self.busy = False
        if not self._has_item:
            self._raise_end()
        item, self._item, self._has_item = self._item, None, False
        return item

    async def _request(self, value: Any) -> None:
        if self.run is None:
            run = await self.open()
            if self.done:  # another task closed the stream while its runtime was being opened
                raise StopAsyncIteration
            self.run = run
            run.stream = self
            self._host = host = run.host
            self._asked, self._finished = host.signal(), host.signal()
            self._answered = host.signal()
            host.spawn(self._live, self.context)
        else:
            self._answered = self._host.signal()
            self._sent = value
            self._asked.set()
        await self._answered.wait()

    async def _give_up(self, cause: Cause) -> None:
        """The consumer was cancelled while it waited: so is the body, and its `finally` is waited for."""
        run = self.run
        if run is not None and not self.done:
            self.stop(cause)
            await self._host.settle(self._finished, run.services.settings.grace_seconds)

    def _raise_end(self) -> NoReturn:
        """Raise what the run ended with, once; for one that its consumer closed, only what its clean-up raised."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        run = self.run
        if run is not None and run.error is not None and (run.cause is not CLOSED or _is_own(run, run.error)):
            deliver(run, False)
        raise StopAsyncIteration

    async def close(self) -> None:
        """Ask the body to stop, and wait until its `finally` is done."""
        if self.run is None:
            self.done = True
        elif not self.done:
            self.stop()
            try:
                await self._finished.wait()
            except GeneratorExit:
                raise
            except BaseException:
                await self._give_up(CLOSED)
                raise
            if self.run.error is not None and _is_own(self.run, self.run.error):
                deliver(self.run, False)

    # both sides

    def stop(self, cause: Cause = CLOSED) -> None:
        """Ask the body to stop: a cancellation at its `yield`, or wherever it is. From any thread."""
        run = self.run
        if run is None or self.done:
            self.done = True
            return
        if self._host.here():
            self._stop(run, cause)
        else:
            self._host.post(partial(self._stop, run, cause))

    def _stop(self, run: Run, cause: Cause) -> None:
        run.mark(cause)
        if run.scope is not None:
            run.scope.cancel()

    # the body's side

    async def _live(self) -> None:
        assert self.run is not None
        try:
            await execute(self.run)
        except BaseException as error:  # noqa: BLE001  # the consumer gets it; a task of ours has nobody else
            self.failure = error
        finally:
            self.done = True
            self._answered.set()
            self._finished.set()

    async def produce(self, run: Run) -> None:
        """The body of the attempt: take each item from the generator and hand it over."""
        await produce(run, items_of(run), self._hand_over)

    async def _hand_over(self, item: Any) -> Any:
        self._asked = self._host.signal()
        self._item, self._has_item = item, True
        self._answered.set()
        del item  # the consumer's alone from here on
        await self._asked.wait()
        value, self._sent = self._sent, None
        return value


def _is_own(run: Run, error: BaseException) -> bool:
    """Whether a stream's error is the body's, not the cancellation that stopped it."""
    return not (run.host.is_cancellation(error) or isinstance(error, RunCancelledError))


class Stream(AsyncGenerator[Y_co, Any], Generic[Y_co]):
    """The items of a generator run: an async iterator that is its own context manager.

    `async with` and `aclose()` return after the body's `finally`. Dropping the object (a bare
    `break`) asks the body to stop; the run around it waits for that.
    """

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    @property
    def state(self) -> State[None] | None:
        """The run's state; None before the first item was asked for."""
        run = self._channel.run
        return None if run is None else run.state()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Y_co:
        return await self._channel.ask(None)  # type: ignore[no-any-return]

    async def asend(self, value: Any) -> Y_co:
        """Like a generator's: `value` is what the body's `yield` gives."""
        return await self._channel.ask(value)  # type: ignore[no-any-return]

    async def athrow(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> Y_co:
        """Close the stream and raise the exception here: what the consumer threw is the consumer's."""
        await self.aclose()
        raise thrown(typ, val, tb)

    def stop(self) -> None:
        """For the library: what dropping the object does. From any thread."""
        self._channel.stop()

    async def aclose(self) -> None:
        """Stop the body and wait until its `finally` is done; does nothing after the end."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._channel.stop()
