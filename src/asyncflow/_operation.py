"""What is done with `await` in async code, and with `.result()` on a thread without an event loop.

As with futures: what a call gives never depends on where it is called from. Behind it is one coroutine
that waits on the host of whoever asks; on a thread without a loop it never suspends.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar, final, overload

from asyncflow._backend.detect import loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow.exceptions import WaitOnEventLoopError

__all__ = ["Operation"]

T_co = TypeVar("T_co", covariant=True)


@final
class Operation(Coroutine[Any, Any, T_co]):
    """Something that is done once, when it is awaited or its result is asked for; until then nothing happens.

    A coroutine in all respects: it can be given to `asyncio.run`, a task group, a nursery.
    """

    __slots__ = ("_called", "_coroutine")

    def __init__(self, called: str, coroutine: Coroutine[Any, Any, T_co]) -> None:
        self._called = called
        self._coroutine = coroutine

    def result(self) -> T_co:
        """Do it on this thread, which has no event loop (a sync body, a script), and give its value.

        Raises `WaitOnEventLoopError` where a loop runs.
        """
        if loop_is_running_here():
            self._coroutine.close()
            raise WaitOnEventLoopError(f"{self._called}(...).result()", f"await {self._called}(...)")
        value: T_co = drive(self._coroutine)
        return value

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._coroutine.__await__()

    def send(self, value: Any, /) -> Any:
        """As a coroutine's."""
        return self._coroutine.send(value)

    @overload
    def throw(
        self, typ: type[BaseException], val: BaseException | object = None, tb: TracebackType | None = None, /
    ) -> Any: ...
    @overload
    def throw(self, typ: BaseException, val: None = None, tb: TracebackType | None = None, /) -> Any: ...
    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Any:
        """As a coroutine's."""
        return self._coroutine.throw(typ if val is None else val)

    def close(self) -> None:
        """As a coroutine's."""
        self._coroutine.close()

    def __repr__(self) -> str:
        return f"<{self._called}(...): await it, or ask for its .result()>"
