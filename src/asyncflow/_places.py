"""The places of limits that a body takes while it runs: of its task runner, of its tags."""

from __future__ import annotations

from collections.abc import Sequence

from asyncflow._backend.base import Host, Signal
from asyncflow._limiter import Limiter, Wait, Waiter, wait_plainly

__all__ = ["Places"]


class Places:
    """What one body occupies.

    While it waits for another run it gives its places back, so that waiting can never use up a
    limit, and is first in line for the next free ones. A body that waits in several of its tasks
    at once has none until the last of these waits is over.
    """

    __slots__ = ("_claims", "_held", "_limiters", "_signal", "_ticket", "_waits")

    def __init__(self, limiters: Sequence[Limiter]) -> None:
        self._limiters = limiters
        self._held = 0
        self._claims: list[tuple[Limiter, Waiter]] = []
        self._waits = 0
        self._ticket: Waiter | None = None
        self._signal: Signal | None = None

    @property
    def held(self) -> Sequence[Limiter]:
        """What it has a place of; from any thread."""
        return self._limiters[: self._held]

    @property
    def awaited(self) -> Limiter | None:
        """What it needs a place of next; from any thread."""
        held = self._held
        return self._limiters[held] if held < len(self._limiters) else None

    def line_up(self) -> None:
        """Join the queue now, for `take` later: tasks may begin in another order than they were submitted in."""
        if not self.take_at_once():
            self._ticket = self._limiters[self._held].enqueue(self._wake)

    def _wake(self) -> None:
        if self._signal is not None:
            self._signal.set()

    def take_at_once(self) -> bool:
        """Take all of them if nobody is in front; whether that was so."""
        if self._ticket is not None:
            return False
        for limiter in self._limiters[self._held :]:
            if not limiter.try_acquire():
                return False
            self._held += 1
        return True

    async def take(self, host: Host, *, wait: Wait = wait_plainly) -> None:
        """Wait for all of them; a cancellation ends the wait, and what was taken is given back with `leave`."""
        if self._ticket is not None:
            await self._redeem(self._ticket, host, wait)
        while self._held < len(self._limiters):
            await self._limiters[self._held].acquire(host, wait=wait)
            self._held += 1

    async def _redeem(self, ticket: Waiter, host: Host, wait: Wait) -> None:
        # In place before the last look, so that a grant meanwhile sets it.
        signal = self._signal = host.signal()
        if not ticket.granted:
            await wait(host, signal, None)
        self._ticket = None
        self._held += 1

    def leave(self) -> None:
        """Give back what is held, and leave the queues."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None and not self._limiters[self._held].withdraw(ticket):
            self._limiters[self._held].release()
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

    async def come_back(self, host: Host, seconds: float | None = None) -> None:
        """The body has waited. A place is waited for too, at most `seconds`; then the body goes on without it."""
        self._waits -= 1
        while not self._waits and self._held < len(self._limiters):
            if not await self._limiters[self._held].acquire(host, first=True, within=seconds):
                self._claim()
                return
            self._held += 1

    def go_on(self) -> None:
        """The wait was cancelled: the body goes on at once, and has the next free places as soon as there are any."""
        self._waits -= 1
        if not self._waits:
            self._claim()

    def _claim(self) -> None:
        missing = self._limiters[self._held :]
        self._claims = [(limiter, limiter.enqueue(_nothing, first=True)) for limiter in missing]


def _nothing() -> None:
    """Nobody waits for a claim: it only keeps others from the place."""
