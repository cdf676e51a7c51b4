"""`map_stream`: one submitted run per item of a source of any length, a bounded number at a time.

As with `streams`, the object in the consumer's hand and the channel that the source and the run
around hold are two: when the consumer drops its object (a bare `break`), Python tells us.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._engine.calls import Home
from asyncflow._engine.map_sources import Fed, Pulled, Source
from asyncflow._engine.map_window import Submit, Window
from asyncflow._limiter import whole_number
from asyncflow._recorded import ENDING
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow.context import current_run
from asyncflow.exceptions import NoRuntimeError, OptionError, RunEndedError, WaitOnEventLoopError
from asyncflow.logs import library_logger
from asyncflow.placeholders import Awaited

__all__ = ["MapStream", "open_map_stream"]

T_co = TypeVar("T_co", covariant=True)

_CLOSED = "cancelled because the map_stream that it belongs to was closed"


def open_map_stream(
    home: Home, function: str, iterable: Any, submit: Submit, *, limit: int, ordered: bool, return_state: bool
) -> MapStream[Any]:
    """The results of the runs that `submit` makes of the items; the first is made when a result is asked for."""
    whole_number("limit", limit)
    if isinstance(iterable, str | bytes | bytearray):
        expected = "an iterable of items; text and bytes are one value: write submit(...) for a single run"
        raise OptionError("iterable", iterable, expected)
    if isinstance(iterable, Awaited) or not isinstance(iterable, Iterable | AsyncIterable):
        raise OptionError("iterable", iterable, "an iterable of items, sync or async")
    return MapStream(_Channel(home, function, iterable, Window(submit, limit, ordered), return_state))


class _Channel:
    """What the consumer's object, the source and the run around share."""

    def __init__(self, home: Home, function: str, iterable: Any, window: Window, return_state: bool) -> None:
        self._home = home
        self._function = function
        self._iterable: Any = iterable
        self._is_sync = isinstance(iterable, Iterable)
        self._is_async = isinstance(iterable, AsyncIterable)
        self._window = window
        self._return_state = return_state
        self._source: Source | None = None
        self._run: Run | None = None
        self._host: Host
        self._services: Services
        self._is_asked = False
        self._closers = 0

    async def next(self) -> Any:
        """The next result; raises what its run raised, or `StopAsyncIteration` at the end."""
        if self._is_asked:
            raise RuntimeError("this map_stream is already waiting for its next result in another task")
        self._is_asked = True
        try:
            return await self._next()
        finally:
            self._is_asked = False

    async def _next(self) -> Any:
        if self._window.closed:
            raise StopAsyncIteration
        source = self._source or self._begin()
        host = host_here(self._services.clock)
        while True:
            await source.fill(host)
            if self._window.has_ready:
                return await self._take()
            if self._is_at_end(source):
                await self._finish(source, host)
            # A consumer that is cancelled here has taken nothing: the next call gives the same result.
            await self._window.until(lambda: self._has_news(source), host, current_run.get())

    def _has_news(self, source: Source) -> bool:
        return self._window.has_ready or self._is_at_end(source)

    def _is_at_end(self, source: Source) -> bool:
        return self._window.closed or (source.is_over and self._window.is_empty)

    async def _take(self) -> Any:
        future = self._window.take()
        try:
            if future is None:  # closed by another thread at this moment
                raise StopAsyncIteration
            if self._return_state:
                return future.state
            if future.run.error is not None:
                await self._close(f"cancelled because run {future.name!r} of its map_stream failed")
            return future.result()
        finally:
            del future  # an exception holds the frames it went through, and this one would hold the exception

    async def _finish(self, source: Source, host: Host) -> NoReturn:
        if not self._window.closed:
            await self._window.until(lambda: not source.is_busy, host, current_run.get())
        error, source.error = source.error, None
        try:
            if self._window.closed or error is None:
                self._stop(_CLOSED)
                raise StopAsyncIteration
            self._stop(_CLOSED)
            raise error
        finally:
            del error  # as above

    def _begin(self) -> Source:
        run = self._run = current_run.get()
        services = run.services if run is not None else self._home.explicit()
        if services is None:
            raise NoRuntimeError(self._function)
        self._services = services
        host = self._host = host_here(services.clock)
        iterable = self._iterable
        if host.is_inline or not self._is_async:
            if not self._is_sync:
                expected = "a sync iterable in sync code; an async one is for `async for`"
                raise OptionError("iterable", iterable, expected)
            self._source = source = Pulled(iterable, self._window, services)
            self._accompany(run)
            return source
        # What the user may keep for other uses (a file, a channel) is not ours to close.
        closes = isinstance(iterable, AsyncGenerator | MapStream)
        fed = Fed(iterable, self._window, host, services, closes=closes, ended=self._source_ended)
        self._source = fed
        self._accompany(run)
        fed.begin()
        return fed

    def _accompany(self, run: Run | None) -> None:
        """Be closed with the body of `run`. As with a child, each enters before it looks at the other."""
        self._iterable = None  # the source has it
        if run is None:
            return
        with ENDING:  # two threads may bring a first one each
            run.companions = run.companions or {}
        run.companions[self] = None
        if run.closing:
            self._source = None
            run.leave(self)
            raise RunEndedError(self._function, run.display_name)

    # --- the ends

    async def close(self) -> None:
        """Stop, wait for what was in flight, and raise what the source's clean-up raised."""
        self._closers += 1
        try:
            await self._close(_CLOSED)
        finally:
            self._closers -= 1
        source = self._source
        if source is not None and source.cleanup_error is not None:
            error, source.cleanup_error = source.cleanup_error, None
            raise error

    async def _close(self, why: str) -> None:
        self._stop(why)
        if self._source is None or self._is_quiet():
            return
        host = host_here(self._services.clock)
        try:
            await self._window.until(self._is_quiet, host, current_run.get())
        except GeneratorExit:
            raise  # the consumer's coroutine is being closed: it must not wait for anything
        except BaseException as error:
            held_back = await self._window.settle(self._is_quiet, host, self._services)
            if held_back is not None and not host.is_cancellation(held_back):
                raise held_back from error  # a Ctrl-C
            raise

    def _is_quiet(self) -> bool:
        return not self._window.has_open and not (self._source is not None and self._source.is_busy)

    def _stop(self, why: str) -> None:
        if self._window.closed:
            return
        self._window.close(why)
        self._iterable = None
        if self._source is not None:
            self._source.stop()
            self._leave()

    def stop(self) -> None:
        """The body of the run around has ended."""
        assert self._run is not None
        kind, name = self._run.spec.kind.value, self._run.display_name
        self._stop(f"cancelled because its {kind} run {name!r} ended before it")

    def drop(self) -> None:
        """The consumer's object is gone. Wherever the collector runs, so only a word to the loop."""
        if self._source is not None and not self._window.closed:
            self._host.post(partial(self._stop, _CLOSED))

    def _source_ended(self) -> None:
        source = self._source
        assert source is not None
        if source.cleanup_error is not None and not self._closers:
            error, source.cleanup_error = source.cleanup_error, None
            library_logger().error(
                "an async source of map_stream raised when it was asked to stop",
                exc_info=(type(error), error, error.__traceback__),
            )
        if self._window.closed:
            self._leave()
        self._window.notify()

    def _leave(self) -> None:
        if self._run is not None and self._source is not None and not self._source.is_busy:
            self._run.leave(self)


class MapStream(Generic[T_co]):
    """The results of `map_stream`, as they are taken: with `async for`, or with `for` in sync code.

    `async with` and `aclose()` (in sync code `with` and `close()`) cancel what is in flight and
    wait for it. Dropping the object (a bare `break`) asks for that; the run around waits. A wait
    for a result that is cancelled takes nothing: the next one gives the same result.
    """

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        return await self._channel.next()  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Cancel what is in flight and wait until it and the source have ended; does nothing after the end."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __iter__(self) -> Self:
        _refuse_on_loop("for result in f.map_stream(...)", "async for result in f.map_stream(...):")
        return self

    def __next__(self) -> T_co:
        _refuse_on_loop("next(stream)", "await anext(stream)")
        try:
            return drive(self._channel.next())  # type: ignore[no-any-return]
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """`aclose()` for sync code."""
        _refuse_on_loop("stream.close()", "await stream.aclose()")
        drive(self._channel.close())

    def __enter__(self) -> Self:
        _refuse_on_loop("with f.map_stream(...)", "async with f.map_stream(...) as results:")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._channel.drop()


def _refuse_on_loop(called: str, instead: str) -> None:
    if loop_is_running_here():
        raise WaitOnEventLoopError(called, instead)
