"""Waiting for the end of a run that may go on in any process: woken by bells, looking by itself now and then."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID

from asyncflow._alarm import Alarm
from asyncflow._backend.base import Host, Signal
from asyncflow._outcomes import blocked
from asyncflow._rows import FIRST_FINAL, RunRow
from asyncflow._run import Run, Waiter
from asyncflow._services import Services
from asyncflow.error_records import error_summary
from asyncflow.exceptions import CodecError, RunNotFoundError, StoreError, WaitCycleError
from asyncflow.logs import library_logger

__all__ = ["LOOK_SECONDS", "listening", "wait_for_end"]

LOOK_SECONDS = 1.0
"""How often to look although nobody rang: a bell that is lost costs that much and nothing more."""


def listening(services: Services, wake: Callable[[], None]) -> Callable[[], None]:
    """Have `wake` called at each bell; gives what ends that.

    Of a store within this process also at each commit: there is no other process, and no need to look by oneself.
    """
    stop: Callable[[], None] = services.store.listen(wake)
    if not services.store.is_instant:
        return stop
    stop_watching = services.store.watch(wake)

    def end() -> None:
        stop()
        stop_watching()

    return end


async def wait_for_end(
    services: Services,
    host: Host,
    run_id: bytes,
    seconds: float | None = None,
    *,
    waiting: Run | None = None,
    seen: Callable[[RunRow], object] | None = None,
) -> RunRow:
    """Wait until a run has ended, at most `seconds`; gives its row as it is then.

    `waiting` is the run whose body waits; `seen` is called with each row that was read. A look that fails is
    taken again, as the run goes on all the same. Raises `RunNotFoundError` when there is no such run (any
    more), `WaitCycleError` when it is around the one that waits, and `StoreError` when the last look failed.
    """
    _refuse_cycle(run_id, waiting)
    monotonic = services.clock.monotonic
    until = None if seconds is None else monotonic() + seconds
    is_told = False
    alarm = Alarm()
    stop = listening(services, alarm.wake)
    try:
        while True:
            signal = alarm.renew(host)
            try:
                row = await services.ask(host, partial(services.store.read_run, run_id))
            except CodecError:
                raise  # without its key it will not be read later either
            except StoreError as error:
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    raise
                if not is_told:
                    is_told = True
                    _tell(run_id, error)
                await blocked(host, waiting, signal, LOOK_SECONDS if left is None else min(LOOK_SECONDS, left))
                continue
            if row is None:
                raise RunNotFoundError(UUID(bytes=run_id))
            if seen is not None:
                seen(row)
            left = None if until is None else until - monotonic()
            if row.state >= FIRST_FINAL or (left is not None and left <= 0):
                return row
            await _rest(services, host, run_id, signal, left, waiting)
    finally:
        stop()


def _tell(run_id: bytes, error: StoreError) -> None:
    library_logger().warning(
        "looking whether the run %s has ended failed; it is tried again, and this is said once: %s",
        UUID(bytes=run_id), error_summary(error),
    )  # fmt: skip


def _refuse_cycle(run_id: bytes, waiting: Run | None) -> None:
    above = waiting
    while above is not None:
        if above.id == run_id and waiting is not None:
            raise WaitCycleError(waiting.display_name, above.display_name)
        above = above.parent


async def _rest(
    services: Services, host: Host, run_id: bytes, signal: Signal, left: float | None, waiting: Run | None
) -> None:
    """Wait until there may be something to see."""
    pause = left if services.store.is_instant else min(LOOK_SECONDS, LOOK_SECONDS if left is None else left)
    here = next((run for run in services.live() if run.id == run_id), None)
    if here is None:
        await blocked(host, waiting, signal, pause)
        return
    waiter = Waiter(signal.set)  # nobody rings for it in its own process
    here.attend(waiter)
    try:
        await blocked(host, waiting, signal, pause)
    finally:
        here.desert(waiter)
