"""No fork while SQLite is at work: a child inherits what SQLite believes to be locked, and believes it for ever.

The child cannot use the parent's connections, but it may open the same file anew. What SQLite knows of
that file it keeps for the whole process, and the child's memory is a copy of the parent's at the fork.
"""

from __future__ import annotations

import os
from threading import Condition
from types import TracebackType

__all__ = ["SQLITE"]

_LONGEST = 10.0
"""Seconds that a fork is held up at most: a disk may take that long for one commit. One that comes too
early harms the child's opening only."""


class _Gate:
    """Entered by whoever uses a connection; a fork closes it and waits until nobody is inside."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = 0
        self._is_closed = False

    def __enter__(self) -> None:
        with self._changed:
            while self._is_closed:
                self._changed.wait()
            self._inside += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with self._changed:
            self._inside -= 1
            if self._is_closed:
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in, and wait until nobody is inside."""
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._inside, _LONGEST)

    def open(self) -> None:
        """Let them in again."""
        with self._changed:
            self._is_closed = False
            self._changed.notify_all()

    def renew(self) -> None:
        """In the child, which has none of the threads that may have been inside."""
        self._changed = Condition()
        self._inside = 0
        self._is_closed = False


SQLITE = _Gate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=SQLITE.close, after_in_parent=SQLITE.open, after_in_child=SQLITE.renew)
