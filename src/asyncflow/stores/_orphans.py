"""What becomes of a run whose process has died, or that is run again: pure, so that both stores do the same."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from asyncflow._deployment_rows import NOBODY
from asyncflow._rows import FIRST_FINAL, FLOW, STATE_CODES, RunRow, details_of, history_of, moved, states_of
from asyncflow._rules import INTERRUPTED, RESTING, RESUMING, STOPPING
from asyncflow.states import State, StateType

__all__ = [
    "MOST_DEATHS",
    "PAUSED",
    "PENDING",
    "SCHEDULED",
    "UNKNOWN_PROCESS",
    "died",
    "ended",
    "enqueued_again",
    "facts_of_waiting",
    "is_enqueued",
    "is_interrupted",
    "is_orphan",
    "left_behind",
    "rests",
    "resuming",
    "stand_in_resuming",
    "waits",
]

SCHEDULED, PENDING, PAUSED, _CANCELLING = (
    STATE_CODES[each] for each in (StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING)
)
MOST_DEATHS = 10
"""A run whose process died more often than that is not begun by itself any more: it may be what kills it."""
_DIED = "its process died"
UNKNOWN_PROCESS = f"{_DIED} (nothing is known of it)"


def died(process: object) -> str:
    """Why a run of that process has ended."""
    return f"{_DIED} ({process})"


def waits(row: RunRow) -> bool:
    """Whether the run waits to be resumed: nobody runs it, so nobody's death concerns it."""
    return row.state == PAUSED and row.state_name in RESTING


def is_interrupted(row: RunRow) -> bool:
    """Whether the run waits to be resumed by whichever process comes first."""
    return row.state == PAUSED and row.state_name == INTERRUPTED


def is_enqueued(row: RunRow) -> bool:
    """Whether the run waits to be started: nobody runs it, and it is nobody's."""
    return row.owner == NOBODY and row.state == SCHEDULED and row.deployment_id is not None


def rests(row: RunRow) -> bool:
    """Whether the run has ended, or waits to be resumed: nobody runs it, and it needs not be kept."""
    return row.state >= FIRST_FINAL or waits(row)


def is_orphan(row: RunRow) -> bool:
    """Whether the run is open and was being run, given that its owner is dead."""
    return not rests(row) and not is_enqueued(row)


def ended(row: RunRow, now: int, owner: int, why: str, deployments: Collection[bytes]) -> RunRow:
    """`row`, whose process has died, as its new `owner` records it: Crashed, or waiting to be begun again.

    `deployments` are those there are: a run of another one would wait for ever.
    """
    if row.deployment_id in deployments and _has_not_begun(row):
        deaths = 1 + sum(entry[0] == SCHEDULED and (entry[2] or "").startswith(_DIED) for entry in history_of(row))
        if deaths <= MOST_DEATHS:
            due = row.created if row.scheduled is None else row.scheduled
            return enqueued_again(row, due, now, f"{why} before it had begun")
        why = f"{why}; this happened {deaths} times before it had begun, so it is not started any more"
    elif _is_to_be_resumed(row):
        deaths = 1 + sum(map(_is_of_death, states_of(row)))
        if deaths <= MOST_DEATHS:
            return moved(row, StateType.PAUSED, now, name=INTERRUPTED, message=why)._replace(owner=owner)
        why = f"{why}; this happened {deaths} times, so it is not resumed by itself any more"
    return moved(row, StateType.CRASHED, now, message=why)._replace(owner=owner)


def _has_not_begun(row: RunRow) -> bool:
    """Whether a run was claimed when it was due, and nothing of its body was executed since."""
    if row.state == _CANCELLING:
        return False
    codes = [entry[0] for entry in history_of(row)]
    if codes[-2:] == [SCHEDULED, PENDING]:
        return True
    # One that had ended was opened again by somebody who wanted it there and then.
    return row.run_count == 0 and max(codes) < FIRST_FINAL


def enqueued_again(row: RunRow, due: int, now: int, message: str | None = None) -> RunRow:
    """`row`, waiting to be started again by whoever serves its deployment."""
    return moved(row, StateType.SCHEDULED, now, message=message, facts=facts_of_waiting(row, due))._replace(
        owner=NOBODY, scheduled=due
    )


def facts_of_waiting(row: RunRow, due: int) -> dict[str, Any]:
    """What else the state of a run tells that waits to be started: what its first one did."""
    first = history_of(row)[0]
    return {**((first[4] if len(first) > 4 else None) or {}), "scheduled_time": due}


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
