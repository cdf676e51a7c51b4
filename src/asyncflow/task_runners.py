"""Task runners: what starts the bodies that a flow run submits, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asyncflow.exceptions import OptionError

__all__ = ["ConcurrentTaskRunner"]


@dataclass(frozen=True, slots=True)
class ConcurrentTaskRunner:
    """Runs what a flow run submits on the flow's own loop, and sync bodies in worker threads.

    `max_workers` bounds how many of these bodies run at once, first come, first served; None sets
    no bound. A body that waits for another run gives its place back and is first in line for the
    next one, so that waiting can never use up all places. One whose wait is cut short (by a
    timeout of its own) goes on at once, without a place until one is free: one body more for that
    time. Each flow run has places of its own. Calls are not counted: they run in their caller's place.
    """

    max_workers: int | None = None

    def __post_init__(self) -> None:
        given: Any = self.max_workers
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise OptionError("max_workers", given, "a whole number from 1, or None for no bound")
