"""What can be asked of a live run by its id, done in the process that runs it.

Whoever asks may be another process (`_control.requests`): so an order is a word and plain data, and what it raises
are errors whose fields can be sent back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any
from uuid import UUID

from asyncflow._cancellation import cancel, outermost_of
from asyncflow._causes import Cause
from asyncflow._engine.pausing import answer_pause, hold, pause_of, release, suspend
from asyncflow._live_tree import live_runs
from asyncflow._rows import FLOW
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow.exceptions import (
    AsyncflowError,
    CannotCancelNestedRunError,
    CannotPauseError,
    CannotResumeError,
    InputValidationError,
    StoreError,
)

__all__ = ["CANCEL", "PAUSE", "RESUME", "SUSPEND", "carry_out", "error_of", "find_flow_run", "refuse_part", "told"]

CANCEL, PAUSE, SUSPEND, RESUME = "cancel", "pause", "suspend", "resume"


def find_flow_run(services: Iterable[Services], run_id: bytes) -> Run | None:
    """The live flow run with this id that goes on in one of these runtimes. From any thread."""
    runtimes = list(services)
    outermost = (run for each in runtimes for run in each.live())
    nested = (run for each in runtimes for run in live_runs(each))  # only where it is none of the former
    every = chain(outermost, nested)
    return next((run for run in every if run.id == run_id and run.kind == FLOW and not run.is_over), None)


def carry_out(run: Run, order: str, data: Mapping[str, Any]) -> None:
    """Do with a live flow run what somebody wants done. Blocks, for as long as it takes to begin; from any thread.

    Raises `CannotCancelNestedRunError`, `CannotPauseError`, `CannotResumeError` or `InputValidationError`;
    then nothing has changed.
    """
    if order == RESUME:
        _resume(run, data.get("key"), data.get("input"))
        return
    if run.parent is not None:
        raise refuse_part(order, UUID(bytes=run.id), UUID(bytes=outermost_of(run).id))
    if order == CANCEL:
        cancel(run, Cause(data["message"]))
    elif order == SUSPEND:
        suspend(run, data["message"])
    elif not hold(run):
        why = f"it is {run.bare_state()}"
        raise CannotPauseError(UUID(bytes=run.id), why, "Only a run that is Running can be paused.")


def refuse_part(order: str, run_id: UUID, outermost_id: UUID) -> AsyncflowError:
    """The error for whoever wants something done with a run that can only be done with the whole tree."""
    if order == CANCEL:
        return CannotCancelNestedRunError(run_id, outermost_id)
    return CannotPauseError(run_id, "it is a part of another run", f"Pause or suspend that one: {outermost_id}")


def _resume(run: Run, key: str | None, text: str | None) -> None:
    if key is None and text is None and release(run):
        return
    pause = pause_of(run, key)
    if pause is None:
        raise _not_paused(run, key)
    if not answer_pause(run, pause, text):
        raise CannotResumeError(UUID(bytes=run.id), "somebody else has just resumed it", "Look at it again.")


def _not_paused(run: Run, key: str | None) -> CannotResumeError:
    run_id, other = UUID(bytes=run.id), pause_of(run)
    if other is not None:
        return CannotResumeError(run_id, f"it is in no pause {key!r}, but in {other.key!r}", "Resume that one.")
    if run.id in run.services.held:
        return CannotResumeError(run_id, "it waits for no input", "Resume it without run_input and key.")
    for below in live_runs(run.services):
        if below.root_id == run.root_id and below is not run and (pause := pause_of(below)) is not None:
            what = f"it is {run.bare_state()}; a flow run nested in it is in the pause {pause.key!r}"
            return CannotResumeError(run_id, what, f"Resume that one: {UUID(bytes=below.id)}")
    return CannotResumeError(run_id, f"it is {run.bare_state()}, and goes on", "Wait for it, or cancel it.")


# --- errors on their way to another process --------------------------------------------------

_TOLD: dict[str, tuple[type[AsyncflowError], tuple[str, ...]]] = {
    kind.__name__: (kind, fields)
    for kind, fields in (
        (CannotCancelNestedRunError, ("run_id", "outermost_id")),
        (CannotPauseError, ("run_id", "why", "instead")),
        (CannotResumeError, ("run_id", "why", "instead")),
        (InputValidationError, ("run_id", "key", "problems")),
        (StoreError, ("operation", "path", "reason")),
    )
}


def told(error: Exception) -> dict[str, Any] | None:
    """An error as plain data; None for one that is not of those that `carry_out` raises on purpose."""
    kind = type(error).__name__
    if kind not in _TOLD or not isinstance(error, _TOLD[kind][0]):
        return None
    return {"kind": kind, "fields": [getattr(error, name) for name in _TOLD[kind][1]]}


def error_of(data: Mapping[str, Any]) -> AsyncflowError:
    """The error that `told` told of."""
    kind, _ = _TOLD[data["kind"]]
    return kind(*data["fields"])
