"""What wakes whoever looks again and again, when there may be something to see."""

from __future__ import annotations

from asyncflow._backend.base import Host, Signal

__all__ = ["Alarm"]


class Alarm:
    """What bells and watchers call, from any thread; it wakes whoever waits now.

    Apart from who waits, who can so be forgotten while it is listened for.
    """

    __slots__ = ("signal",)

    def __init__(self) -> None:
        self.signal: Signal | None = None

    def wake(self) -> None:
        """Have the one who waits look."""
        if self.signal is not None:
            self.signal.set()

    def renew(self, host: Host) -> Signal:
        """What to wait for next. Made *before* looking: what happens meanwhile sets it."""
        self.signal = host.signal()
        return self.signal
