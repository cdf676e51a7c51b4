"""The system's clock: the one place that reads it."""

from __future__ import annotations

import time

__all__ = ["SystemClock"]


class SystemClock:
    """Wall-clock and monotonic time of this machine."""

    # Not methods that call these: a run reads the clock several times.
    now: staticmethod[[], float] = staticmethod(time.time)
    monotonic: staticmethod[[], float] = staticmethod(time.monotonic)

    def sleep(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)
