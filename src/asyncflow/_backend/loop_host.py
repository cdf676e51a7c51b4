"""What the hosts of asyncio and trio have in common.

Not in `base`, because this needs anyio: a process that only uses the inline host never pays for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from asyncflow._backend.base import Host
from asyncflow._backend.thread_context import leave_loop
from asyncflow._backend.threads import Job, ThreadPool

__all__ = ["LoopHost"]

T = TypeVar("T")
_READERS = 8


class LoopHost(Host):
    """A host that suspends."""

    def __init__(self) -> None:
        super().__init__()
        self._limiter: anyio.CapacityLimiter | None = None

    async def run_blocking(self, fn: Callable[[], T]) -> T:
        if self._limiter is None:  # our own: the default one is shared with the web framework
            self._limiter = anyio.CapacityLimiter(_READERS)
        return await anyio.to_thread.run_sync(fn, limiter=self._limiter)

    async def call_sync(
        self,
        fn: Callable[[], Any],
        pool: ThreadPool,
        grace: float,
        on_cancel: Callable[[], None],
        context: Context | None = None,
    ) -> Job:
        signal = self.signal()
        context = context or copy_context()
        leave_loop(context)
        job = Job(context, fn, signal.set, self._enter_thread())
        pool.start(job)
        try:
            await signal.wait()
        except BaseException:
            if not pool.discard(job):
                on_cancel()
                await self.settle(signal, grace)
            raise
        return job

    async def run_async(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        return await fn()

    def _enter_thread(self) -> Callable[[], Any] | None:
        """Makes the context in which a worker thread reaches this loop with `anyio.from_thread`."""
        return None
