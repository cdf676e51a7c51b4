"""Items as server-sent events, for every framework that takes an async iterator of bytes as a body.

The items are asked for by a task of their own and not by the response's. So a heartbeat can be
sent while the next item is being made, without a cancellation that would lose it; no scope of the
iterator's code is ever around the framework's; and when the client is gone, also where the
framework just drops the body, that task ends the iterator in its own context.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

from asyncflow._backend.base import Host, RunScope, Signal
from asyncflow._backend.detect import host_here
from asyncflow._engine.streams import Stream
from asyncflow.clock import SystemClock
from asyncflow.error_records import error_summary
from asyncflow.exceptions import (
    CrashedRunError,
    DurabilityError,
    FailedRunError,
    OptionError,
    RunCancelledError,
    RuntimeClosedError,
)
from asyncflow.item_streams import ItemStream, StreamItem
from asyncflow.logs import library_logger
from asyncflow.serializers import encode
from asyncflow.states import State

__all__ = ["SSE_HEADERS", "EventStream", "ServerSentEvent", "sse"]

SSE_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store",
        "x-accel-buffering": "no",  # else nginx keeps the events until its buffer is full
    }
)
"""What a response whose body is `sse(...)` has to say of itself."""

_HEARTBEAT = b":\n\n"
_CLOCK = SystemClock()
_GRACE = 30.0
"""Seconds that a cancelled consumer waits at most for an iterator's clean-up; a run's own grace time is shorter."""


def sse(
    items: AsyncIterable[Any], *, heartbeat_seconds: float = 15.0, retry_seconds: float | None = None
) -> EventStream:
    """The items of an async iterator as the body of a `text/event-stream` response, in `bytes`.

    `items` is a stream of a generator flow or task, `client.stream(run_id)`, or any async iterator. Each
    item is an event whose `data` is its JSON; a `ServerSentEvent` is sent as it says. The items of
    `client.stream` carry their numbers as ids, which a client that comes back sends as
    `Last-Event-ID`; an event `restarted` is sent where a run began again. Last comes the event `end`
    with the run's final state; if it failed, after an event `error` with the message in its record.

    An item is asked for when the one before it was taken. Closing the body, cancelling the task that
    waits for it and dropping it close `items`: a stream's run is then cancelled, "closed by its
    consumer", and one that `client.stream` follows goes on. When the runtime begins to stop, the latter's
    body ends, without `end`: a client that comes back goes on where it was.

    Args:
        items: The iterator. What it raises is sent as `error` and, where no run's record tells it, then raised.
        heartbeat_seconds: Send a comment whenever so long nothing else was sent, so that proxies keep the
            connection, and a client that has gone is noticed.
        retry_seconds: Tell the client to wait so long before it connects again.
    """
    if not 0 < heartbeat_seconds < math.inf:
        raise OptionError("heartbeat_seconds", heartbeat_seconds, "seconds: a number above 0")
    if not isinstance(items, AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"sse() takes an async iterator, such as my_flow.stream(...), not {items!r}")
    if isinstance(items, ItemStream):
        items.leaves_with_runtime = True  # servers wait for open connections before they tell an application to stop
    return EventStream(items, heartbeat_seconds, _retry_field(retry_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSentEvent:
    """One event, for an iterator that says more of it than its data."""

    data: Any
    """Anything that has a JSON form."""
    event: str | None = None
    """Its name; a browser calls one without a name "message"."""
    id: str | None = None
    """What a client that lost the connection sends back as `Last-Event-ID`."""
    retry_seconds: float | None = None
    """How long the client is to wait before it connects again."""

    def __post_init__(self) -> None:
        for option, value in (("event", self.event), ("id", self.id)):
            if value is not None and not {"\r", "\n", "\0"}.isdisjoint(value):
                raise OptionError(option, value, "text without line breaks and NUL, which would end it")
        _retry_field(self.retry_seconds)

    def encode(self) -> bytes:
        """The event as it is sent. Raises `NotJSONError` where its data has no JSON form."""
        return self.with_json(encode(self.data, where="data"))

    def with_json(self, text: str) -> bytes:
        """The event as it is sent, with `text` in place of its data: JSON, or any other text."""
        lines = [] if self.id is None else [f"id: {self.id}\n"]
        if self.event is not None:
            lines.append(f"event: {self.event}\n")
        lines.append(_retry_field(self.retry_seconds))
        # The three line ends of the format; `splitlines` knows more, which are ordinary characters in it.
        lines.extend(f"data: {line}\n" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
        lines.append("\n")
        return "".join(lines).encode("utf-8", "backslashreplace")


def _retry_field(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if not 0 <= seconds < math.inf:
        raise OptionError("retry_seconds", seconds, "seconds: a number from 0")
    return f"retry: {round(seconds * 1000)}\n"


class EventStream(AsyncIterator[bytes]):
    """The body that `sse` makes. Each chunk is one event or one heartbeat, whole."""

    def __init__(self, items: AsyncIterable[Any], heartbeat: float, retry: str) -> None:
        self._pump = _Pump(items)
        self._heartbeat = heartbeat
        self._attempt: int | None = None
        self._waiting: list[bytes] = [f"{retry}\n".encode()] if retry else []
        """Chunks that go out before another item is asked for."""
        self._error: BaseException | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._waiting:
            return self._waiting.pop(0)
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # it holds the frames it went through, and those hold this object
        if self._is_over:
            raise StopAsyncIteration
        if not await self._pump.ask(self._heartbeat):
            return _HEARTBEAT
        chunks = await self._next_chunks()
        if not chunks:
            raise StopAsyncIteration
        first, *self._waiting = chunks
        return first

    async def _next_chunks(self) -> list[bytes]:
        try:
            item = self._pump.take()
        except StopAsyncIteration:
            return self._farewell()
        except Exception as error:  # noqa: BLE001  # the client is told, then the framework
            return await self._failed(error, None if self._is_beside(error) else self._state())
        try:
            return self._chunks_of(item)
        except Exception as error:  # noqa: BLE001  # it has no JSON form
            return await self._failed(error, None)

    def _chunks_of(self, item: Any) -> list[bytes]:
        if isinstance(item, ServerSentEvent):
            return [item.encode()]
        if not isinstance(item, StreamItem):
            return [ServerSentEvent(data=item).with_json(encode(item, where="item"))]
        chunks = [ServerSentEvent(data=item.value, id=str(item.number)).encode()]
        before = self._attempt if self._attempt is not None else self._first_attempt()
        self._attempt = item.attempt
        if before is not None and before != item.attempt:
            chunks.insert(0, ServerSentEvent(data={"attempt": item.attempt}, event="restarted").encode())
        return chunks

    def _first_attempt(self) -> int | None:
        """The attempt that the client has seen items of, in an earlier connection."""
        items = self._pump.items
        return items.began_in if isinstance(items, ItemStream) else None

    def _state(self) -> State[Any] | None:
        """The state of the run that the items come from, as far as there is one."""
        items = self._pump.items
        return items.state if isinstance(items, Stream | ItemStream) else None

    def _is_beside(self, error: Exception) -> bool:
        """Whether it is not what the run ended with: the record could not be read, or is in doubt."""
        if isinstance(self._pump.items, ItemStream):
            return not isinstance(error, FailedRunError | RunCancelledError | CrashedRunError)
        return isinstance(error, DurabilityError)

    def _farewell(self) -> list[bytes]:
        self._is_over = True
        items = self._pump.items
        if isinstance(items, ItemStream) and items.has_left:
            return []  # no end: a client that comes back goes on where it was
        state = self._state()
        end = ServerSentEvent(data=None if state is None else _told(state), event="end").encode()
        if state is not None and (state.is_failed() or state.is_crashed()):
            return [_error_event(state.message or str(state)), end]
        return [end]

    async def _failed(self, error: Exception, state: State[Any] | None) -> list[bytes]:
        """The iterator raised, or gave something that cannot be sent."""
        await self.aclose()
        if isinstance(error, RuntimeClosedError) and isinstance(self._pump.items, ItemStream):
            return []  # the server stops: a client that comes back goes on where it was
        if state is not None and (state.is_final() or state.is_paused()):
            return self._farewell()
        self._error = error
        return [_error_event(error_summary(error))]

    async def aclose(self) -> None:
        """Close the iterator, and wait until its clean-up is done; does nothing after the end."""
        self._is_over = True
        await self._pump.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A framework whose client is gone while it sends just drops the body. One that was never
        # begun has no pump: `_Pump.stop` sees that.
        self._pump.stop()


def _error_event(message: str) -> bytes:
    return ServerSentEvent(data={"message": message}, event="error").encode()


def _told(state: State[Any]) -> dict[str, Any]:
    details = state.state_details
    run_id = details.task_run_id or details.flow_run_id
    return {"type": state.type, "name": state.name, "message": state.message, "run_id": run_id}


class _Pump:
    """Takes the items of an iterator, one each time it is asked to, in one task of its own."""

    def __init__(self, items: AsyncIterable[Any]) -> None:
        self.items = items
        self.failure: BaseException | None = None
        self._context: Context = copy_context()
        self._host: Host | None = None
        self._scope: RunScope | None = None
        self._is_asked = self._is_making = self._is_stopped = self._is_done = self._is_busy = False
        self._item: Any = None
        self._asked: Signal
        self._answered: Signal
        self._finished: Signal

    # the consumer's side

    async def ask(self, seconds: float) -> bool:
        """Have the next item made, and wait for it at most so long; a later call waits on."""
        if self._is_busy:
            raise RuntimeError("this event stream is already waiting for its next item in another task")
        if self._is_done or self._is_stopped:
            return True
        host = self._host or self._begin()
        if not self._is_asked:
            self._is_asked = True
            self._answered = host.signal()
            self._asked.set()
        self._is_busy = True
        try:
            return await host.wait_for(self._answered, seconds)
        except BaseException as error:
            await self._give_up(error)
            raise
        finally:
            self._is_busy = False

    def _begin(self) -> Host:
        host = self._host = host_here(_CLOCK)
        self._is_asked = True
        self._asked, self._answered, self._finished = host.signal(), host.signal(), host.signal()
        host.spawn(self._live, self._context)
        return host

    def take(self) -> Any:
        """What `ask` waited for; raises what the iterator raised, or `StopAsyncIteration` after its end."""
        self._is_asked = False
        failure, self.failure = self.failure, None
        if failure is not None and not self._is_stopped:
            try:
                raise failure
            finally:
                del failure  # a cycle: it holds this frame
        if self._is_done or self._is_stopped:
            raise StopAsyncIteration
        item, self._item = self._item, None
        return item

    async def close(self) -> None:
        """End the iterator and wait for its clean-up."""
        self.stop()
        if self._host is None or self._is_done:
            return
        try:
            await self._finished.wait()
        except BaseException as error:
            await self._give_up(error)
            raise

    async def _give_up(self, error: BaseException) -> None:
        self.stop()
        # A coroutine that is being closed must not wait for anything.
        if not isinstance(error, GeneratorExit) and self._host is not None and not self._is_done:
            await self._host.settle(self._finished, _GRACE)

    def stop(self) -> None:
        """Ask the iterator to end. From any thread."""
        if self._host is None:
            self._is_stopped = True
        elif not self._is_done:
            if self._host.here():
                self._stop()
            else:
                self._host.post(self._stop)

    def _stop(self) -> None:
        if self._is_stopped or self._is_done:
            return
        self._is_stopped = True
        if not self._is_making:  # it waits to be asked, and closes the iterator when it is woken
            self._asked.set()
        elif isinstance(self.items, Stream):
            self.items.stop()  # not a cancellation: its run is to end as one that its consumer closed
        elif self._scope is not None:
            self._scope.cancel()

    # the task's side

    async def _live(self) -> None:
        assert self._host is not None
        try:
            with self._host.scope(None) as scope:
                self._scope = scope
                await self._drive(self._host)
        except BaseException as error:  # noqa: BLE001  # the consumer gets it; a task of ours has nobody else
            self.failure = error
            if self._is_stopped and isinstance(error, Exception) and not isinstance(self.items, Stream):
                library_logger().error("an iterator raised while it was closed: %r", self.items, exc_info=error)
        finally:
            self._scope = None
            self._is_done = True
            self._answered.set()
            self._finished.set()

    def _is_to_stop(self) -> bool:  # a call: checkers take it that an attribute stays what it was
        return self._is_stopped

    async def _drive(self, host: Host) -> None:
        if self._is_to_stop():
            return
        iterator = aiter(self.items)
        self._is_making = True
        try:
            async for item in iterator:
                self._is_making = False
                if self._is_to_stop():
                    return
                self._asked = host.signal()
                self._item = item
                del item  # the consumer's alone from here on
                self._answered.set()
                await self._asked.wait()
                if self._is_to_stop():
                    return
                self._is_making = True
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
