"""Requests whose client has gone: cancelling what is done for them.

Most ASGI servers leave a handler alone when its client disconnects: they say so to whoever receives
next, and nobody does while a handler awaits a flow. So somebody has to receive meanwhile. ASGI is a
protocol of plain callables, so this needs no framework's package.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from asyncflow._backend.base import Host, RunScope, Signal
from asyncflow._backend.detect import host_here
from asyncflow.clock import SystemClock

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectSendStream

__all__ = ["CancelOnDisconnect", "cancel_on_disconnect"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_CLOCK = SystemClock()
_STOP_SECONDS = 5.0
"""How long a server's `receive` may take to notice that it is cancelled."""


class _Watch:
    """Receives what a client sends while its request is worked on, and cancels that work when it has gone.

    The receiving is done in a task of its own. The work is cancelled by one native cancel of its
    task (on trio, by a scope), as runs are: the scope of an anyio task group would cancel all that
    is below an `asyncio.gather` again in each turn of the loop.
    """

    def __init__(self, receive: Receive, relay: MemoryObjectSendStream[Message] | None = None) -> None:
        self._receive = receive
        self._relay = relay
        self._host: Host = host_here(_CLOCK)
        self._work: RunScope = self._host.scope(None)
        self._receiving: RunScope = self._host.scope(None)
        self._ended: Signal = self._host.signal()
        self._is_left = False
        self.disconnected: bool = False
        """Whether the client has gone."""

    async def __aenter__(self) -> Self:
        self._work.__enter__()
        self._host.spawn(self._watch, copy_context(), self._ended.set)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        is_ours = self._work.__exit__(exc_type, exc, tb)
        self._is_left = True
        self._receiving.cancel()
        # From here on others receive: frameworks do so while they stream a response.
        held_back = await self._host.settle(self._ended, _STOP_SECONDS)
        if held_back is not None and (exc is None or is_ours):
            raise held_back
        return is_ours

    async def _watch(self) -> None:
        try:
            with self._receiving:
                # An eager task begins while the work is not waiting for anything: a cancellation
                # would reach it at some later await, maybe behind the block.
                await self._host.sleep(0)
                while not (self._is_left or self.disconnected):
                    await self._take(await self._receive())
        except Exception:  # noqa: BLE001  # the server's own: it has given the connection up
            self._give_up()
        finally:
            self._ended.set()

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self._give_up()
        elif self._relay is not None:
            await self._relay.send(message)

    def _give_up(self) -> None:
        self.disconnected = True
        if self._relay is not None:
            self._relay.close()
        self._work.cancel()


def cancel_on_disconnect(receive: Receive) -> _Watch:
    """Cancel a block of an ASGI handler when its client disconnects.

        async with asyncflow.cancel_on_disconnect(request.receive):
            return await my_flow()
        return Response(status_code=499)  # nobody reads it

    What the block awaits is cancelled as by `task.cancel()`, on trio by a scope: a flow run is
    recorded Cancelled "by its caller" when every `finally` below it is done. Then the handler goes
    on behind the block. A run that was submitted goes on as well: it belongs to the runtime.

    The body of the request is to be read before the block (FastAPI has done so by then): whatever
    the client sends meanwhile is dropped. `as watch` gives `watch.disconnected`.
    """
    return _Watch(receive)


class CancelOnDisconnect:
    """ASGI middleware that cancels a handler when its client disconnects; see `cancel_on_disconnect`.

    For a whole application, `app.add_middleware(asyncflow.CancelOnDisconnect)`, or for one route:
    `Route(..., middleware=[Middleware(asyncflow.CancelOnDisconnect)])` with Starlette,
    `@post(..., middleware=[asyncflow.CancelOnDisconnect])` with Litestar.

    The body of a request is received no faster than the handler takes it, so that one which leaves
    a large body unread is not told of the disconnect.
    """

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Run the application below for one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        import anyio  # at first use, as everywhere

        # With room for one message: behind the last of a body, which may be its only one, comes the disconnect.
        relay, arrived = anyio.create_memory_object_stream[Message](1)

        async def next_message() -> Message:
            try:
                return await arrived.receive()
            except anyio.EndOfStream:
                return {"type": "http.disconnect"}

        with relay, arrived:
            async with _Watch(receive, relay):
                await self.app(scope, next_message, send)
