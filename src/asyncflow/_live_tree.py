"""What the live runs of this process wait for: found by looking, not by being told.

Nothing is written down for it while runs go on, so it costs nothing until somebody asks. What is
looked at: the tree of runs, the registries of limits, and the frames of tasks and threads. A run's
own frames are those between its engine's and the next run's, as several runs may share one task or
thread. Which frames are innermost there tells what is waited for: the functions in which the engine
waits are known by name (`asyncflow._live_waits`).

Everything may go on meanwhile on other threads: what has moved is told as of before or after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from asyncflow._backend.frames import coroutine_of, key_of, local_of, suspended_frames, thread_stacks
from asyncflow._limiter import Limiter
from asyncflow._limits import Named, Use
from asyncflow._places import Places
from asyncflow._run import Run
from asyncflow._services import Services

T = TypeVar("T")
U = TypeVar("U")

__all__ = ["EXECUTE", "JOB", "TAKE_PLACES", "Look", "Stretch", "live_runs", "without_raising"]

EXECUTE = "asyncflow._engine.execution:execute"
"""The engine's frame of a run: what follows is the run's, up to the next of its kind."""
JOB = "asyncflow._backend.threads:Job.run"
"""The frame of a body, or of a piece of ours, in a worker thread."""
TAKE_PLACES = "asyncflow._engine.preparation:take_places"
_OURS = frozenset({__name__, "asyncflow._live_waits", "asyncflow._snapshots"})


class Stretch(NamedTuple):
    """A piece of a stack: what one run's body and engine have there."""

    frames: Sequence[FrameType]
    """Outermost first."""
    thread: str | None
    """The name of the thread that executes it now; None for code that is suspended."""
    called: Run | None
    """The run that was called at its end, and whose stretch follows."""


class Look:
    """One look at everything: made, asked, and cleared at once, because it holds frames."""

    def __init__(self, services: Sequence[Services]) -> None:
        self.services = services
        self.runs: list[Run] = [run for each in services for run in live_runs(each)]
        self.known: frozenset[Run] = frozenset(self.runs)
        self.stretches: dict[Run, Stretch] = {}
        self.jobs: dict[Any, Stretch] = {}
        """What worker threads execute, by the job."""
        self._see_threads()
        self._see_tasks()
        self.uses: dict[Run, list[Named[Limiter]]] = {}
        """The named limits that a run holds or waits for, by the run."""
        self.limits: dict[Limiter, Named[Limiter]] = {}
        self._see_limits()
        self.places: dict[Run, Places] = {run: found for run in self.runs if (found := self._places_of(run))}

    def clear(self) -> None:
        """Let go of the frames, and with them of all that their variables hold."""
        self.stretches.clear()
        self.jobs.clear()

    # --- frames

    def _see_threads(self) -> None:
        names = {each.ident: each.name for each in threading.enumerate()}
        for number, stack in thread_stacks(without=_OURS).items():
            self._split(stack, names.get(number) or str(number))

    def _see_tasks(self) -> None:
        """The suspended ones: what executes has been seen in its thread, and shows little here."""
        tasks = dict.fromkeys(run.task for run in self.runs if run.task is not None and not run.host.is_inline)
        for task in tasks:
            frames = without_raising(_frames_of, task)
            self._split(frames, None)

    def _split(self, stack: Sequence[FrameType], thread: str | None) -> None:
        whose: Any = None
        frames: list[FrameType] = []
        for frame in stack:
            key = key_of(frame)
            if key not in (EXECUTE, JOB):
                frames.append(frame)
                continue
            follower = local_of(frame, "run" if key == EXECUTE else "self")
            self._keep(whose, Stretch(frames, thread, follower if isinstance(follower, Run) else None))
            whose, frames = follower, []
        self._keep(whose, Stretch(frames, thread, None))

    def _keep(self, whose: Any, stretch: Stretch) -> None:
        if isinstance(whose, Run):
            self.stretches.setdefault(whose, stretch)
        elif whose is not None:
            self.jobs[whose] = stretch

    # --- limits

    def _see_limits(self) -> None:
        for services in self.services:
            for named in services.limits.concurrency.now():
                self.limits[named.limiter] = named
                for use in named.uses():
                    run = _run_of(use)
                    if run is not None and named not in self.uses.setdefault(run, []):
                        self.uses[run].append(named)

    def _places_of(self, run: Run) -> Places | None:
        """What it has or takes: while it takes them, its engine's frame has them."""
        if run.places is not None or run not in self.stretches:
            return run.places
        for frame in self.stretches[run].frames:
            if key_of(frame) == TAKE_PLACES:
                found = local_of(frame, "places")
                return found if isinstance(found, Places) else None
        return None

    def holders_of(self, limiter: Limiter) -> list[tuple[Run | None, int]]:
        """Who holds places of a limit, and how many; None is code outside of any run."""
        named = self.limits.get(limiter)
        if named is None:
            return [(run, count) for run, places in self.places.items() if (count := places.held.count(limiter))]
        return [(_run_of(use), use.count) for use in named.uses() if use.holds]


def _run_of(use: Use[Limiter]) -> Run | None:
    holder = use.holder  # once: it is gone with the use
    return holder if isinstance(holder, Run) else None


# --- the tree of runs ------------------------------------------------------------------------


def live_runs(services: Services) -> list[Run]:
    """The runs that have not left the tree yet, each followed by those that it called."""
    found: list[Run] = []
    # In the order of their birth, which ids have.
    left: list[Run] = sorted(services.live(), key=lambda run: run.id, reverse=True)
    while left:
        run = left.pop()
        found.append(run)
        left.extend(reversed(without_raising(_children_of, run)))
    return found


def _children_of(run: Run) -> list[Run]:
    return list(run.children or ())


def _frames_of(task: object) -> list[FrameType]:
    return list(suspended_frames(coroutine_of(task)))


_LOOKS = 5


def without_raising(look: Callable[[T], list[U]], at: T) -> list[U]:
    """What a look at something gives that other threads change: another one where they did so in its middle."""
    for _ in range(_LOOKS):
        try:
            return look(at)
        except (RuntimeError, ValueError, AttributeError, KeyError, IndexError):
            continue
    return []
