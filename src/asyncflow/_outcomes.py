"""Waiting for the outcome of a run: in a loop or in a thread, without a place, and never in a circle."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from asyncflow._backend.base import Host, Signal
from asyncflow._backend.inline import InlineCancelled
from asyncflow._cancellation import lose, must_stop
from asyncflow._places import Places
from asyncflow._run import Run, Waiter
from asyncflow.exceptions import OptionError, WaitCycleError

__all__ = ["blocked", "refuse_cycle", "time_to_wait", "wait_settled"]


def time_to_wait(given: Any) -> float | None:
    """`timeout=` in seconds; None for no limit. What is left of a time may be negative: that is no time."""
    if given is None:
        return None
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or math.isnan(seconds):
        raise OptionError("timeout", given, "seconds, a timedelta, or None for no limit")
    return None if seconds == math.inf else max(seconds, 0)


async def wait_settled(target: Run, host: Host, waiting: Run | None, seconds: float | None = None) -> bool:
    """Wait until the outcome of `target` is there, at most `seconds`; gives whether it is.

    `host` is the caller's, `waiting` the run whose body waits. A cancellation ends the wait and
    changes nothing else. Raises `WaitCycleError` when `target` cannot end before `waiting` does.
    """
    if target.is_settled or (seconds is not None and seconds <= 0) or lose(target):
        return target.is_settled
    signal = host.signal()
    waiter = Waiter(signal.set, waiting)
    target.attend(waiter)
    try:
        if waiting is not None and seconds is None:
            refuse_cycle(waiting, target)
        await blocked(host, waiting, signal, seconds, target)
        return target.is_settled
    finally:
        target.desert(waiter)


async def blocked(
    host: Host, waiting: Run | None, signal: Signal, seconds: float | None = None, target: Run | None = None
) -> None:
    """Wait for `signal` on `host` in the body of `waiting`, which has no place meanwhile, at most `seconds`."""
    if waiting is None:
        await (signal.wait() if seconds is None else host.wait_for(signal, seconds))
        return
    monotonic = waiting.services.clock.monotonic
    until = None if seconds is None else monotonic() + seconds
    waiter = Waiter(signal.set, waiting, is_thread=host.is_inline)
    if waiting.waits is None:
        waiting.waits = {}
    waiting.waits[waiter] = target
    aside = _step_aside(waiting)
    try:
        # Looked at after it was entered, and again when it is woken: a cause cannot slip through between.
        _stop_thread(host, waiting)
        await (signal.wait() if seconds is None else host.wait_for(signal, seconds))
        _stop_thread(host, waiting)
    except BaseException:
        for places in aside:
            places.go_on()
        raise
    finally:
        waiting.waits.pop(waiter, None)
    for places in aside:
        await places.come_back(host, None if until is None else max(until - monotonic(), 0))


def _stop_thread(host: Host, waiting: Run) -> None:
    """Raise where no loop can tell a body that it is cancelled."""
    if host.is_inline and must_stop(waiting):
        raise InlineCancelled


def _step_aside(run: Run | None) -> list[Places]:
    """Give back the places of the body that is about to wait: a run that was called is in those of its caller."""
    found: list[Places] = []
    while run is not None:
        if run.places is not None:
            run.places.step_aside()
            found.append(run.places)
        if run.is_hosted:
            break
        run = run.parent
    return found


def refuse_cycle(waiting: Run, target: Run) -> None:
    """Raise when `target` waits, directly or through others, for `waiting`.

    Who waits for a run: its parent, because each run waits for what it started, and those in its
    `waiters`. Both waits of a cycle are entered before either looks, so one of them sees the other.
    """
    pending, seen = [waiting], {waiting}
    while pending:
        run = pending.pop()
        if run is target:
            raise WaitCycleError(waiting.display_name, target.display_name)
        blocked = [each.run for each in list(run.waiters or ())]
        for above in (run.parent, *blocked):
            if above is not None and above not in seen:
                seen.add(above)
                pending.append(above)
