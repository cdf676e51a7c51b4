"""Cancel at every await: one call, made again for each of its suspension points, cancelled there."""

from __future__ import annotations

import gc
import inspect
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._backend.points import Act, Make, Outcome, Points, StepLoop, Way
from asyncflow._backend.steps import step_loop
from asyncflow._backend.virtual_clock import VirtualClock
from asyncflow._rows import RunRow
from asyncflow._services import Services
from asyncflow.clock import SystemClock
from asyncflow.context import current_run
from asyncflow.exceptions import RunCancelledError
from asyncflow.runtime import HOME
from asyncflow.testing._records import crashed, newest_id, record_problems, rows_after, runs_of
from asyncflow.testing._reports import NOT_REACHED, Attempt, CancelReport, CancelSafetyError, told

__all__ = ["cancel_everywhere"]

T = TypeVar("T")
_WAYS = ("scope", "native", "wait_for")
_CLOCK = SystemClock()
_PATIENCE = 30.0
_VIRTUAL_PATIENCE = 10 * 365 * 86_400.0
# Turns of the loop in which a task that is at its end may end: for a callback or two, not for a wait.
_TURNS = 10
# CPython 3.12 starts with some hundred objects frozen.
_FROZEN_BY_PYTHON = 2000
# A worker thread wakes its caller first and is idle a moment later.
_THREAD_POLLS, _THREAD_POLL = 250, 0.002


async def cancel_everywhere(
    make: Callable[[], Awaitable[Any]],
    *,
    how: Way | Callable[[int], Any] = "scope",
    check: Callable[[Attempt], Any] | None = None,
    raises: type[BaseException] | tuple[type[BaseException], ...] = (),
    limit: int | None = None,
    timeout: float | None = None,
) -> CancelReport:
    """Call `make` once, then once more for each point at which it suspended, and cancel it there.

        report = await cancel_everywhere(lambda: order(7), how="native")

    A suspension point is every place where the caller's task, or any task that began during the
    call, gives way to the loop. After each call this must hold: the call has ended, with the
    cancellation, a value or one of `raises`; the caller's next awaits raise nothing stray and
    asyncio's `cancelling()` is what it was; no task is alive, no worker thread busy and no place of
    a limited tag or name taken that was not before; each run the store has of the call is final,
    was never Crashed, went through legal states and ended before its parent; nothing reached the
    loop's exception handler.

    It looks into the runtime in force, so a fast harness is one inside
    `with Runtime(store=MemoryStore()):`. Nothing else may start tasks or runs there meanwhile. Calls in which threads
    take part differ from one another, and trio shuffles its tasks: a point is then not the same place each time.

    Args:
        make: A function of no arguments whose result is awaited: your flow's call.
        how: What cancels the caller. "scope": an anyio cancel scope around the call. "native":
            `Task.cancel()` (on trio the same as "scope"). "wait_for": a timeout around the call
            that expires at the point. Or a function of your own, called with the point's number
            in a task of its own, and awaited if it is async; the caller is then not cancelled by the harness.
        check: Called with the `Attempt` after each call that passed, the first one too, and awaited
            if it is async; what it raises is raised, with the point in a note.
        raises: Exceptions that the call may end with, beside the cancellation.
        limit: Most points to try, spread evenly over all; None for every one.
        timeout: Seconds after which a call counts as hung. If None, 30; on a `VirtualClock` ten years,
            which pass at once when nothing else is waited for.

    Raises:
        CancelSafetyError: Something of the above does not hold, also for the first call, which
            nobody cancels.
        ValueError: `how` or `limit` is none of the above.
    """
    if not callable(how) and how not in _WAYS:
        raise ValueError(f"how={how!r} is not a way to cancel: give a function, or one of {', '.join(_WAYS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit!r} leaves nothing to try: give a number from 1, or None for every point")
    allowed = raises if isinstance(raises, tuple) else (raises,)
    services = await _services()
    if timeout is None:
        timeout = _VIRTUAL_PATIENCE if isinstance(services.clock, VirtualClock) else _PATIENCE
    harness = _Harness(make, how, check, allowed, timeout, services)
    with _quick_collections():
        return await harness.run(limit)


class _Harness:
    def __init__(
        self,
        make: Make,
        how: Way | Callable[[int], Any],
        check: Callable[[Attempt], Any] | None,
        raises: tuple[type[BaseException], ...],
        timeout: float,
        services: Services,
    ) -> None:
        self.make, self.check, self.timeout, self.services = make, check, timeout, services
        self.how: Way | Callable[[int], Any] = how
        self.way: str = getattr(how, "__qualname__", repr(how)) if callable(how) else how
        # Its run is cancelled, the caller is not: this is what the caller gets.
        self.raises = (*raises, RunCancelledError) if callable(how) else raises
        self.loop: StepLoop = step_loop()
        self.newest: bytes = b""
        self.restored: bool = True
        # What the call leaves when nobody cancels it. CPython 3.11's and 3.12's TaskGroups leave a count behind.
        self.usually_left: int = 0
        self.usually_crash: set[str] | None = None

    async def run(self, limit: int | None) -> CancelReport:
        self.newest = await _blocking(lambda: newest_id(self.services.store))
        first, _ = await self._attempt(0)
        endings: Counter[str] = Counter()
        for number in _numbers(first.count, limit):
            points, ending = await self._attempt(number)
            if not points.hit and number > first.count:
                break
            endings[ending if points.hit else NOT_REACHED] += 1
        return CancelReport(how=self.way, points=first.count, endings=dict(endings))

    async def _attempt(self, number: int) -> tuple[Points, str]:
        points = Points(number)
        with self.loop.watch(points) as reports:
            ending = await self._call_and_look(points)
            # A task nobody awaited tells the exception handler when it is collected.
            gc.collect()
            await self.loop.turn()
            self._refuse(points, [f"the loop's exception handler was told: {each}" for each in reports])
        return points, ending

    async def _call_and_look(self, points: Points) -> str:
        tasks, busy, taken = self.loop.tasks(), self.services.threads.busy, self._places_taken()
        how: Way | Act = partial(_act, self.how, points.target) if callable(self.how) else self.how
        outcome = await self.loop.call(self._call, how, points, self.timeout)
        if not outcome.ended:
            self._refuse(points, [f"it did not end within {self.timeout:g} seconds", *self._alive(tasks)])
        problems = list(self._of_ending(outcome, first=points.target == 0))
        problems += await self._left_behind(tasks, busy)
        problems += self._still_taken(taken)
        rows = await self._rows()
        if self.usually_crash is None:
            self.usually_crash = crashed(rows)
        problems += record_problems(rows, self.usually_crash)
        self._refuse(points, problems, outcome.error)
        if self.check is not None:
            await self._check(self.check, points, outcome, rows)
        return _ending(outcome)

    async def _call(self) -> Any:
        before = current_run.get()
        try:
            return await self.make()
        finally:
            self.restored = current_run.get() is before

    async def _check(
        self, check: Callable[[Attempt], Any], points: Points, outcome: Outcome, rows: list[RunRow]
    ) -> None:
        attempt = Attempt(
            point=points.target,
            how=self.way,
            where=points.where,
            ending=_ending(outcome),
            value=outcome.value,
            error=outcome.error,
            runs=runs_of(rows),
        )
        try:
            answer = check(attempt)
            if inspect.isawaitable(answer):
                await answer
        except Exception as error:
            error.add_note(f"asyncflow: after the call {told(attempt.point, self.way, attempt.where)}")
            raise

    def _refuse(self, points: Points, problems: list[str], cause: BaseException | None = None) -> None:
        if points.failure is not None:
            raise points.failure  # of the user's own way to cancel
        if problems:
            raise CancelSafetyError(points.target, self.way, points.where, problems) from cause

    # --- what is looked at

    def _of_ending(self, outcome: Outcome, *, first: bool) -> Iterator[str]:
        if outcome.error is not None and not isinstance(outcome.error, self.raises):
            yield f"it raised {outcome.error!r}"
        if outcome.stray is not None:
            yield f"the caller's next await raised {outcome.stray!r}"
        if first:
            self.usually_left = outcome.left
        elif not 0 <= outcome.left <= self.usually_left:
            yield f"it changed the task's cancelling() by {outcome.left}"
        if not self.restored:
            yield "the current run was not restored in the caller's context"

    async def _left_behind(self, tasks: set[Any], busy: int) -> list[str]:
        for _ in range(_TURNS):
            if not self.loop.tasks() - tasks:
                break
            await self.loop.turn()
        found = self._alive(tasks)
        pool = self.services.threads
        for _ in range(_THREAD_POLLS):
            if pool.busy <= busy:
                return found
            await _host().sleep(_THREAD_POLL)
        return [*found, f"{pool.busy - busy} of asyncflow's worker threads still run a job of it"]

    def _places_taken(self) -> Counter[str]:
        """Places that somebody has or waits for, and the names of limits in use."""
        services = self.services
        taken = Counter(
            {f"places of the tag {tag!r}": each.in_use + each.waiting for tag, each in services.tag_limits.items()}
        )
        taken["named concurrency limits"] = len(services.limits.concurrency)  # a name is forgotten with its last use
        return taken

    def _still_taken(self, before: Counter[str]) -> list[str]:
        more = self._places_taken() - before
        return [f"{count} more {what} than before are taken or waited for" for what, count in more.items()]

    def _alive(self, tasks: set[Any]) -> list[str]:
        return [f"a task of it is alive: {self.loop.describe(task)}" for task in self.loop.tasks() - tasks]

    async def _rows(self) -> list[RunRow]:
        store, seconds = self.services.store, self.services.settings.durability_seconds
        _, error, held_back = await _host().confirm(store, seconds)
        if error is not None:
            raise error
        if held_back is not None:  # the harness itself was cancelled
            raise held_back
        rows = await _blocking(lambda: rows_after(store, self.newest))
        self.newest = max([self.newest, *(row.id for row in rows)])
        return rows


def _numbers(count: int, limit: int | None) -> Iterable[int]:
    """The points to try: all, and on to the first that is not there, or some of them."""
    if limit is None or limit >= count:
        return itertools.count(1)
    return (1 + index * count // limit for index in range(limit))


def _ending(outcome: Outcome) -> str:
    if outcome.error is not None:
        return type(outcome.error).__name__
    return "cancelled" if outcome.cancelled else "completed"


async def _act(how: Callable[[int], Any], number: int) -> None:
    answer = how(number)
    if inspect.isawaitable(answer):
        await answer


async def _services() -> Services:
    in_force = HOME.in_force()
    return in_force if in_force is not None else await _blocking(HOME.open_default)


async def _blocking(fn: Callable[[], T]) -> T:
    return await _host().run_blocking(fn)


def _host() -> Host:
    return host_here(_CLOCK)


@contextmanager
def _quick_collections() -> Generator[None]:
    """Let a full collection look at what is made inside only: with a large program, each would take long."""
    if gc.get_freeze_count() > _FROZEN_BY_PYTHON:  # somebody has frozen the program: it must stay so
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
