"""The event loops of this process that host runs, for somebody on another thread who watches them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol
from weakref import WeakSet

from asyncflow._backend.frames import key_of, local_of, module_of, thread_stack

__all__ = ["Loop", "WatchedHost", "enrol", "is_debugged", "loops"]

_TURNING = {"asyncio.base_events:BaseEventLoop._run_once", "trio._core._run:run"}
"""Where a loop's thread is, apart from its selector, while nothing that was given to the loop executes."""
_RUNNERS = {"run_until_complete", "run_forever"}
"""What turns a loop that has no frames of its own (uvloop): whoever calls these is where its thread is then."""
_SELECTORS = {"selectors", "trio._core._io_epoll", "trio._core._io_kqueue", "trio._core._io_windows"}
_TRIO_STEP = "trio._core._run:unrolled_run"
_DEBUGGERS = {"pdb", "bdb", "pydevd", "debugpy"}


class WatchedHost(Protocol):
    """The host of a loop."""

    thread_id: int
    """Of the thread that the loop turns on."""

    def post(self, fn: Callable[[], object]) -> None: ...


class Loop:
    """A loop, as seen from another thread. Made for one look, as it holds the host."""

    def __init__(self, host: WatchedHost) -> None:
        self.host: WatchedHost = host
        """The host of the runs on it."""
        self._loop: Any = getattr(host, "loop", None)  # asyncio's; trio has no object for it

    @property
    def thread_name(self) -> str:
        """The name of its thread."""
        return next(
            (each.name for each in threading.enumerate() if each.ident == self.host.thread_id), str(self.host.thread_id)
        )

    def post(self, fn: Callable[[], object]) -> None:
        """Have it call `fn` when it turns. Wakes it, where it is idle."""
        self.host.post(fn)

    def stack(self) -> list[FrameType]:
        """What its thread executes now: the frames, outermost first; nothing where the loop does not run."""
        if self._loop is not None and not self._loop.is_running():
            return []
        stack = thread_stack(self.host.thread_id)
        is_there = self._loop is not None or any(module_of(frame) == "trio._core._run" for frame in stack)
        return stack if is_there else []

    def is_idle(self, stack: Sequence[FrameType]) -> bool:
        """Whether it is certain to wait for something to do, going by what its thread executes.

        Not whenever a selector waits: somebody's task may wait with one, too.
        """
        for frame in reversed(stack):
            if module_of(frame) not in _SELECTORS:
                return self._turns(frame) and self.task_name(stack) is None
        return True

    def step(self, stack: Sequence[FrameType]) -> Sequence[FrameType]:
        """Without the frames of the program that runs the loop: what was given to it, and executes."""
        turning = [number for number, frame in enumerate(stack) if self._turns(frame)]
        return stack[turning[-1] + 1 :] if turning else stack

    def _turns(self, frame: FrameType) -> bool:
        if key_of(frame) in _TURNING:
            return True
        is_native = self._loop is not None and not type(self._loop).__module__.startswith("asyncio")
        return is_native and not _RUNNERS.isdisjoint(frame.f_code.co_names)

    def task_name(self, stack: Sequence[FrameType]) -> str | None:
        """The name of the backend's task that its thread executes; None outside of any."""
        if self._loop is not None:
            task = sys.modules["asyncio"].current_task(self._loop)  # imported: it has made the loop
            return None if task is None else str(task.get_name())
        for frame in reversed(stack):
            if key_of(frame) == _TRIO_STEP:
                name: str | None = getattr(local_of(frame, "task"), "name", None)
                return name
        return None


def is_debugged(stack: Sequence[FrameType]) -> bool:
    """Whether a person looks at a thread with a debugger that runs in it."""
    return any(module_of(frame).partition(".")[0] in _DEBUGGERS for frame in stack)


_hosts: WeakSet[WatchedHost] = WeakSet()


def enrol(host: WatchedHost) -> None:
    """Make the host of a loop known, for as long as it lives."""
    _hosts.add(host)


def loops() -> list[Loop]:
    """The loops there are, as of now; from any thread."""
    while True:
        try:
            return [Loop(host) for host in list(_hosts)]
        except RuntimeError:  # another thread has just made one
            continue
