"""Spans of runs, as the engine sees them: a port with one adapter, `_otel`.

A run tree is traced or it is not: that is asked once, where its outermost run is called, and
inherited from there, so a run of a tree that is not traced pays for one look at an attribute.

The end of a span is nobody's business here: the adapter waits for the run's outcome as anybody else
does, and takes the times of both its ends from the run's record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["SpanSource", "Spans"]


class Spans(Protocol):
    """What traces the runs of a tree. Nothing here raises."""

    def enter(self, run: Any) -> Any:
        """The body of an attempt begins, here: make the run's span current, starting it with the first attempt.

        Gives what `leave` takes, or None when nothing was made current.
        """
        ...

    def leave(self, token: Any) -> None:
        """The body has ended: make current what was so before. In the context that `enter` was called in, only."""
        ...


SpanSource = Callable[[], Spans | None]
"""Asked for each outermost run; None when it is not to be traced."""
