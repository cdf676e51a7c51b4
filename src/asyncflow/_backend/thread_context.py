"""What lets `anyio.from_thread.run(...)` work in our own worker threads.

Neither anyio nor trio has a public way to introduce a thread that they did not start, so this
reaches into both. Where their inside has changed, sync bodies lose that one convenience (the call
raises anyio's own error, which names its `token=` argument) and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import Context
from typing import Any

import anyio.lowlevel

__all__ = ["leave_loop", "worker_context"]


def worker_context() -> Callable[[], ExitStack]:
    """Made on the loop that the thread is to reach; the result is called, and entered, on the thread."""
    token = anyio.lowlevel.current_token()

    def enter() -> ExitStack:
        stack = ExitStack()
        with suppress(ImportError, AttributeError):
            from anyio._core._eventloop import claim_worker_thread  # private: may be gone

            stack.enter_context(claim_worker_thread(token.backend_class, token.native_token))
        if "trio" in sys.modules:
            stack.enter_context(_trio_thread(token.native_token))
        return stack

    return enter


def leave_loop(context: Context) -> None:
    """Take out of a worker thread's context what says that a loop runs there, so that its body may start one."""
    if "sniffio" in sys.modules:
        import sniffio  # imported already: anyio and trio ask it

        context.run(sniffio.current_async_library_cvar.set, None)


@contextmanager
def _trio_thread(native_token: object) -> Generator[None]:
    import trio  # imported already: this is about its loop

    data: Any = None
    with suppress(ImportError, AttributeError):
        from trio import _threads

        data = _threads.PARENT_TASK_DATA
    if data is None or not isinstance(native_token, trio.lowlevel.TrioToken):
        yield
        return
    data.token = native_token
    # Not tied to the waiting task: its cancellation is ours to deliver.
    data.abandon_on_cancel = True
    try:
        yield
    finally:
        del data.token, data.abandon_on_cancel
