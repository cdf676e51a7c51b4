"""How many per second: a rule that holds for every window of time, and a queue before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from asyncflow._backend.base import Host
from asyncflow._limiter import Limiter, Wait, wait_plainly
from asyncflow.exceptions import OptionError

__all__ = ["RateLimiter", "SlidingWindow"]


class SlidingWindow:
    """The rule of a rate limit. Pure: times come in as numbers, in an order that never goes back.

    Of r per second, `permits` = ceil(r) may be granted in any `span` = ceil(r) / r seconds: each one no
    sooner than `span` after the one that came `permits` before it. As `span` is never less than a
    second, no window of one second sees more than ceil(r), wherever it begins; and under load there are
    r per second in the long run, also where r is 2.5 or 0.1.

    Not the classic token bucket: one of size r that is refilled at r per second lets 2r - 1 pass in
    the second that begins with it full. And not even spacing: as safe, but two calls at once would
    never both go on at once, however long nobody had called.
    """

    __slots__ = ("_grants", "_used", "permits", "span")

    def __init__(self, per_second: float, before: SlidingWindow | None = None) -> None:
        """`before` is what the limit was until now: its grants count."""
        self.permits: int = math.ceil(per_second)
        self.span: float = self.permits / per_second
        self._grants: deque[tuple[float, int]] = deque(() if before is None else before._grants)
        self._used = sum(count for _, count in self._grants)

    def take(self, now: float, count: int = 1) -> float:
        """Grant `count` permits and give 0; or give the seconds until they can be granted."""
        self._forget(now)
        lacking = self._used + count - self.permits
        if lacking <= 0:
            self._used += count
            self._grants.append((now, count))
            return 0.0
        for moment, granted in self._grants:
            lacking -= granted
            if lacking <= 0:
                return moment + self.span - now
        raise OptionError("count", count, f"a whole number from 1 to {self.permits}")

    def is_empty(self, now: float) -> bool:
        """Whether nothing that was granted counts any more."""
        self._forget(now)
        return not self._grants

    def _forget(self, now: float) -> None:
        grants = self._grants
        while grants and grants[0][0] + self.span <= now:
            self._used -= grants[0][1]
            del grants[0]


class RateLimiter:
    """A window with a queue before it. Any thread.

    Only the head of the queue looks at the window and sleeps, on its own host, and it takes its
    permits there when it goes on: what counts is when the work begins, not when a timer of another
    loop said that it may. (So a loop that is blocked at that moment holds up those behind it.)
    """

    __slots__ = ("_monotonic", "_turn", "_window")

    def __init__(self, per_second: float, monotonic: Callable[[], float], before: RateLimiter | None = None) -> None:
        self._monotonic = monotonic
        self._window: SlidingWindow = SlidingWindow(per_second, None if before is None else before._window)
        self._turn = Limiter(1)

    @property
    def waiting(self) -> int:
        """How many stand before the window or in the queue."""
        return self._turn.in_use + self._turn.waiting

    async def acquire(
        self, host: Host, count: int = 1, *, within: float | None = None, wait: Wait = wait_plainly
    ) -> bool:
        """Wait for permits, at most `within` seconds; gives whether they were got.

        The head of the queue knows when its permits are due and gives up at once when that is too late.
        """
        deadline = math.inf if within is None else self._monotonic() + within
        if not await self._turn.acquire(host, within=within, wait=wait):
            return False
        try:
            while (seconds := self._window.take(self._monotonic(), count)) > 0:
                if self._monotonic() + seconds > deadline:
                    return False
                await wait(host, host.signal(), seconds)
            return True
        finally:
            self._turn.release()

    def is_spent(self) -> bool:
        """Whether forgetting it would make no difference."""
        return self._turn.is_spent() and self._window.is_empty(self._monotonic())
