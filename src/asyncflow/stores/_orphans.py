"""What becomes of a run whose process has died, or that is run again: pure, so that both stores do the same."""

from __future__ import annotations

from typing import Any

from asyncflow._rows import FIRST_FINAL, FLOW, STATE_CODES, RunRow, details_of, moved, states_of
from asyncflow._rules import INTERRUPTED, RESUMING, STOPPING
from asyncflow.states import State, StateType

__all__ = [
    "INTERRUPTED",
    "MOST_DEATHS",
    "PAUSED",
    "UNKNOWN_PROCESS",
    "ended",
    "is_orphan",
    "left_behind",
    "rests",
    "resuming",
    "stand_in_resuming",
    "waits",
]

PAUSED = STATE_CODES[StateType.PAUSED]
MOST_DEATHS = 10
"""A run whose process died more often than that is not resumed by itself any more: it may be what kills it."""
UNKNOWN_PROCESS = "its process died (nothing is known of it)"


def waits(row: RunRow) -> bool:
    """Whether the run waits to be claimed: nobody runs it, so nobody's death concerns it."""
    return row.state == PAUSED and row.state_name == INTERRUPTED


def rests(row: RunRow) -> bool:
    """Whether the run has ended, or waits to be claimed: nobody runs it."""
    return row.state >= FIRST_FINAL or waits(row)


def is_orphan(row: RunRow) -> bool:
    """Whether the run is open and was being run, given that its owner is dead."""
    return not rests(row)


def ended(row: RunRow, now: int, owner: int, why: str) -> RunRow:
    """`row`, whose process has died, as its new `owner` records it: Crashed, or waiting to be resumed."""
    if _is_to_be_resumed(row):
        deaths = 1 + sum(map(_is_of_death, states_of(row)))
        if deaths <= MOST_DEATHS:
            return moved(row, StateType.PAUSED, now, name=INTERRUPTED, message=why)._replace(owner=owner)
        why = f"{why}; this happened {deaths} times, so it is not resumed by itself any more"
    return moved(row, StateType.CRASHED, now, message=why)._replace(owner=owner)


def _is_of_death(state: State[Any]) -> bool:
    return state.name == INTERRUPTED and STOPPING not in (state.message or "")


def resuming(row: RunRow, now: int, owner: int) -> RunRow:
    """`row`, which nobody runs, as its new `owner` records it before running it again."""
    return moved(row, StateType.PENDING, now, name=RESUMING)._replace(owner=owner)


def left_behind(row: RunRow, now: int, owner: int) -> RunRow:
    """The interrupted `row` below a run that is run again: it may be called again, or not, and then has its end."""
    message = "interrupted with the run it is a part of, which is run again"
    return moved(row, StateType.CANCELLED, now, message=message)._replace(owner=owner)


def stand_in_resuming(row: RunRow, flow: RunRow, now: int) -> RunRow:
    """The stand-in `row` of a nested flow that is being resumed: the two are written as one, with one number."""
    taken = resuming(row, now, flow.owner)
    return taken._replace(seq=max(taken.seq, flow.seq))


def _is_to_be_resumed(row: RunRow) -> bool:
    return row.kind == FLOW and row.parent_id is None and details_of(row).get("resume") == "auto"
