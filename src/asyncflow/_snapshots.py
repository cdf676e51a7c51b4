"""Taking an await tree: every live run with what it waits for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from asyncflow._live_tree import Look
from asyncflow._live_waits import waits_of
from asyncflow._rows import FLOW
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow._wait_cycles import find_cycles
from asyncflow._waits import AwaitTree, CycleStep, LiveRun

__all__ = ["await_tree_of"]

_MICRO = 1_000_000


def await_tree_of(services: Sequence[Services], run_id: bytes | None = None) -> AwaitTree:
    """The live runs of some runtimes, or of one run and all below it. From any thread; nothing waits for it.

    Runs go on while they are looked at, so each is told as it was at some moment of the look.
    """
    tree = _look(services)
    if tree.cycles:
        # What was seen of one run and, later, of another may look like a circle: a real one is still there.
        again = {_members(each) for each in _look(services).cycles}
        tree = _with_cycles(tree, [each for each in tree.cycles if _members(each) in again])
    return tree if run_id is None else _below(tree, UUID(bytes=run_id))


def _look(services: Sequence[Services]) -> AwaitTree:
    look = Look(services)
    try:
        taken = _now(services)
        runs = tuple(_record(look, run, taken) for run in look.runs)
    finally:
        look.clear()
    return AwaitTree(pid=os.getpid(), taken=taken, runs=runs, cycles=find_cycles(runs))


def _record(look: Look, run: Run, taken: datetime) -> LiveRun:
    parent = run.parent
    _, type_, name, _ = run.status
    at = run.latest or run.created
    return LiveRun(
        id=UUID(bytes=run.id),
        kind="flow" if run.kind == FLOW else "task",
        function=run.spec.name,
        name=run.display_name,
        state=name or ("Pending" if type_ is None else type_.value.title()),
        since=datetime.fromtimestamp(at / _MICRO, UTC) if at else taken,
        parent_id=None if parent is None else UUID(bytes=parent.id),
        depth=run.depth - 1,
        waits=waits_of(look, run),
    )


def _now(services: Sequence[Services]) -> datetime:
    """The time, by the clock that the states of the runs go by."""
    return datetime.fromtimestamp(services[0].clock.now(), UTC) if services else datetime.now(UTC)


def _members(cycle: Sequence[CycleStep]) -> frozenset[UUID]:
    return frozenset(step.run_id for step in cycle)


def _with_cycles(tree: AwaitTree, cycles: Sequence[tuple[CycleStep, ...]]) -> AwaitTree:
    return AwaitTree(pid=tree.pid, taken=tree.taken, runs=tree.runs, cycles=tuple(cycles))


def _below(tree: AwaitTree, top: UUID) -> AwaitTree:
    """A run and all below it, and the circles that one of them is in."""
    wanted = {top}
    for run in tree.runs:  # parents come first
        if run.parent_id in wanted:
            wanted.add(run.id)
    runs = tuple(run for run in tree.runs if run.id in wanted)
    cycles = tuple(cycle for cycle in tree.cycles if any(step.run_id in wanted for step in cycle))
    return AwaitTree(pid=tree.pid, taken=tree.taken, runs=runs, cycles=cycles)
