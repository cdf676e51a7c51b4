"""Where the items of a `map_stream` come from.

A sync source is pulled while the next result is asked for, in the consumer's own time. An async
one has a task of its own, the feeder: a source that waits must not hold back results that are
there, and a consumer that is cancelled while it waits must not end the source. Neither buffers an
item: each is submitted as soon as it is pulled, and pulled only when there is room for its run.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

from asyncflow._backend.base import Host, RunScope
from asyncflow._engine.map_window import Window
from asyncflow._services import Services
from asyncflow.logs import library_logger

__all__ = ["Fed", "Pulled", "Source"]

_LAST_CALL = 0.9
"""The part of the grace time after which a source that goes on is told once more, shields or not."""


class Source(Protocol):
    """Where the items come from."""

    is_over: bool
    """Whether no more will come."""
    is_busy: bool
    """Whether a task of ours has yet to end."""
    error: BaseException | None
    """What it raised instead of the next item."""
    cleanup_error: BaseException | None
    """What it raised when it was asked to stop."""

    async def fill(self, host: Host) -> None:
        """Submit as many as there is room for, unless a feeder does."""
        ...

    def stop(self) -> None:
        """Pull no more. From any thread."""
        ...


class Pulled:
    """A sync source."""

    is_busy = False
    cleanup_error: BaseException | None = None

    def __init__(self, iterable: Iterable[Any], window: Window, services: Services) -> None:
        self.is_over = False
        self.error: BaseException | None = None
        self._items: Iterator[Any] = iter(iterable)
        self._window = window
        self._services = services

    async def fill(self, host: Host) -> None:
        services = self._services
        while not self.is_over and not self._window.is_full:
            if host.wants_to_relax():
                await host.relax(services.store, services.settings.queue_limit)
            try:
                # No name here for the iterator: the frames of an eager task's failure lead to this one.
                self._window.submit(next(self._items))
            except StopIteration:
                self.stop()
            except Exception as error:  # noqa: BLE001  # the consumer gets it, after the results before it
                self.error = error
                self.stop()

    def stop(self) -> None:
        self.is_over = True
        self._items = iter(())  # a generator that nobody else holds is closed by that


class Fed:
    """An async source, and the task that pulls it. It never raises: on trio that would end the program."""

    def __init__(
        self,
        iterable: AsyncIterable[Any],
        window: Window,
        host: Host,
        services: Services,
        *,
        closes: bool,
        ended: Callable[[], None],
    ) -> None:
        self.is_over = False
        self.is_busy = True
        self.error: BaseException | None = None
        self.cleanup_error: BaseException | None = None
        self._items: AsyncIterator[Any] = aiter(iterable)
        self._closes = closes or self._items is not iterable
        self._window = window
        self._host = host
        self._services = services
        self._ended = ended
        self._scope: RunScope | None = None
        self._is_pulling = False
        self._timers: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Start the feeder. On an eager loop it may have ended when this returns."""
        self._host.spawn(self._feed, copy_context(), self._end)

    async def fill(self, host: Host) -> None:
        """The feeder does, and is told of room when a result is taken."""

    def stop(self) -> None:
        if self._host.here():
            self._stop()
        else:
            self._host.post(self._stop)

    def _stop(self) -> None:
        if not self.is_busy or self._timers:
            return
        grace = self._services.settings.grace_seconds
        self._timers = [
            self._host.call_later(grace * _LAST_CALL, partial(self._cancel, again=True)),
            self._host.call_later(grace, self._give_up),
        ]
        if self._is_pulling:
            self._cancel()
        elif self._window.room is not None:
            self._window.room.set()  # it then closes the source, which is at a `yield`, undisturbed

    def _cancel(self, *, again: bool = False) -> None:
        if self._scope is not None:
            self._scope.cancel(again=again)

    def _give_up(self) -> None:
        if self.is_busy:
            grace = self._services.settings.grace_seconds
            library_logger().warning("an async source of map_stream ignored cancellation for %g seconds", grace)
            self._end()

    def _end(self) -> None:
        self.is_over, self.is_busy = True, False
        for stop_timer in self._timers:
            stop_timer()
        self._ended()

    async def _feed(self) -> None:
        try:
            # One scope around both: the source may hold one of its own over its `yield`, which has
            # to be entered and left within ours and in this task.
            with self._host.scope(None) as self._scope:
                await self._pull_and_close()
        except GeneratorExit:  # the coroutine is being closed: it must not wait for anything
            pass
        except BaseException as error:  # noqa: BLE001  # the consumer gets it; a task of ours has nobody else
            self._keep(error)
        finally:
            self._scope = None
            self._end()

    async def _pull_and_close(self) -> None:
        try:
            await self._submit_each()
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001  # as above; also a cancellation, which has done its work
            self._keep(error)
        self.is_over = True
        self._window.notify()
        await self._close()

    async def _submit_each(self) -> None:
        window, host, services = self._window, self._host, self._services
        while not window.closed:
            if window.is_full:
                await self._wait_for_room()
                continue
            if host.wants_to_relax():
                await host.relax(services.store, services.settings.queue_limit)
            self._is_pulling = True
            try:
                item = await anext(self._items)
            except StopAsyncIteration:
                return
            finally:
                self._is_pulling = False
            window.submit(item)

    async def _wait_for_room(self) -> None:
        room = self._window.room = self._host.signal()
        if self._window.is_full:
            await room.wait()

    async def _close(self) -> None:
        aclose: Any = getattr(self._items, "aclose", None)
        if aclose is not None and self._closes:
            await aclose()

    def _keep(self, error: BaseException) -> None:
        if self._host.is_cancellation(error):
            return
        if self._window.closed:
            self.cleanup_error = error
        else:
            self.error = error
