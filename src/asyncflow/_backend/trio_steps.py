"""Watching trio's tasks suspend, with an instrument."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio
import trio

from asyncflow._backend.points import Act, Make, Outcome, Points, StepLoop, Way, suspended_at

__all__ = ["TrioSteps"]

_TURNS = 3


class _Steps(trio.abc.Instrument):
    def __init__(self, points: Points, others: set[trio.lowlevel.Task]) -> None:
        self._points = points
        self.others: set[trio.lowlevel.Task] = others

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task not in self.others and getattr(task.coro, "cr_frame", None) is not None:  # None: it has ended
            self._points.suspended(task.name, task.coro)


class TrioSteps(StepLoop):
    """The trio run that goes on here."""

    def __init__(self) -> None:
        self._steps: _Steps | None = None

    def tasks(self) -> set[Any]:
        root = trio.lowlevel.current_root_task()
        found: set[Any] = set()
        pending = [] if root is None else [root]
        while pending:
            task = pending.pop()
            found.add(task)
            pending.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
        return found

    def describe(self, task: Any) -> str:
        return f"{task.name!r} at {suspended_at(task.coro)}"

    @contextmanager
    def watch(self, points: Points) -> Generator[list[str]]:
        self._steps = _Steps(points, self.tasks() - {trio.lowlevel.current_task()})
        trio.lowlevel.add_instrument(self._steps)
        try:
            yield []  # trio has no exception handler: what a task raises comes out of its nursery
        finally:
            trio.lowlevel.remove_instrument(self._steps)
            self._steps = None

    async def call(self, make: Make, how: Way | Act, points: Points, seconds: float) -> Outcome:
        outcome = Outcome()
        with anyio.move_on_after(seconds) as patience:
            try:
                if callable(how):
                    await self._beside(how, make, points, outcome)
                else:
                    await _in_scope(how, make, points, outcome)
            except (KeyboardInterrupt, SystemExit, GeneratorExit, trio.Cancelled):
                raise
            except BaseException as error:  # noqa: BLE001  # judged by whoever called
                outcome.error = error
            try:
                for _ in range(_TURNS):
                    await self.turn()
            except trio.Cancelled as error:
                outcome.stray = error
                raise
        outcome.ended = not patience.cancelled_caught
        return outcome

    async def turn(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _beside(self, how: Act, make: Make, points: Points, outcome: Outcome) -> None:
        assert self._steps is not None
        steps, done = self._steps, trio.Event()

        async def act() -> None:
            try:
                await how()
            except BaseException as error:  # noqa: BLE001  # a system task that raises ends the whole run
                points.failure = error
            finally:
                done.set()

        points.open(lambda: steps.others.add(trio.lowlevel.spawn_system_task(act)))
        try:
            outcome.value = await make()
        finally:
            points.close()
            if points.hit:
                with trio.CancelScope(shield=True):
                    await done.wait()


async def _in_scope(how: Way, make: Make, points: Points, outcome: Outcome) -> None:
    with anyio.CancelScope() as scope:

        def expire() -> None:
            scope.deadline = trio.current_time()

        points.open(expire if how == "wait_for" else scope.cancel)
        try:
            outcome.value = await make()
        finally:
            points.close()
    outcome.cancelled = scope.cancelled_caught
