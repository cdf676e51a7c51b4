"""What can go wrong in a test that is not the tested code's fault."""

from __future__ import annotations

from asyncflow.exceptions.base import AsyncflowError

__all__ = ["VirtualClockError"]


class VirtualClockError(AsyncflowError, RuntimeError):
    """A virtual clock was used where a loop keeps a time of its own."""

    def __init__(self, loop: str, remedy: str) -> None:
        self.loop = loop
        super().__init__(f"{loop} is not on the time of this virtual clock: {remedy}")
