"""Waiting for several futures: in completion order, or until enough of them are done."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from asyncflow._backend.base import Host, Signal
from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._outcomes import blocked, refuse_cycle, time_to_wait
from asyncflow._run import Run, Waiter
from asyncflow.abc import Clock
from asyncflow.clock import SystemClock
from asyncflow.context import current_run
from asyncflow.exceptions import OptionError, WaitOnEventLoopError
from asyncflow.futures import RunFuture
from asyncflow.retries import Seconds

__all__ = ["Waited", "as_completed", "wait"]

T = TypeVar("T")
ReturnWhen = Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"]
_RETURN_WHEN = ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION")


class _Arrivals(Generic[T]):
    """The futures that are done and were not taken yet, in the order they ended."""

    def __init__(self, futures: Iterable[RunFuture[T]], *, all_of_them: bool, timeout: float | None) -> None:
        unique = dict.fromkeys(futures)
        self._clock: Clock = next((each.run.services.clock for each in unique), SystemClock())
        self._until = None if timeout is None else self._clock.monotonic() + timeout
        self.total: int = len(unique)
        self.left: int = self.total
        self._arrived: deque[RunFuture[T]] = deque()
        self._signals: dict[Signal, None] = {}
        self._waiting: Run | None = current_run.get()
        self._waiters: dict[Waiter, Run] = {}
        for future in unique:
            waiter = Waiter(partial(self._arrive, future), self._waiting if all_of_them and timeout is None else None)
            self._waiters[waiter] = future.run
            future.run.attend(waiter)
        try:
            for waiter, run in self._waiters.items():
                if waiter.run is not None:
                    refuse_cycle(waiter.run, run)
        except BaseException:
            self.close()
            raise

    def _arrive(self, future: RunFuture[T]) -> None:
        self._arrived.append(future)
        self._wake()

    def _wake(self) -> None:
        for signal in list(self._signals):
            signal.set()

    async def next(self) -> RunFuture[T] | None:
        """The next one; None when there are no more. Raises `TimeoutError` when the time is over."""
        host = host_here(self._clock)
        while self.left and not self._arrived:
            await self._wait(host)
        if not self.left:
            return None
        self.left -= 1
        if not self.left:
            self._wake()  # several may share it
            self.close()
        return self._arrived.popleft()

    async def _wait(self, host: Host) -> None:
        # It is in place before the last look, so what arrives meanwhile sets it.
        signal = host.signal()
        self._signals[signal] = None
        try:
            if not self._arrived and self.left:
                await self._wait_for(host, signal)
        finally:
            self._signals.pop(signal, None)

    async def _wait_for(self, host: Host, signal: Signal) -> None:
        left = None if self._until is None else self._until - self._clock.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(
                f"{self.left} (of {self.total}) runs had not ended when the time to wait for them was over"
            )
        await blocked(host, self._waiting, signal, left)

    def close(self) -> None:
        """Wait for no more of them."""
        waiters, self._waiters = self._waiters, {}
        for waiter, run in waiters.items():
            run.desert(waiter)


class as_completed(Generic[T]):  # a function by its use, as in asyncio
    """The futures, each as soon as its run has ended: with `async for`, or with `for` on a thread without a loop.

    `timeout` is in seconds, for all of them together; when it is over, `TimeoutError` is raised and
    the runs go on. A future that is given twice comes once.
    """

    def __init__(self, futures: Iterable[RunFuture[T]], *, timeout: Seconds | None = None) -> None:
        self._futures = list(futures)
        self._timeout = time_to_wait(timeout)
        self._arrivals: _Arrivals[T] | None = None

    def __aiter__(self) -> AsyncIterator[RunFuture[T]]:
        return self

    def __iter__(self) -> Iterator[RunFuture[T]]:
        if loop_is_running_here():
            raise WaitOnEventLoopError("for future in as_completed(...)", "async for future in as_completed(...):")
        return self

    async def __anext__(self) -> RunFuture[T]:
        future = await self._next()
        if future is None:
            raise StopAsyncIteration
        return future

    def __next__(self) -> RunFuture[T]:
        future: RunFuture[T] | None = drive(self._next())
        if future is None:
            raise StopIteration
        return future

    async def _next(self) -> RunFuture[T] | None:
        if self._arrivals is None:
            self._arrivals = _Arrivals(self._futures, all_of_them=True, timeout=self._timeout)
        return await self._arrivals.next()

    def __del__(self) -> None:
        arrivals: Any = getattr(self, "_arrivals", None)
        if arrivals is not None:
            arrivals.close()


class Waited(NamedTuple, Generic[T]):
    """What `wait` gives."""

    done: set[RunFuture[T]]
    not_done: set[RunFuture[T]]


async def wait(
    futures: Iterable[RunFuture[T]],
    *,
    timeout: Seconds | None = None,  # it is no error: what is done by then is given
    return_when: ReturnWhen = "ALL_COMPLETED",
) -> Waited[T]:
    """Wait until all are done, or the first, or the first that did not complete, at most `timeout` seconds.

    Gives `(done, not_done)`, takes no value and cancels nothing. `return_when` takes the constants
    of `asyncio` and `concurrent.futures`.
    """
    if return_when not in _RETURN_WHEN:
        raise OptionError("return_when", return_when, f"one of {', '.join(_RETURN_WHEN)}")
    seconds = time_to_wait(timeout)
    given = list(futures)
    arrivals = _Arrivals(given, all_of_them=return_when == "ALL_COMPLETED", timeout=seconds)
    try:
        while (future := await arrivals.next()) is not None:
            failed = future.run.error is not None
            if return_when == "FIRST_COMPLETED" or (return_when == "FIRST_EXCEPTION" and failed):
                break
    except TimeoutError:
        pass
    finally:
        arrivals.close()
    done = {each for each in given if each.done()}
    return Waited(done, set(given) - done)
