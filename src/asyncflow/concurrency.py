"""Limits that users name: how many at once, and how many per second.

All flows of a runtime share them, on all its loops and threads: `concurrency("database", 5)` is the
same limit wherever it is written. There is one code path for `with` and `async with`: a coroutine
that waits on the host of whoever asks, and on a thread without a loop never suspends.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn

from asyncflow._backend.base import Host, Signal
from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._limiter import Limiter, Wait, wait_plainly, whole_number
from asyncflow._limits import PROCESS_LIMITS, LimitRegistry, Use
from asyncflow._outcomes import blocked
from asyncflow._rates import RateLimiter
from asyncflow.abc import Clock
from asyncflow.clock import SystemClock
from asyncflow.context import current_run
from asyncflow.exceptions import LimitDeadlockError, LimitTimeoutError, OptionError, WaitOnEventLoopError
from asyncflow.retries import Seconds, seconds_of
from asyncflow.runtime import HOME

__all__ = ["ConcurrencyLimit", "RateLimit", "concurrency", "rate_limit"]

_CLOCK = SystemClock()

_held: ContextVar[tuple[Use[Limiter], ...]] = ContextVar("asyncflow_limits_held", default=())
"""What the blocks hold that the executing code is in, or was started in; the innermost is the last.

Not what its run and the runs above it hold: two branches of a `gather` in one flow may well wait
for each other's slots.
"""


def concurrency(name: str, limit: int, *, occupy: int = 1, timeout_seconds: Seconds | None = None) -> ConcurrencyLimit:
    """Let at most `limit` blocks of this name run at once in this runtime.

    `async with concurrency("database", 5):` in async code, `with concurrency("database", 5):` on a
    thread without a loop. Who comes first is served first; `occupy` is how many of the slots the
    block takes, and a block that needs many is not overtaken by those that need few. The object
    may be kept, and entered any number of times, also at once.

    Entering raises `LimitTimeoutError` (a `TimeoutError`) when there was no room for
    `timeout_seconds` (0: do not wait), `LimitConflictError` when the name is in use with another
    limit, and `LimitDeadlockError` inside of blocks that hold so much of the same limit that it
    could never be had. A wait that is cancelled leaves nothing behind.
    """
    return ConcurrencyLimit(name, limit, occupy, timeout_seconds)


def rate_limit(name: str, per_second: float, *, occupy: int = 1, timeout_seconds: Seconds | None = None) -> RateLimit:
    """Let at most `per_second` blocks of this name begin in any second, in this runtime.

    Entering `async with rate_limit("api", 100):` (or `with`, on a thread without a loop) takes a
    permit, or `occupy` of them, first come first served; leaving does nothing. However long nobody
    came, no window of one second sees more than `per_second`: the first may come all together, the
    next when a second has passed since. Rates that are no whole numbers (0.1: one in ten seconds)
    hold in the long run, and no second sees more than the next whole number.

    Entering raises `LimitTimeoutError` (a `TimeoutError`) when there is no permit within
    `timeout_seconds` (as soon as that is certain), and `LimitConflictError` when somebody waits
    for a limit of this name with another rate.
    """
    return RateLimit(name, per_second, occupy, timeout_seconds)


class ConcurrencyLimit:
    """What `concurrency` gives: a context manager."""

    __slots__ = ("_uses", "limit", "name", "occupy", "timeout_seconds")

    def __init__(self, name: str, limit: int, occupy: int, timeout_seconds: Seconds | None) -> None:
        self.name: str = _checked_name(name)
        self.limit: int = whole_number("limit", limit)
        self.occupy: int = whole_number("occupy", occupy, most=limit)
        self.timeout_seconds: float | None = _checked_timeout(timeout_seconds)
        self._uses: dict[Use[Limiter], None] = {}

    def __enter__(self) -> None:
        _refuse_on_loop(self)
        drive(self._enter())

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._leave()

    async def __aenter__(self) -> None:
        await self._enter()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._leave()

    async def _enter(self) -> None:
        limits, clock, wait = _here()
        use: Use[Limiter] = Use(current_run.get(), self.occupy)
        try:
            limiter = limits.concurrency.join(use, self.name, self.limit, lambda _: Limiter(self.limit))
            self._refuse_deadlock(use)
            host = host_here(clock)
            use.holds = await limiter.acquire(host, self.occupy, within=self.timeout_seconds, wait=wait)
            if not use.holds:
                self._give_up(use)
            self._uses[use] = None
            _held.set((*_held.get(), use))
        except BaseException:
            self._end(use)
            raise

    def _leave(self) -> None:
        # The latest of this object's in this context is the one to end. There is none where the block was entered in
        # another context (an async generator may be closed by another task): then any will do, they are all alike.
        held = _held.get()
        mine = [use for use in held if use in self._uses] or list(self._uses)
        self._end(mine[-1])
        _held.set(tuple(use for use in held if use.holds))

    def _end(self, use: Use[Limiter]) -> None:
        self._uses.pop(use, None)
        if use.holds and use.named is not None:
            use.holds = False
            use.named.limiter.release(use.count)
        use.end()

    def _refuse_deadlock(self, use: Use[Limiter]) -> None:
        above = [each for each in _held.get() if each.holds and each.named is use.named]
        held = sum(each.count for each in above)
        if held + self.occupy > self.limit:
            holders = list(dict.fromkeys(each.describe() for each in above))
            raise LimitDeadlockError(self.name, self.limit, asked=self.occupy, held=held, holders=holders)

    def _give_up(self, use: Use[Limiter]) -> NoReturn:
        assert use.named is not None
        raise LimitTimeoutError(
            repr(self),
            self.name,
            asked=self.occupy,
            seconds=self.timeout_seconds or 0.0,
            waiting=use.named.limiter.waiting,
            holders=use.named.holders(),
        )

    def __repr__(self) -> str:
        return f"concurrency({self.name!r}, {self.limit!r})"


class RateLimit:
    """What `rate_limit` gives: a context manager."""

    __slots__ = ("name", "occupy", "per_second", "timeout_seconds")

    def __init__(self, name: str, per_second: float, occupy: int, timeout_seconds: Seconds | None) -> None:
        self.name: str = _checked_name(name)
        self.per_second: float = _checked_rate(per_second)
        self.occupy: int = whole_number("occupy", occupy, most=math.ceil(per_second))
        self.timeout_seconds: float | None = _checked_timeout(timeout_seconds)

    def __enter__(self) -> None:
        _refuse_on_loop(self)
        drive(self._enter())

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return

    async def __aenter__(self) -> None:
        await self._enter()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        return

    async def _enter(self) -> None:
        limits, clock, wait = _here()
        use: Use[RateLimiter] = Use(current_run.get(), self.occupy)

        def make(before: RateLimiter | None) -> RateLimiter:
            return RateLimiter(self.per_second, clock.monotonic, before)

        try:
            limiter = limits.rates.join(use, self.name, self.per_second, make)
            host = host_here(clock)
            if not await limiter.acquire(host, self.occupy, within=self.timeout_seconds, wait=wait):
                raise LimitTimeoutError(
                    repr(self),
                    self.name,
                    asked=self.occupy,
                    seconds=self.timeout_seconds or 0.0,
                    waiting=limiter.waiting,
                )
        finally:
            use.end()

    def __repr__(self) -> str:
        return f"rate_limit({self.name!r}, {self.per_second!r})"


def _here() -> tuple[LimitRegistry, Clock, Wait]:
    """The limits that this code shares, the clock it goes by, and how it waits."""
    run = current_run.get()
    if run is None:
        services = HOME.in_force()
        if services is None:
            return PROCESS_LIMITS, _CLOCK, wait_plainly
        return services.limits, services.clock, wait_plainly

    def wait(host: Host, signal: Signal, seconds: float | None) -> Awaitable[None]:
        # Without its place in its task runner: whoever is in the block may be waiting for a child that needs one.
        return blocked(host, run, signal, seconds)

    return run.services.limits, run.services.clock, wait


def _refuse_on_loop(limit: ConcurrencyLimit | RateLimit) -> None:
    if loop_is_running_here():
        raise WaitOnEventLoopError(f"with {limit!r}", f"async with {limit!r}:")


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise OptionError("name", name, "a text that is not empty")
    return name


def _checked_rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise OptionError("per_second", value, "a number above 0")
    return value


def _checked_timeout(value: Seconds | None) -> float | None:
    return None if value is None else seconds_of("timeout_seconds", value)
