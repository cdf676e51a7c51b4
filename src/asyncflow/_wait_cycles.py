"""Runs that wait in a circle. Pure: records of what runs wait for in, circles out.

Waiting for each other is not yet a deadlock: of a limit with two places one holder may go on. So a
run counts as stuck only when all that it waits for is: every holder of a limit, or one of the
children. Where something is not known (code outside of any run holds a place, or another task of the
run itself), it may go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from asyncflow._waits import CycleStep, LiveRun, LiveWait

__all__ = ["find_cycles"]

_LIMITS = frozenset({"limit", "key"})
_RUNS = frozenset({"run", "cache", "children", "item"})


class _Wait(NamedTuple):
    targets: Sequence[UUID]
    is_all: bool
    """Whether all targets have to go on for it to end; else any of them will do."""


def find_cycles(runs: Sequence[LiveRun]) -> tuple[tuple[CycleStep, ...], ...]:
    """The circles in which runs are stuck, each beginning with the one of its runs that comes first in `runs`."""
    if not any(wait.kind in _LIMITS for run in runs for wait in run.waits):
        return ()  # waiting in a circle for runs alone is refused where it begins
    by_id = {run.id: run for run in runs}
    stuck = set(by_id) - _free(runs, set(by_id))
    found: list[tuple[CycleStep, ...]] = []
    seen: set[UUID] = set()
    for run in runs:
        path: dict[UUID, CycleStep] = {}
        at = run.id
        while at in stuck and at not in seen:
            seen.add(at)
            wait, then = _step(by_id[at], stuck)
            path[at] = CycleStep(at, by_id[at].name, wait.what if wait.kind in _LIMITS else "")
            at = then
        if at in path:
            steps = list(path.values())
            found.append(tuple(steps[list(path).index(at) :]))
    return tuple(found)


def _step(run: LiveRun, stuck: set[UUID]) -> tuple[LiveWait, UUID]:
    """The first thing that a stuck run waits for, and a stuck run that keeps it."""
    return next((wait, each) for wait in run.waits for each in _targets(wait) if each in stuck)


def _targets(wait: LiveWait) -> Sequence[UUID]:
    if wait.kind in _LIMITS:
        return [each.run_id for each in wait.holders if each.run_id is not None]
    return wait.run_ids if wait.kind in _RUNS else ()


def _free(runs: Sequence[LiveRun], known: set[UUID]) -> set[UUID]:
    """The runs that can go on, now or when others have gone on that can."""
    waits = {run.id: [_as_wait(run, wait, known) for wait in run.waits] for run in runs}
    awaited_by: dict[UUID, list[UUID]] = {}
    for run_id, each in waits.items():
        for target in _targets_of(each):
            awaited_by.setdefault(target, []).append(run_id)
    free: set[UUID] = set()
    left = list(waits)
    while left:
        run_id = left.pop()
        if run_id not in free and any(_goes_on(wait, free) for wait in waits[run_id]):
            free.add(run_id)
            left.extend(awaited_by.get(run_id, ()))
    return free


def _targets_of(waits: Sequence[_Wait]) -> Iterator[UUID]:
    for wait in waits:
        yield from wait.targets


def _as_wait(run: LiveRun, wait: LiveWait, known: set[UUID]) -> _Wait:
    targets = [each for each in _targets(wait) if each in known and each != run.id]
    if wait.kind in _LIMITS and len(targets) < len(wait.holders):
        return _ENDS
    return _Wait(targets, is_all=wait.kind == "children") if targets else _ENDS


def _goes_on(wait: _Wait, free: set[UUID]) -> bool:
    return (all if wait.is_all else any)(each in free for each in wait.targets)


_ENDS = _Wait((), is_all=True)
