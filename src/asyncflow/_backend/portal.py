"""One loop thread per process, for what runs on threads without a loop need one for. Started by the first.

It lasts as long as the process: whatever is raised on it, its loop goes on. A forked child has no
such thread and starts its own. At the interpreter's exit what is still running there is cancelled
and has a second for its clean-up; the thread is a daemon, so that nothing more than that is waited for.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

__all__ = ["PortalCall", "on_portal"]

_EXIT_SECONDS = 1.0


class _Portal:
    """A loop and the thread it runs on."""

    def __init__(self) -> None:
        import asyncio  # only a process that needs a loop pays for it

        self.loop: Any = asyncio.new_event_loop()
        self._ends = False
        self._thread = threading.Thread(target=self._serve, name="asyncflow-loop", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # the system gives no thread, or the interpreter is past its exit
            self.loop.close()
            raise

    def _serve(self) -> None:
        while not self._ends:
            with suppress(KeyboardInterrupt, SystemExit):  # each stops a loop, and is in its task's result
                self.loop.run_forever()

    def run(self, fn: Callable[[], object]) -> None:
        def call() -> None:
            try:
                fn()
            except BaseException as error:  # noqa: BLE001  # not only an Exception: the others would stop the loop
                self.loop.call_exception_handler({"message": f"{fn!r} raised", "exception": error})

        self.loop.call_soon_threadsafe(call)

    def close(self) -> None:
        import asyncio

        ended = asyncio.run_coroutine_threadsafe(_wind_up(self.loop), self.loop)
        try:
            ended.result(_EXIT_SECONDS)
        except BaseException:  # noqa: BLE001  # something goes on regardless: its loop does so as well, until the exit
            return
        self._ends = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_EXIT_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()


async def _wind_up(loop: Any) -> None:
    """Cancel every task of the loop and let it end."""
    import asyncio

    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()


_lock = threading.Lock()
_portal: _Portal | None = None
_inherited: list[_Portal | None] = []
"""The parent's, in a forked child: closing its loop, or letting go of it, would reach into the parent's selector."""


def _open() -> _Portal:
    global _portal  # one per process is the point
    with _lock:
        if _portal is None:
            _portal = _Portal()
            atexit.register(_close)
        return _portal


def _close() -> None:
    global _portal
    atexit.unregister(_close)
    if _portal is not None:
        _portal.close()  # what ends there may start something yet, on this loop and not on another
        _portal = None


def _forget() -> None:
    global _lock, _portal
    _lock = threading.Lock()  # another thread of the parent may have held it
    _inherited.append(_portal)
    _portal = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


def on_portal(fn: Callable[[], object]) -> None:
    """Run `fn` on the process's own loop thread soon, in a copy of this context; what it raises is logged."""
    _open().run(fn)


class PortalCall:
    """An async function that runs on the process's own loop, in a copy of this thread's context.

    `on_done` is called there when it has ended, also when it was cancelled before it began.
    """

    __slots__ = ("_on_done", "_portal", "_task")

    def __init__(self, fn: Callable[[], Awaitable[Any]], on_done: Callable[[], None]) -> None:
        self._on_done = on_done
        self._task: Any = None
        self._portal = _open()
        context = copy_context()
        # In a task of its own with the caller's context: a hook sees the run it belongs to.
        self._portal.run(lambda: self._begin(_awaited(fn), context))

    def _begin(self, coroutine: Any, context: Any) -> None:
        self._task = self._portal.loop.create_task(coroutine, context=context)
        self._task.add_done_callback(self._end)

    def _end(self, _task: Any) -> None:
        self._on_done()

    def cancel(self) -> None:
        """Cancel it, from any thread."""
        self._portal.run(lambda: self._task.cancel())

    @property
    def cancelled(self) -> bool:
        """Whether it ended by being cancelled."""
        return bool(self._task.cancelled())

    def result(self) -> Any:
        """What it returned, after its end; raises what it raised."""
        return self._task.result()


async def _awaited(fn: Callable[[], Awaitable[Any]]) -> Any:
    return await fn()
