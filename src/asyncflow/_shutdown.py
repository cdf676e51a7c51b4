"""The end of a runtime: no new runs, time for those that go on, then their interruption.

Every wait has an end, because whoever stops the program kills it when that takes too long: the
drain window, the grace time for clean-ups, and a moment for what only waits for others. What goes on
after that is recorded as interrupted, and nobody waits for it any more.
"""

from __future__ import annotations

import math
from functools import partial

from asyncflow._backend.base import Host
from asyncflow._cancellation import cancel, give_up, outermost_of
from asyncflow._causes import Cause
from asyncflow._outcomes import wait_settled
from asyncflow._rules import INTERRUPTED, STOPPING
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow.context import current_run
from asyncflow.logs import library_logger

__all__ = ["interrupt_now", "shut_down"]

_LAST_MOMENT = 0.5
"""Seconds for runs whose bodies have ended and who waited for a deaf one, to end by themselves."""


async def shut_down(services: Services, host: Host, *, drain: bool) -> None:
    """Take no more outermost runs, wait for those that go on, and interrupt what is left after that.

    Takes at most the settings' `drain_seconds` (not at all without `drain`) and `grace_seconds`, and a moment.
    A cancellation ends the drain window and is raised when all is done.
    """
    services.intake.is_open = False
    settings = services.settings
    held_back: BaseException | None = None
    try:
        if drain and (left := await _drain(services, host)):
            library_logger().warning(
                "%d %s interrupted, to be resumed: not over %g seconds after the runtime was left "
                "(setting drain_seconds)",
                len(left),
                "run is" if len(left) == 1 else "runs are",
                settings.drain_seconds,
            )
    finally:
        interrupt_now(services)
        if _going(services):
            longest = settings.grace_seconds + 2 * _LAST_MOMENT
            held_back = await host.protect(partial(_clean_up, services, host), longest)
    if held_back is not None:
        raise held_back


async def _drain(services: Services, host: Host) -> list[Run]:
    """Wait until the drain window is over; gives the runs that are to be interrupted now."""
    if not _going(services):
        return []
    intake, now = services.intake, services.clock.monotonic()
    if intake.drain_until is None:  # a signal may have begun it, before the block is left
        intake.drain_until = now + services.settings.drain_seconds
    left = await _wait(services, host, max(intake.drain_until - now, 0))
    return left if intake.is_draining else []  # else somebody has interrupted them already


def interrupt_now(services: Services) -> None:
    """Cancel the runs that go on, because their runtime stops. From any thread, or a signal handler."""
    services.intake.is_open = services.intake.is_draining = False
    for run in _going(services):
        cancel(run, Cause(f"interrupted because {STOPPING}", rests_as=INTERRUPTED))


async def _clean_up(services: Services, host: Host) -> None:
    grace = services.settings.grace_seconds
    if left := await _wait(services, host, grace):
        give_up(left, f"interrupted because {STOPPING}; it ignored that for {grace:g} seconds")
        await _wait(services, host, _LAST_MOMENT)


async def _wait(services: Services, host: Host, seconds: float) -> list[Run]:
    """Wait for the runs that go on, at most so many seconds for all; gives those that still do."""
    going = _going(services)
    if not going:
        return []
    monotonic = services.clock.monotonic
    until = monotonic() + seconds
    while going and monotonic() < until:
        for run in going:
            await wait_settled(run, host, None, None if seconds == math.inf else max(until - monotonic(), 0))
        going = _going(services)  # those that detached others from themselves brought new ones
    return going


def _going(services: Services) -> list[Run]:
    """The outermost runs that somebody drives, apart from the one whose body ends the runtime."""
    here = current_run.get()
    own = None if here is None else outermost_of(here)
    live: list[Run] = services.live()
    return [run for run in live if run is not own and not run.is_settled and not run.host.is_stopped()]
