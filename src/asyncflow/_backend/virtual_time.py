"""Virtual time, shared by any number of loops and threads: it stands still, and jumps when all of them wait.

Nobody is in charge. Each loop and each thread that has nothing to do looks whether that is true of
all the others, and if so lets time jump to the nearest moment that anybody waits for. The one thing
that must not happen is a jump while something is on its way: a result that a thread has posted to
a loop, a call that a loop has given to a thread. So

- a loop has settled when it saw, in this order, that all threads stand still and that nothing is
  ready for it. Whoever gives it something to do has posted that before standing still itself, so
  the later poll finds it;
- each time a loop or a thread goes to rest, and each time a thread is seen at work, is counted
  (`_happened`): what was seen before, every loop has to look at again;
- time jumps only when every running loop has settled since the last such thing.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

from asyncflow._backend.standstill import threads_stand_still

__all__ = ["LoopPart", "VirtualTime"]

_LOOK_AGAIN = 0.002
"""Seconds of real time between two looks at loops and threads that others have to end."""


class LoopPart:
    """A loop's part in virtual time. All methods but `is_running` are called on its thread."""

    def __init__(self, time: VirtualTime, is_running: Callable[[], bool], io_seconds: float) -> None:
        self._time = time
        self.is_running: Callable[[], bool] = is_running
        self._io_seconds = io_seconds
        self._has_waited_for_io = False
        self._is_idle = False
        self._seen: int | None = None
        self.thread: int = threading.get_ident()
        self.deadline: float = math.inf
        self.calls: int = 0
        """Calls in threads of others that it waits for."""
        self.settled: int | None = None

    def go_on(self) -> None:
        """It has something to do."""
        self.settled = None
        self._is_idle = self._has_waited_for_io = False

    def before_poll(self, calls: int) -> None:
        """It has nothing to do, and looks whether something is ready from outside."""
        self.thread, self.calls = threading.get_ident(), calls
        self.settled = None
        if not self._is_idle:
            self._is_idle = True
            self._time.happen()
        self._seen = self._time.what_happened()

    def after_empty_poll(self, deadline: float, *, has_io: bool) -> float:
        """Nothing was ready. Gives the seconds of real time after which it polls again; time may have jumped.

        `deadline` is when its next timer is due, `has_io` whether it waits for anything outside of
        the process: a jump is then put off once, for that long.
        """
        self.deadline = deadline
        if self._seen is None:
            return _LOOK_AGAIN
        if has_io and not self._has_waited_for_io:
            self._has_waited_for_io = True
            return self._io_seconds
        self.settled = self._seen
        return 0.0 if self._time.try_to_jump() else _LOOK_AGAIN


class VirtualTime:
    """Seconds that pass only where everybody waits, or where somebody says so."""

    def __init__(self, start: float) -> None:
        self.seconds: float = start
        self.autojump: bool = True
        self._lock = threading.RLock()
        self._happened = 0
        self._parts: dict[object, LoopPart] = {}
        self._waits: dict[int, tuple[threading.Event, float]] = {}
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    # --- loops

    def join(self, loop: object, part: LoopPart) -> None:
        """Have a loop take part, from its own thread."""
        with self._lock:
            self._parts[loop] = part
            self._happened += 1

    def leave(self, loop: object) -> None:
        """Have it take part no more."""
        with self._lock:
            self._parts.pop(loop, None)
            self._happened += 1

    def loops(self) -> list[Any]:
        """The loops that take part."""
        with self._lock:
            return list(self._parts)

    def happen(self) -> None:
        """Somebody has done all there was to do: whatever others have seen until now, they have to look at again."""
        with self._lock:
            self._happened += 1

    def what_happened(self) -> int | None:
        """A number that changes with whatever happens; None while some thread works."""
        with self._lock:
            return self._happened if self._threads_stand_still() else None

    def _threads_stand_still(self) -> bool:
        running = [part for part in list(self._parts.values()) if part.is_running()]
        waiting = {
            ident for ident, (event, until) in list(self._waits.items()) if not event.is_set() and until > self.seconds
        }
        calls = sum(part.calls for part in running)
        stand_still = threads_stand_still(waiting, {part.thread for part in running}, calls)
        self._happened += not stand_still
        return stand_still

    # --- threads

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block this thread until `event` is set or the time has passed; whether it was set."""
        until = self.seconds + seconds
        ident = threading.get_ident()
        with self._lock:
            around = self._waits.get(ident)  # a signal handler's or a finalizer's wait within a wait
            self._waits[ident] = event, until
            self._happened += 1
        try:
            while not event.is_set() and self.seconds < until:
                with self._lock:
                    due = self._jump() if self._threads_stand_still() else None
                if not _call(due):
                    event.wait(_LOOK_AGAIN)
            return event.is_set()
        finally:
            with self._lock:
                self._happened += 1
                if around is None:
                    del self._waits[ident]
                else:
                    self._waits[ident] = around

    # --- time

    def call_later(self, seconds: float, fn: Callable[[], object]) -> None:
        """Have `fn`, which must not raise, called in any thread when the time has passed."""
        with self._lock:
            heapq.heappush(self._timers, (self.seconds + seconds, next(self._numbers), fn))
            self._happened += 1

    def try_to_jump(self) -> bool:
        """Let time pass until something is due, if every loop has settled; the caller has seen that threads have."""
        with self._lock:
            due = self._jump()
        return _call(due)

    def _jump(self) -> list[Callable[[], object]] | None:
        """The same, under the lock; gives what is to be called without it, or None when it is not time to jump."""
        running = [part for part in self._parts.values() if part.is_running()]
        if not self.autojump or any(part.settled != self._happened for part in running):
            return None
        moments = [part.deadline for part in running]
        moments += [until for _, until in self._waits.values()]
        moments += [moment for moment, _, _ in self._timers[:1]]
        nearest = min(moments, default=math.inf)
        return None if nearest == math.inf else self._pass(max(nearest, self.seconds))

    def advance(self, seconds: float) -> None:
        """Let time pass, whoever works."""
        with self._lock:
            due = self._pass(self.seconds + seconds)
        _call(due)

    def creep(self) -> None:
        """Go on by as little as a number can, as real time does while a loop turns.

        asyncio rounds: a timer may be fired the last digit too early, and whoever then waits for the rest
        would wait for ever on a clock that stands quite still.
        """
        with self._lock:
            self.seconds = math.nextafter(self.seconds, math.inf)

    def catch_up(self, seconds: float) -> None:
        """Be not earlier than a loop that joins is."""
        with self._lock:
            self.seconds = max(self.seconds, seconds)

    def _pass(self, until: float) -> list[Callable[[], object]]:
        self.seconds = until
        self._happened += 1
        due: list[Callable[[], object]] = []
        while self._timers and self._timers[0][0] <= until:
            due.append(heapq.heappop(self._timers)[2])
        return due


def _call(due: list[Callable[[], object]] | None) -> bool:
    """Call what is due; whether time has passed at all."""
    for fn in due or ():
        fn()
    return due is not None
