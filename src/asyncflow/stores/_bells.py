"""How one process wakes another: a named pipe in the home's folder `live`, which its owner reads.

A byte in it says "look", and nothing else. So a full pipe is as good as one byte, and rings that come
together are one. The owner keeps both ends open, so that opening the other one never waits for anybody;
a pipe that nobody has open belongs to a process that is gone.

A system or a file system without such pipes has no bells: then those who listen find what there is
when they look by themselves.
"""

from __future__ import annotations

import os
import re
import select
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread, current_thread

from asyncflow.stores._watchers import Watchers

__all__ = ["Bell"]

_NAME = re.compile(r"([0-9]+)\.bell")
_RING = b"!"
_CAPACITY = 65_536
"""Bytes that a pipe holds at most, so that one look reads all that has come."""
_JOIN_SECONDS = 1.0
"""Longest that closing waits for the thread: it may be inside a call of somebody's."""


class Bell:
    """The bell of one opened store, and the way to the others' on its home. Raises nothing: see above.

    The descriptor is closed by the thread, once there is one, and under the guard: whoever writes to it,
    to wake the thread, must not write to what has got its number since.
    """

    def __init__(self, home: Path, owner: int) -> None:
        self._folder = home / "live"
        self._path = self._path_of(owner)
        self._listeners = Watchers()
        self._guard = Lock()
        self._thread: Thread | None = None
        self._descriptor = self._made()
        self._former: list[int] = []
        """What is to be closed: the thread may be waiting there."""

    def _made(self) -> int | None:
        with suppress(OSError, AttributeError):  # AttributeError: the system knows no such pipes
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.mkfifo(self._path, 0o600)
                self._path.chmod(0o600)  # whatever the umask took away
            return _opened(self._path, os.O_RDWR)
        return None

    def _path_of(self, owner: int) -> Path:
        return self._folder / f"{owner}.bell"

    # --- ringing: any thread

    def ring(self, owners: Iterable[int] | None) -> None:
        """Ring the bells of these owners; None = all there are."""
        for owner in self._owners() if owners is None else owners:
            with suppress(OSError):  # gone, or full of rings
                descriptor = _opened(self._path_of(owner), os.O_WRONLY)
                if descriptor is not None:
                    try:
                        os.write(descriptor, _RING)
                    finally:
                        os.close(descriptor)

    def _owners(self) -> list[int]:
        with suppress(OSError):
            names = os.listdir(self._folder)  # noqa: PTH208  # names are all that is asked for
            return [int(found[1]) for found in map(_NAME.fullmatch, names) if found]
        return []

    # --- listening

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """As the port says; the thread begins with the first."""
        end = self._listeners.add(wake)
        with self._guard:
            if self._thread is None and self._descriptor is not None:
                thread = Thread(target=self._run, name="asyncflow-bell", daemon=True)
                with suppress(RuntimeError):  # the system has no thread left
                    thread.start()
                    self._thread = thread
        return end

    def _run(self) -> None:
        while (descriptor := self._descriptor) is not None:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
            with suppress(OSError):
                os.read(descriptor, _CAPACITY)
            with self._guard:
                self._close_former()
            self._listeners.wake()

    # --- its file

    def keep(self) -> None:
        """Make the pipe again when somebody has removed it: cleaners of old files do such a thing."""
        with self._guard:
            if self._descriptor is not None and not self._is_in_place(self._descriptor):
                made = self._made()
                if made is not None:
                    self._replace(made)

    def remove(self, owner: int) -> None:
        """Remove the pipe of an owner that is dead."""
        with suppress(OSError):
            self._path_of(owner).unlink()

    def sweep(self, known: Iterable[int]) -> None:
        """Remove the pipes of owners that are gone; `known` are those there are."""
        living = set(known)
        for owner in self._owners():
            # Numbers grow: one above all that were known may be an owner's that has just come.
            if owner not in living and owner < max(living, default=0):
                self.remove(owner)

    def close(self) -> None:
        """Listen no more, and remove the pipe."""
        with self._guard:
            if self._descriptor is not None:
                if self._is_in_place(self._descriptor):
                    with suppress(OSError):
                        self._path.unlink()
                self._replace(None)
            thread, self._thread = self._thread, None
        if thread is not None and thread is not current_thread():
            thread.join(_JOIN_SECONDS)

    def forget(self) -> None:
        """In a forked child: the pipe is the parent's, and so is all that is written to it."""
        self._guard = Lock()
        self._thread = None
        self._listeners = Watchers()
        if self._descriptor is not None:
            self._replace(None)

    def _replace(self, descriptor: int | None) -> None:
        former, self._descriptor = self._descriptor, descriptor
        if former is None:
            return
        self._former.append(former)
        if self._thread is None:
            self._close_former()
        else:
            with suppress(OSError):  # full: the thread is awake
                os.write(former, _RING)

    def _close_former(self) -> None:
        while self._former:
            os.close(self._former.pop())

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(descriptor))
        except OSError:
            return False


def _opened(path: Path, mode: int) -> int | None:
    """A pipe, opened without waiting for its other end; None where there is another kind of file. Raises `OSError`."""
    descriptor = os.open(path, mode | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
