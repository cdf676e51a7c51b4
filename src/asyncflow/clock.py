"""The system's clock: the one place that reads it."""

from __future__ import annotations

import math
import threading
import time

__all__ = ["SystemClock"]


class SystemClock:
    """Wall-clock and monotonic time of this machine."""

    # Not methods that call these: a run reads the clock several times.
    now: staticmethod[[], float] = staticmethod(time.time)
    monotonic: staticmethod[[], float] = staticmethod(time.monotonic)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block this thread until `event` is set or the time has passed; gives whether it was set."""
        if seconds == math.inf:
            return event.wait()
        # No system waits longer than that (49 days on Windows) at a time, and Python refuses to try.
        return event.wait(min(seconds, threading.TIMEOUT_MAX))
