"""Worker threads for sync bodies: our own, daemon, reused, first come first served.

Not the backends' pools: asyncio's and anyio's threads are not daemon threads, so one stuck body
would keep the process from exiting (it exited after 30 s where the wait had been given up at
0.2 s), and their limiters are shared with the web framework around us. Nor can their threads lend
out the place they hold: a body that waits for another one that has not begun would wait for ever.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from types import TracebackType
from typing import Any

__all__ = ["Job", "ThreadPool", "waiting", "workers_at_work"]

_IDLE_SECONDS = 10.0
_numbers = itertools.count(1)  # of all pools: a thread's name is its own


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
        self._end()

    def fail(self, error: BaseException) -> None:
        """End it with `error`, in place of a run."""
        self.error = error
        self._end()

    def _end(self) -> None:
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
        self.waits: bool = False
        """Whether it is inside `waiting`: only it itself changes this."""

    def run(self) -> None:
        _here.worker = self
        while True:
            job = self.job
            if job is None:
                if self.wake.acquire(timeout=_IDLE_SECONDS) or not self.pool.retire(self):
                    continue
                return
            self.job = None
            job.run()
            job = None  # an idle thread keeps nothing alive
            self.pool.go_next(self)


class _Here(threading.local):
    worker: _Worker | None = None


_here = _Here()


class ThreadPool:
    """Runs jobs in threads of its own, at most `size` at once; a freed slot goes straight to who is next in line.

    A slot is held by a thread whose job runs, not by a thread that exists: one that waits inside
    `waiting` has given its slot back, so any number of jobs can wait for one another. Next in line
    are the threads that come back from a wait, then the jobs that have not begun; within both the
    one that came first.

    Invariant: `running <= size`, and while it is less nobody is in line. The one exception are
    threads that were interrupted while they waited (a cancellation, a deadline): they go on
    without a slot, because what they have left to do is their clean-up, and behind long bodies a
    cancellation would take effect no sooner than those end. Until such threads are made up for,
    no freed slot is handed on.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._running = 0
        self._idle: list[_Worker] = []
        self._returning: dict[_Worker, threading.Event] = {}  # in the order they came back
        self._queue: deque[Job] = deque()

    @property
    def busy(self) -> int:
        """Threads whose job runs now, and is not waiting."""
        with self._lock:
            return self._running

    # --- jobs

    def start(self, job: Job, *, at_once: bool = False) -> None:
        """Run `job` in a thread as soon as a slot is free, or `at_once`: for a thread of ours that waits for it.

        Raises `RuntimeError` when the system gives no thread.
        """
        with self._lock:
            if self._running >= self._size and not at_once:
                self._queue.append(job)
                return
            self._running += 1
            job.started = True
        try:
            self._give_thread(job)
        except BaseException:
            if not job.started:
                self.pass_slot()
            raise

    def discard(self, job: Job) -> bool:
        """Take back a job that has not begun; whether that was in time."""
        with self._lock:
            if job.started:
                return False
            self._queue.remove(job)
            return True

    def _give_thread(self, job: Job) -> None:
        """Let a thread run a job that has a slot. When it raises, `job.started` says whether one does."""
        with self._lock:
            if self._idle:
                worker = self._idle.pop()  # the latest: the others may retire
                worker.job = job
                worker.wake.release()
                return
        worker = _Worker(self, next(_numbers))
        worker.job = job
        try:
            worker.start()
        except BaseException:
            # A Ctrl-C comes out of here too, and the thread may have begun by then.
            job.started = worker in threading.enumerate()
            raise

    def pass_slot(self) -> None:
        """Hand a slot that this thread no longer needs to who is next in line."""
        while True:
            with self._lock:
                job = self._next_in_line()
            if job is None:
                return
            try:
                self._give_thread(job)
            except RuntimeError as error:  # the system gives no thread: whoever waits for the job is told
                job.fail(error)
            else:
                return

    def _next_in_line(self) -> Job | None:
        """Hand on a free slot, under the lock. Gives the job that has it now, if it is one that begins."""
        if self._running <= self._size:
            if self._returning:
                worker = next(iter(self._returning))
                self._returning.pop(worker).set()
                return None
            if self._queue:
                job = self._queue.popleft()
                job.started = True
                return job
        self._running -= 1
        return None

    # --- for the workers

    def go_next(self, worker: _Worker) -> None:
        """Give a worker whose job has ended the next one; without any it is idle."""
        with self._lock:
            # Under the lock: an idle worker may be given a job at once, which nothing may then overwrite.
            worker.job = self._next_in_line()
            if worker.job is None:
                self._idle.append(worker)

    def retire(self, worker: _Worker) -> bool:
        """Let an idle worker end; false when it was just given a job."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True

    def come_back(self, worker: _Worker) -> threading.Event | None:
        """Ask for a slot again: None when there is one, else what is set when it is handed over."""
        with self._lock:
            if self._running < self._size:
                self._running += 1
                return None
            turn = self._returning[worker] = threading.Event()
            return turn

    def go_on(self, worker: _Worker) -> None:
        """End the wait for a slot, whether or not it came: without one the pool is over its size for a while."""
        with self._lock:
            if self._returning.pop(worker, None) is not None:
                self._running += 1


class waiting(AbstractContextManager[None]):
    """Around a blocking wait on the current thread: if it is a pool's, it holds no slot meanwhile.

    On the way out it waits for a slot with `wait_for_turn(event)`, which blocks until the event is
    set; if that returns earlier or raises, or if the wait itself raised, the thread goes on at once.
    """

    __slots__ = ("_wait_for_turn", "_worker")

    def __init__(self, wait_for_turn: Callable[[threading.Event], object] = threading.Event.wait) -> None:
        self._wait_for_turn = wait_for_turn
        self._worker: _Worker | None = None

    def __enter__(self) -> None:
        worker = _here.worker
        # A wait within a wait is a finalizer's that the garbage collector runs here: there is no slot to give.
        if worker is not None and not worker.waits:
            self._worker = worker
            worker.waits = True
            worker.pool.pass_slot()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        worker = self._worker
        if worker is None:
            return
        turn = worker.pool.come_back(worker)
        try:
            if turn is not None and exc_type is None:
                self._wait_for_turn(turn)
        finally:
            worker.pool.go_on(worker)
            worker.waits = False


def workers_at_work() -> tuple[int, dict[int, bool]]:
    """How many workers of all pools run a job and are not inside `waiting`; and of each worker whether it is."""
    workers = [thread for thread in threading.enumerate() if isinstance(thread, _Worker)]
    running = sum(pool.busy for pool in {worker.pool for worker in workers})
    return running, {worker.ident or 0: worker.waits for worker in workers}
