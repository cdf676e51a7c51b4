"""Counting slots: who may go on, and in which order.

They are shared by tasks of any number of loops and by plain threads at once, so no primitive of a
loop's package would do. What the code below guarantees:

- Strictly first come, first served. A heavy waiter at the head of the queue blocks lighter ones
  behind it, else it could wait for ever.
- A freed slot goes straight to the head of the queue. It is never free in between, so nobody who
  comes at the right moment overtakes those who wait.
- Whoever stops waiting, for whatever reason, holds nothing and stands in nobody's way.

Nothing here does I/O or polls. The locks are held for a few attribute accesses. They are re-entrant
ones, because a signal handler, or a coroutine that the garbage collector closes, may run in the
middle of a locked block on the same thread and give back a slot itself: a plain lock would wait for
itself there. Hence the second rule of these blocks: what belongs together is done without a call in
between, since handlers and the collector run after calls only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from threading import RLock
from typing import TypeAlias

from asyncflow._backend.base import Host, Signal
from asyncflow.exceptions import OptionError

__all__ = ["Limiter", "Wait", "Waiter", "wait_plainly", "whole_number"]


def whole_number(option: str, value: object, *, most: int | None = None) -> int:
    """`value`, if it is a whole number from 1 (to `most`); else `OptionError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
        raise OptionError(option, value, "a whole number from 1" + ("" if most is None else f" to {most}"))
    return value


Wait: TypeAlias = Callable[[Host, Signal, float | None], Awaitable[object]]
"""Waits on a host for a signal, at most some seconds."""


async def wait_plainly(host: Host, signal: Signal, seconds: float | None) -> None:
    """The `Wait` of somebody for whom nothing else is to be done meanwhile."""
    await (signal.wait() if seconds is None else host.wait_for(signal, seconds))


class Waiter:
    """A place in the queue for `count` slots."""

    __slots__ = ("count", "granted", "wake")

    def __init__(self, wake: Callable[[], None], count: int = 1) -> None:
        self.wake: Callable[[], None] = wake
        self.count: int = count
        self.granted: bool = False


class Limiter:
    """`capacity` slots. Every method may be called from any thread."""

    __slots__ = ("_front", "_in_use", "_lock", "_queue", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity: int = whole_number("capacity", capacity)
        self._in_use = 0
        self._lock = RLock()
        # Ordered dicts and not deques: with 10,000 waiters cancelled at once, each must leave the middle at no cost.
        self._front: OrderedDict[Waiter, None] = OrderedDict()
        self._queue: OrderedDict[Waiter, None] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Slots that somebody holds."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """Places taken in the queue."""
        return len(self._front) + len(self._queue)

    def try_acquire(self, count: int = 1) -> bool:
        """Take the slots if they are free and nobody waits for any."""
        taken = False
        try:
            with self._lock:
                if 0 < count <= self.capacity - self._in_use and not self._queue and not self._front:
                    self._in_use += count
                    taken = True
        except BaseException:  # a Ctrl-C at the end of the block: the caller will not know that it has them
            if taken:
                self.release(count)
            raise
        if not taken:
            self._check(count)
        return taken

    async def acquire(
        self, host: Host, count: int = 1, *, first: bool = False, within: float | None = None, wait: Wait = wait_plainly
    ) -> bool:
        """Wait for the slots, at most `within` seconds; gives whether they were got.

        Where this raises, whatever it raises, they were not. `first` is as in `enqueue`.
        """
        if not first and self.try_acquire(count):
            return True
        self._check(count)
        signal = host.signal()
        waiter = Waiter(signal.set, count)
        try:
            self._join(waiter, first)
            if not waiter.granted:
                await wait(host, signal, within)
            # The grant may have come at the very moment the time was over.
            return waiter.granted or not self.withdraw(waiter)
        except BaseException:
            if not self.withdraw(waiter):
                self.release(count)
            raise

    def enqueue(self, wake: Callable[[], None], count: int = 1, *, first: bool = False) -> Waiter:
        """Wait for the slots without blocking: `wake()` is called once, when they are granted.

        That is on whatever thread released them, outside of the lock, or at once, right here. With
        `first` the place is before all that came without it: for who gave its slots back only
        while it waited for something else.
        """
        self._check(count)
        waiter = Waiter(wake, count)
        self._join(waiter, first)
        return waiter

    def withdraw(self, waiter: Waiter) -> bool:
        """Leave the queue. False when it was too late: the caller has the slots and must release them."""
        with self._lock:
            if waiter.granted:
                return False
            self._front.pop(waiter, None)
            self._queue.pop(waiter, None)
        self._pass_on()  # it may have been a heavy one that lighter ones were waiting behind
        return True

    def release(self, count: int = 1) -> None:
        """Give slots back, to whoever is first in the queue if there is somebody."""
        with self._lock:
            if not self._queue and not self._front and count <= self._in_use:  # cheap where nobody waits
                self._in_use -= count
                return
        self._pass_on(count)

    def is_spent(self) -> bool:
        """Whether forgetting it would make no difference."""
        return self._in_use == 0 and self.waiting == 0

    def _check(self, count: int) -> None:
        if not 0 < count <= self.capacity:
            raise OptionError("count", count, f"a whole number from 1 to {self.capacity}")

    def _join(self, waiter: Waiter, first: bool) -> None:
        with self._lock:
            (self._front if first else self._queue)[waiter] = None
        self._pass_on()

    def _pass_on(self, freed: int = 0) -> None:
        """Grant what is free to the heads of the queue, one by one, and wake each outside of the lock."""
        while True:
            head: Waiter | None = None
            try:
                with self._lock:
                    if freed > self._in_use:
                        raise ValueError(f"{freed} slots given back of {self._in_use} in use")
                    self._in_use -= freed
                    freed = 0
                    if self._front or self._queue:
                        head = self._grant_head()
            finally:
                if head is not None:
                    head.wake()
            if head is None:
                return

    def _grant_head(self) -> Waiter | None:
        queue = self._front or self._queue
        for head in queue:  # its first. Not `next(iter())`: others may change the queue after each call (see above)
            if self._in_use + head.count > self.capacity:
                return None
            self._in_use += head.count
            head.granted = True
            del queue[head]
            return head
        return None

    def __repr__(self) -> str:
        return f"<Limiter {self._in_use} of {self.capacity} in use, {self.waiting} waiting>"
