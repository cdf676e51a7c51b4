"""What the hosts of asyncio and trio have in common.

Not in `base`: a process that only uses the inline host never pays for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from threading import get_ident
from typing import Any, TypeVar

from asyncflow._backend.base import Host
from asyncflow._backend.loops import enrol
from asyncflow._backend.thread_context import leave_loop
from asyncflow._backend.threads import Job, ThreadPool

__all__ = ["LoopHost"]

T = TypeVar("T")
_READERS = 8
_WHILE_IT_LASTS = 3600.0


class LoopHost(Host):
    """A host that suspends."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: ThreadPool | None = None
        self.thread_id: int = get_ident()
        """Of the thread that its loop turns on."""
        enrol(self)

    async def run_blocking(self, fn: Callable[[], T]) -> T:
        if self._readers is None:
            # Our own threads here too: anyio's would keep a process whose loop was stopped in the middle.
            self._readers = ThreadPool(_READERS)
        job = await self.call_sync(fn, self._readers, _WHILE_IT_LASTS, _nothing, _nothing)
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value

    async def call_sync(
        self,
        fn: Callable[[], Any],
        pool: ThreadPool,
        grace: float,
        on_cancel: Callable[[], None],
        on_abandon: Callable[[], None],
        context: Context | None = None,
        *,
        at_once: bool = False,
    ) -> Job:
        signal = self.signal()
        context = context or copy_context()
        leave_loop(context)
        job = Job(context, fn, signal.set, self._enter_thread())
        pool.start(job, at_once=at_once)
        try:
            await signal.wait()
        except GeneratorExit:
            pool.discard(job)
            raise  # the coroutine is being closed: it must not wait for anything
        except BaseException:
            if not pool.discard(job):
                on_cancel()
                await self.settle(signal, grace)
                if not job.ended:
                    on_abandon()
            raise
        return job

    async def run_async(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        return await fn()

    def _enter_thread(self) -> Callable[[], Any] | None:
        """Makes the context in which a worker thread reaches this loop with `anyio.from_thread`."""
        return None


def _nothing() -> None:
    """A short call of ours has no state to show that it is being cancelled."""
