"""One block at a time for each key: who has the turn, in this process and among all on one home.

In the process blocks wait in line, first come, first served; the first of them then waits for the
key's lock file, which the system frees when the process that holds it dies.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from threading import Lock

from asyncflow._backend.base import Host
from asyncflow._backend.inline import drive
from asyncflow._outcomes import blocked
from asyncflow._services import Services
from asyncflow.concurrency import ConcurrencyLimit, concurrency
from asyncflow.context import current_run

__all__ = ["KeyTurn"]


class _FileWait:
    """A thread's wait for a lock file, which nothing can end but the lock: whoever leaves lets it wait alone."""

    def __init__(self, acquire: Callable[[], Callable[[], None]], wake: Callable[[], None]) -> None:
        self._acquire = acquire
        self._wake = wake
        self._lock = Lock()
        self._is_left = False
        self._release: Callable[[], None] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            release = self._acquire()
        except BaseException as error:  # noqa: BLE001  # whoever waits gets it
            self._error = error
        else:
            with self._lock:
                self._release = release
                is_left = self._is_left
            if is_left:
                release()
        self._wake()

    def leave(self) -> None:
        """Nobody waits for it any more: the lock is given back as soon as it is got."""
        with self._lock:
            self._is_left = True
            release = self._release
        if release is not None:  # in a thread: it touches the disk
            _thread.start_new_thread(release, ())

    def take(self) -> Callable[[], None]:
        """What gives the lock back; raises what kept it from being got."""
        if self._error is not None:
            raise self._error
        assert self._release is not None
        return self._release


class KeyTurn:
    """The turn of one block."""

    def __init__(self, services: Services, key: str) -> None:
        self._services = services
        self._name = f"transaction({key!r})"  # the keys of cached values are locked as well
        # A limit of its own for each block, so that leaving gives back this one's place and no other's.
        self._place: ConcurrencyLimit = concurrency(self._name, 1)
        self._release: Callable[[], None] | None = None

    async def take(self, host: Host) -> None:
        """Wait for it. Raises `LimitDeadlockError` inside of a block that has the turn of the same key."""
        await self._place.__aenter__()
        try:
            self._release = await self._lock_file(host)
        except BaseException:
            self._leave_place()
            raise

    async def _lock_file(self, host: Host) -> Callable[[], None]:
        signal = host.signal()
        wait = _FileWait(lambda: self._services.key_locks.acquire(self._name), signal.set)
        _thread.start_new_thread(wait.run, ())
        try:
            await blocked(host, current_run.get(), signal)
            return wait.take()
        except BaseException:
            wait.leave()
            raise

    def give_back(self, host: Host) -> None:
        """Let the next one have it. Plain code, so that a coroutine that is being closed can do it."""
        release, self._release = self._release, None
        if release is not None:
            if host.is_inline:
                release()
            else:  # it touches the disk, and nobody has to wait for that
                _thread.start_new_thread(release, ())
        self._leave_place()

    def _leave_place(self) -> None:
        drive(self._place.__aexit__(None, None, None))
