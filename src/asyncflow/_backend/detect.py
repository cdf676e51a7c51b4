"""Finding the host of the calling thread."""

from __future__ import annotations

import sys
import threading

from asyncflow._backend.base import Host
from asyncflow._backend.inline import InlineHost
from asyncflow.abc import Clock

__all__ = ["host_here", "loop_is_running_here"]


class _Cache(threading.local):
    loop_host: Host | None = None
    inline_host: InlineHost | None = None


_cache = _Cache()


def loop_is_running_here() -> bool:
    """Whether an event loop runs on this thread, so that blocking it would block other tasks."""
    # A loop can run only where its package has been imported: looking at `sys.modules` keeps a
    # plain script from paying for either.
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return True
    return trio is not None and trio.lowlevel.in_trio_run()


def host_here(clock: Clock) -> Host:
    """The host of the loop that runs on this thread, or the thread's inline host, which keeps time by `clock`."""
    cached = _cache.loop_host
    if cached is not None and cached.here():
        return cached
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():  # first: in guest mode asyncio runs here too
        # Imported when such a loop is seen: each of the two costs tens of milliseconds.
        from asyncflow._backend.trio_host import TrioHost

        _cache.loop_host = TrioHost()
        return _cache.loop_host
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        from asyncflow._backend.asyncio_host import AsyncioHost

        _cache.loop_host = AsyncioHost()
        return _cache.loop_host
    inline = _cache.inline_host
    if inline is None or inline.clock is not clock:
        inline = _cache.inline_host = InlineHost(clock)
    return inline
