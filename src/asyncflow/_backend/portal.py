"""One loop thread per process, for the async hooks of runs on threads that have no loop. Started by the first."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

__all__ = ["run_on_portal"]

_lock = threading.Lock()
_loop: Any = None


def _portal() -> Any:
    global _loop  # one per process is the point
    import asyncio  # only a process with such hooks pays for it

    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="asyncflow-loop", daemon=True).start()
        return _loop


def run_on_portal(fn: Callable[[], Awaitable[Any]]) -> Any:
    """Run `fn` on the process's own loop, in a copy of this thread's context, and wait for it."""
    import asyncio

    loop, context = _portal(), copy_context()

    async def call() -> Any:
        # In its own task with the caller's context: the hook sees the run it belongs to.
        return await loop.create_task(_awaited(fn), context=context)

    return asyncio.run_coroutine_threadsafe(call(), loop).result()


async def _awaited(fn: Callable[[], Awaitable[Any]]) -> Any:
    return await fn()
