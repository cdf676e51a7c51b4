"""Locks that the system frees when their process dies, however it dies.

They are `flock`'s, not `lockf`'s: those belong to a process, so two runtimes in one process could
not tell each other apart, and closing any descriptor of the file would drop them.

A forked child has its parent's descriptors, and a lock lives as long as any of them: the child
closes them. It never unlocks, which would unlock them for the parent.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["can_be_locked", "close", "make_locked", "while_locked"]

_held: set[int] = set()
"""Descriptors whose locks are this process's."""


def make_locked(path: Path) -> int:
    """Make a locked file, in place of one that may be there; gives its descriptor.

    It is locked before it has its name, so whoever finds it unlocked under that name has proof
    that its owner is dead. Raises `OSError`.
    """
    import fcntl

    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    _held.add(descriptor)
    try:
        os.fchmod(descriptor, 0o600)  # whatever the umask took away
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(path)
    except BaseException:
        close(descriptor)
        with suppress(OSError):
            new.unlink()
        raise
    return descriptor


def close(descriptor: int) -> None:
    """Give a lock back."""
    _held.discard(descriptor)
    os.close(descriptor)


def can_be_locked(path: Path) -> bool:
    """Whether nobody holds the lock of a file. Raises `FileNotFoundError`; false when it cannot be told."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def while_locked(path: Path) -> Generator[bool]:
    """Holds the lock of a file that stays, made if need be; gives whether it could be had at once. Raises `OSError`."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        close(descriptor)


def _close_in_child() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
