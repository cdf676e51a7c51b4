"""Runs that a test has started and not waited for."""

from __future__ import annotations

from asyncflow._run import Run
from asyncflow.states import StateType

__all__ = ["told_of_leftovers"]

_CAME_TO_AN_END = (StateType.COMPLETED, StateType.FAILED)


def told_of_leftovers(runs: list[Run]) -> str | None:
    """What to say of the runs that had not ended when their test's function had; None when there is nothing wrong.

    One that came to its end while the fixtures were torn down, or that somebody cancelled by name, is nobody's fault.
    """
    left = [run for run in runs if run.status.type not in _CAME_TO_AN_END and run.cause is None]
    if not left:
        return None
    one_or_more = "a run" if len(left) == 1 else f"{len(left)} runs"
    listed = "".join(f"\n  {run.spec.kind.value} run {run.display_name!r} of {run.spec.name!r}" for run in left)
    return (
        f"the test ended before {one_or_more} that it had started:{listed}\n"
        "wait for the end in the test (await future), or cancel the run (future.cancel()) and wait for that"
    )
