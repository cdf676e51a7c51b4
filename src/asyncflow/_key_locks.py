"""One at a time for each key, among the threads of a process and the processes on one home.

Between processes it is a lock of the kernel (`flock`) on a file of the key's own, which is freed the
moment its holder dies, however that happens, so there is no lease to renew and nothing to poll. Who
gives a lock back removes its file first, while holding it. Whoever waited for that file then has a
lock on a file that is gone: it looks, and begins anew with the one that has the name now.

A table of rows in the database was rejected: it needs a time-out to tell a dead holder from a slow
one, and a write transaction for each lock.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from asyncflow.exceptions import StoreError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: between processes there is no lock then
    fcntl = None

__all__ = ["KeyLocks"]

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class KeyLocks:
    """Locks by key: with a folder, among all processes that were given the same one; else in this process.

    Safe to use from any thread; a lock may be given back by another thread than took it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if fcntl is not None else None
        self._lock = threading.Lock()
        self._turns: dict[str, list[threading.Lock]] = {}
        self._open: set[int] = set()
        _all.add(self)

    def acquire(self, key: str) -> Callable[[], None]:
        """Wait for the lock of `key`; gives what gives it back, which is to be called once or more. Blocks.

        Threads of one process get it in the order they came. Raises `StoreError` when the lock's
        file cannot be made.
        """
        mine = threading.Lock()
        mine.acquire()
        with self._lock:
            line = self._turns.setdefault(key, [])
            line.append(mine)
            is_first = len(line) == 1
        try:
            if not is_first:
                mine.acquire()  # released by whoever was before
            return self._held(key, mine, self._lock_file(key, wait=True))
        except BaseException:
            self._pass_on(key, mine)
            raise

    def try_acquire(self, key: str) -> Callable[[], None] | None:
        """The same where the lock is free; None where it is not."""
        mine = threading.Lock()
        mine.acquire()
        with self._lock:
            if key in self._turns:
                return None
            self._turns[key] = [mine]
        try:
            descriptor = self._lock_file(key, wait=False)
        except BlockingIOError:
            self._pass_on(key, mine)
            return None
        except BaseException:
            self._pass_on(key, mine)
            raise
        return self._held(key, mine, descriptor)

    def _held(self, key: str, mine: threading.Lock, descriptor: int | None) -> Callable[[], None]:
        held = [descriptor]
        holder = os.getpid()

        def release() -> None:
            if os.getpid() != holder:
                return  # a fork's: it is its parent's
            try:
                descriptor = held.pop()
            except IndexError:
                return  # a second call
            if descriptor is not None:
                self._unlock_file(key, descriptor)
            self._pass_on(key, mine)

        return release

    def _pass_on(self, key: str, mine: threading.Lock) -> None:
        """Leave the line; who is next in it goes on."""
        with self._lock:
            line = self._turns[key]
            was_first = line[0] is mine
            line.remove(mine)
            if not line:
                del self._turns[key]
            elif was_first:
                line[0].release()

    # --- among processes

    def _path(self, key: str) -> Path:
        from hashlib import sha256  # at first use, as in `asyncflow.digests`

        assert self._folder is not None
        return self._folder / f"key-{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}.lock"

    def _lock_file(self, key: str, *, wait: bool) -> int | None:
        if self._folder is None:
            return None
        path = self._path(key)
        try:
            while True:
                descriptor = self._open_file(path)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    if _is_named(descriptor, path):
                        return descriptor
                except BaseException:
                    self._close(descriptor)
                    raise
                self._close(descriptor)
        except BlockingIOError:
            raise
        except OSError as error:
            raise StoreError("locking a key", path, error) from error

    def _open_file(self, path: Path) -> int:
        try:
            descriptor = os.open(path, _FLAGS, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, _FLAGS, 0o600)
        self._open.add(descriptor)
        return descriptor

    def _unlock_file(self, key: str, descriptor: int) -> None:
        with suppress(OSError):
            self._path(key).unlink()
        with suppress(OSError):
            # Not by closing alone: a child that was forked meanwhile may have it open, too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        with suppress(OSError):
            os.close(descriptor)

    def forget(self) -> None:
        """In a new child process: what the parent holds stays the parent's alone."""
        self._lock = threading.Lock()
        self._turns = {}
        for descriptor in list(self._open):
            self._close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is still the one with that name."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)


_all: weakref.WeakSet[KeyLocks] = weakref.WeakSet()


def _forget_all() -> None:
    for locks in list(_all):
        locks.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
