"""Worker threads for sync bodies: our own, daemon, reused, first come first served.

Not the backends' pools: asyncio's and anyio's threads are not daemon threads, so one stuck body
would keep the process from exiting (it exited after 30 s where the wait had been given up at
0.2 s), and their limiters are shared with the web framework around us.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import Any

__all__ = ["Job", "ThreadPool"]

_IDLE_SECONDS = 10.0


class Job:
    """One call of a function in a worker thread, and how it ended."""

    __slots__ = ("_context", "_enter", "_fn", "_on_done", "ended", "error", "started", "value")

    def __init__(
        self,
        context: Context,
        fn: Callable[[], Any],
        on_done: Callable[[], None],
        enter: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self._context = context
        self._fn: Callable[[], Any] | None = fn
        self._on_done = on_done
        self._enter = enter or nullcontext
        self.started: bool = False
        self.ended: bool = False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call the function, in its context; never raises."""
        try:
            assert self._fn is not None  # it runs once
            with self._enter():
                self.value = self._context.run(self._fn)
        except BaseException as exc:  # noqa: BLE001  # handed to whoever waits
            self.error = exc
        # The thread outlives the job: what the job holds must not.
        self._fn = None
        self.ended = True
        self._on_done()


class _Worker(threading.Thread):
    def __init__(self, pool: ThreadPool, number: int) -> None:
        super().__init__(name=f"asyncflow-worker-{number}", daemon=True)
        self.pool = pool
        self.job: Job | None = None
        self.wake: threading.Semaphore = threading.Semaphore(0)

    def run(self) -> None:
        while True:
            job = self.job
            if job is None:
                if self.wake.acquire(timeout=_IDLE_SECONDS) or not self.pool.retire(self):
                    continue
                return
            self.job = None
            job.run()
            job = None  # an idle thread keeps nothing alive
            self.job = self.pool.next_job(self)


class ThreadPool:
    """At most `size` threads; a freed one goes straight to the job that waited longest."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._waiting: deque[Job] = deque()
        self._count = 0
        self._number = 0

    def start(self, job: Job) -> None:
        """Run `job` in a thread as soon as one is free. Raises `RuntimeError` when the system gives no thread."""
        with self._lock:
            if self._idle:
                worker = self._idle.pop()  # the latest: the others may retire
                job.started = True
                worker.job = job
                worker.wake.release()
                return
            if self._count >= self._size:
                self._waiting.append(job)
                return
            self._count += 1
            self._number += 1
            worker = _Worker(self, self._number)
        job.started = True
        worker.job = job
        try:
            worker.start()
        except BaseException:
            with self._lock:
                self._count -= 1
            raise

    def discard(self, job: Job) -> bool:
        """Take back a job that has not begun; whether that was in time."""
        with self._lock:
            if job.started:
                return False
            self._waiting.remove(job)
            return True

    def next_job(self, worker: _Worker) -> Job | None:
        """The job that waited longest, for a worker that is free; without one the worker is idle."""
        with self._lock:
            if self._waiting:
                job = self._waiting.popleft()
                job.started = True
                return job
            self._idle.append(worker)
            return None

    def retire(self, worker: _Worker) -> bool:
        """Let an idle worker end; false when it was just given a job."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            self._count -= 1
            return True

    @property
    def busy(self) -> int:
        """Threads that run a job now."""
        with self._lock:
            return self._count - len(self._idle)
