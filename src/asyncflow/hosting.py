"""At home in a web service: a runtime that is open for as long as an application runs.

A framework opens and closes things in its own way. What is here needs no framework's package: a
lifespan is a context manager, and aiohttp's clean-up an async generator.

Servers end the requests first, which may take as long as the requests do, and only then tell the
application that it is to stop. So the runtime listens to the signals that stop the server: its
drain window begins with them. The server's own handlers are called as ever.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar, overload

from asyncflow._backend.detect import host_here
from asyncflow._shutdown import interrupt_now, shut_down
from asyncflow.clock import SystemClock
from asyncflow.exceptions import NoRuntimeError
from asyncflow.logs import library_logger
from asyncflow.runtime import HOME, Runtime

__all__ = ["cleanup_ctx", "get_runtime", "lifespan"]

A = TypeVar("A")
S = TypeVar("S")

_CLOCK = SystemClock()
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@overload
def lifespan(
    home: str | Path | None = None, *, inner: None = None, listen_to_signals: bool = True, **options: Any
) -> Callable[[Any], AbstractAsyncContextManager[None]]: ...
@overload
def lifespan(
    home: str | Path | None = None,
    *,
    inner: Callable[[A], AbstractAsyncContextManager[S]],
    listen_to_signals: bool = True,
    **options: Any,
) -> Callable[[A], AbstractAsyncContextManager[S]]: ...
def lifespan(
    home: str | Path | None = None, *, inner: Any = None, listen_to_signals: bool = True, **options: Any
) -> Any:
    """A lifespan for an ASGI framework: a `Runtime` that is open for as long as the application runs.

    `FastAPI(lifespan=asyncflow.lifespan("runs"))`; Starlette likewise, and Litestar with
    `lifespan=[asyncflow.lifespan("runs")]`. Each start of the application opens a new runtime.

    It belongs to the application that the server runs. Servers tell only that one of starting and
    stopping: the lifespan of an application that is mounted in another one is never called.

    Args:
        home: As for `Runtime`.
        inner: The lifespan that the application has already. It is entered when the runtime is open
            and left before the runtime is; what it yields, the state of the requests, is passed on.
        listen_to_signals: Begin to stop with the SIGTERM or SIGINT that stops the server, and not when
            the server has ended all requests: no run begins outside of any other from then on, and
            `drain_seconds` later those that requests wait for are interrupted too.
        options: Everything else that `Runtime` takes.
    """

    @asynccontextmanager
    async def opened(app: Any) -> AsyncGenerator[Any]:
        runtime = Runtime(home, **options)
        with _Listening(runtime, listen_to_signals):
            async with runtime:
                if inner is None:
                    yield None
                else:
                    async with inner(app) as state:
                        yield state

    return opened


def cleanup_ctx(
    home: str | Path | None = None, *, listen_to_signals: bool = True, **options: Any
) -> Callable[[Any], AsyncGenerator[None]]:
    """The same for aiohttp: `app.cleanup_ctx.append(asyncflow.cleanup_ctx("runs"))`.

    The arguments are those of `lifespan`. aiohttp tells an application that was added with
    `add_subapp` of starting and stopping too; when both have a runtime, calls have to say which one
    they mean: `with runtime.as_current():`.
    """

    async def opened(_app: Any) -> AsyncGenerator[None]:
        runtime = Runtime(home, **options)
        with _Listening(runtime, listen_to_signals):
            async with runtime:
                yield

    return opened


async def get_runtime() -> Runtime:
    """The runtime that calls made here belong to; for frameworks that inject it.

    `runtime: Annotated[Runtime, Depends(asyncflow.get_runtime)]` with FastAPI, and
    `Provide(asyncflow.get_runtime)` with Litestar. It is async so that they call it on the loop and
    not in a thread. Raises `NoRuntimeError` when none is open, and `SeveralRuntimesError`.
    """
    runtime = HOME.entered()
    if runtime is None:
        raise NoRuntimeError
    return runtime


class _Listening:
    """Has a runtime begin to stop with the signal that stops its host, and passes the signal on.

    Around the whole block of the runtime: the second Ctrl-C comes while that is being left.

    Where nobody handles a signal, nobody is told of it here either: it ends the process, as ever.
    """

    def __init__(self, runtime: Runtime, is_wanted: bool) -> None:
        self._runtime = runtime
        self._is_wanted = is_wanted and threading.current_thread() is threading.main_thread()
        self._host = host_here(_CLOCK)
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._is_told = False

    def __enter__(self) -> Self:
        for number in _SIGNALS if self._is_wanted else ():
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                _handle(number, self._hear)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._hear:  # the host may have put its own back already
                _handle(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._runtime.stop()
        if not self._is_told:
            self._is_told = True
            self._host.post(self._stop)  # this may be in the middle of anything
        elif number == signal.SIGINT:  # somebody is impatient (two SIGTERMs may be a supervisor's)
            self._host.post(self._interrupt)
        self._handlers[number](number, frame)

    def _stop(self) -> None:
        self._host.spawn(self._shut_down, Context())

    def _interrupt(self) -> None:
        if self._runtime.services is not None:
            interrupt_now(self._runtime.services)

    async def _shut_down(self) -> None:
        services = self._runtime.services
        if services is None:
            return
        try:
            await shut_down(services, self._host, drain=True)
        except Exception:  # noqa: BLE001  # in a task of ours, which nobody waits for
            library_logger().exception(
                "the runtime on %r could not be stopped with the signal", str(self._runtime.home)
            )


def _handle(number: int, handler: Callable[[int, FrameType | None], Any]) -> None:
    signal.signal(number, handler)
    if sys.platform != "win32":
        signal.siginterrupt(number, False)  # as event loops have it for the signals they handle
