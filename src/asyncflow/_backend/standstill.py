"""Whether every thread that takes part in virtual time stands still, so that time may jump.

A jump while a thread works is the classical fault of virtual clocks: a timeout passes that had an
hour left when the thread began. Threads that take part are the worker threads of asyncflow's pools,
those of asyncio, anyio and trio that a loop waits for, and any thread that is inside a run without
a loop. Such a thread stands still while it waits by the clock itself, or for what a loop is to do
for it (`anyio.from_thread.run`, a future of `concurrent.futures`).

From outside nobody can ask a thread of somebody else's what it is at. So its frames are read: that
is done only when a loop has nothing to do, and only in tests.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Container, Iterator
from types import FrameType

from asyncflow._backend.elsewhere import disk_is_awaited
from asyncflow._backend.threads import workers_at_work

__all__ = ["anyio_calls", "threads_stand_still"]

_ENGINE = "asyncflow._engine."
_POOLS = ("concurrent.futures.thread", "anyio._backends._asyncio", "trio._core._thread_cache")


def threads_stand_still(waiting: Container[int], loops: Container[int], calls: int) -> bool:
    """Whether nothing but the clock can make any thread go on.

    Args:
        waiting: The idents of the threads that wait by the clock, and whose wait is not over.
        loops: The idents of the threads whose loop is on this time: those answer for themselves.
        calls: How many calls in threads of others the loops wait for.
    """
    if disk_is_awaited():
        return False
    if not calls and threading.active_count() == 1:
        return True
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    running, workers = workers_at_work()
    if any(is_away and ident not in waiting for ident, is_away in workers.items()):
        return False
    for ident, frame in frames.items():
        if ident in loops:
            continue
        is_quiet = ident in waiting or _waits_for_a_loop(frame)
        if ident in workers:
            running -= is_quiet and not workers[ident]
        elif any(_of_pool(each) for each in _outwards(frame)):
            calls -= is_quiet
        elif not is_quiet and any(_module(each).startswith(_ENGINE) for each in _outwards(frame)):
            return False
    return running <= 0 and calls <= 0


def anyio_calls(loop: object) -> int:
    """How many calls in anyio's worker threads an asyncio loop waits for.

    Its limiter can only be asked in a task. The threads themselves are looked at instead: the
    loop takes them out of a list, and puts them back, itself.
    """
    return sum(
        getattr(thread, "loop", None) is loop and thread not in getattr(thread, "idle_workers", (thread,))
        for thread in threading.enumerate()
        if type(thread).__module__ == "anyio._backends._asyncio"
    )


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _of_pool(frame: FrameType) -> bool:
    return _module(frame) in _POOLS


def _waits_for_a_loop(frame: FrameType) -> bool:
    """Whether this thread waits for the result of something that runs elsewhere, and that is not there yet."""
    if _module(frame) == "trio._threads" and frame.f_code.co_name == "_send_message_to_trio":
        message = frame.f_locals.get("message_to_trio")
        return message is not None and message.queue.empty()
    for each in _outwards(frame):
        if each.f_code.co_name == "result" and _module(each) == "concurrent.futures._base":
            future = each.f_locals.get("self")
            return future is not None and not future.done()
    return False
