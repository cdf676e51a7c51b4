"""Finding the loop whose tasks are to be watched, for `asyncflow.testing`."""

from __future__ import annotations

import sys

from asyncflow._backend.points import StepLoop

__all__ = ["step_loop"]


def step_loop() -> StepLoop:
    """The loop that runs here. Raises `RuntimeError` where none does."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():  # first: in guest mode asyncio runs here too
        # Imported when such a loop is seen, as in `detect`.
        from asyncflow._backend.trio_steps import TrioSteps

        return TrioSteps()
    from asyncflow._backend.asyncio_steps import AsyncioSteps

    return AsyncioSteps()
