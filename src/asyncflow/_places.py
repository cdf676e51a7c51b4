"""The places of limits that a body takes while it runs: of its task runner, of its tags."""

from __future__ import annotations

from collections.abc import Sequence

from asyncflow._backend.base import Host
from asyncflow._limiter import Limiter, Wait, Waiter, wait_plainly

__all__ = ["Places"]


class Places:
    """What one body occupies.

    While it waits for another run it gives its places back, so that waiting can never use up a
    limit, and is first in line for the next free ones. A body that waits in several of its tasks
    at once has none until the last of these waits is over.
    """

    __slots__ = ("_claims", "_held", "_limiters", "_waits")

    def __init__(self, limiters: Sequence[Limiter]) -> None:
        self._limiters = limiters
        self._held = 0
        self._claims: list[tuple[Limiter, Waiter]] = []
        self._waits = 0

    def take_at_once(self) -> bool:
        """Take all of them if nobody is in front; whether that was so."""
        for limiter in self._limiters[self._held :]:
            if not limiter.try_acquire():
                return False
            self._held += 1
        return True

    async def take(self, host: Host, *, first: bool = False, wait: Wait = wait_plainly) -> None:
        """Wait for all of them; a cancellation ends the wait, and what was taken is given back with `leave`."""
        while self._held < len(self._limiters):
            await self._limiters[self._held].acquire(host, first=first, wait=wait)
            self._held += 1

    def leave(self) -> None:
        """Give back what is held."""
        while self._held:
            self._held -= 1
            self._limiters[self._held].release()
        while self._claims:
            limiter, waiter = self._claims.pop()
            if not limiter.withdraw(waiter):
                limiter.release()

    def step_aside(self) -> None:
        """The body begins to wait."""
        self._waits += 1
        if self._waits == 1:
            self.leave()

    async def come_back(self, host: Host) -> None:
        """The body has waited."""
        self._waits -= 1
        if not self._waits:
            await self.take(host, first=True)

    def go_on(self) -> None:
        """The wait was cancelled: the body goes on at once, and has the next free places as soon as there are any."""
        self._waits -= 1
        if not self._waits:
            self._claims = [(limiter, limiter.enqueue(_nothing, first=True)) for limiter in self._limiters]


def _nothing() -> None:
    """Nobody waits for a claim: it only keeps others from the place."""
