"""What a pause was answered with, as its row among a run's inputs keeps it.

The rows of a pause are those of the run whose body paused, under "pause:" and its key: a body that
is run again, because its process died or it was suspended, gets from them what it got before, in
the order of its calls. (Of the run whose body it was, and not of the flow run that was paused: a
task that has completed is not run again, and what it was given must not go to somebody else.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from asyncflow._deployment_rows import InputRow
from asyncflow._input_models import misfits
from asyncflow._rows import RunRow, history_of, maybe_moment
from asyncflow.abc import RunStore
from asyncflow.exceptions import CannotResumeError, InputValidationError
from asyncflow.serializers import decode, encode

__all__ = ["MOST", "PauseAnswer", "answer_suspended", "record_of", "suspension_of"]

MOST = 10_000
"""Rows that are read at once: nobody answers one pause that often."""


class PauseAnswer(NamedTuple):
    """How a pause ended."""

    text: str | None = None
    """JSON of the input; None when there was none."""
    timed_out: float | None = None
    """The seconds that nobody answered it in."""
    seq: int | None = None
    """Of a suspended run: the number of the state it was resumed from. Of two rows with one number the first counts."""

    def to_json(self) -> str:
        """For the row."""
        told: dict[str, Any] = {} if self.text is None else {"input": orjson.Fragment(self.text)}
        told |= {name: value for name in ("timed_out", "seq") if (value := getattr(self, name)) is not None}
        return orjson.dumps(told).decode()

    @classmethod
    def of(cls, row: InputRow) -> PauseAnswer:
        """Of a row."""
        told: dict[str, Any] = decode(row.data)
        text = encode(told["input"]) if "input" in told else None
        return cls(text, told.get("timed_out"), told.get("seq"))


def record_of(key: str) -> str:
    """The key of the rows of a pause."""
    return f"pause:{key}"


# --- suspended runs --------------------------------------------------------------------------


class Suspension(NamedTuple):
    """What a suspended run's newest state tells of the call that suspended it."""

    run_id: bytes
    """Of the run whose body made the call."""
    key: str
    expires: int | None
    schema: Mapping[str, Any] | None


def suspension_of(row: RunRow) -> Suspension | None:
    """The call that a run was suspended by; None where it was somebody from outside, or is not suspended."""
    entry = history_of(row)[-1]
    facts: dict[str, Any] = (entry[4] if len(entry) > 4 else None) or {}
    if "paused_in" not in facts:
        return None
    return Suspension(
        bytes.fromhex(facts["paused_in"]), facts["pause_key"], facts.get("pause_timeout"), facts.get("input_schema")
    )


def answer_suspended(store: RunStore, row: RunRow, text: str | None, now: int) -> None:
    """Put on record what a suspended run is resumed with. Blocks.

    Raises `InputValidationError` as far as the recorded schema tells, and `CannotResumeError` when its time
    is over, or somebody else has answered it with something else.
    """
    asked = suspension_of(row)
    if asked is None:
        if text is not None:
            raise CannotResumeError(UUID(bytes=row.id), "it waits for no input", "Resume it without run_input.")
        return
    answer = _checked(row, asked, text, now)
    first = _first(store, asked, row.seq)
    if first is None:
        store.add_input(asked.run_id, record_of(asked.key), answer.to_json(), None, now)
        first = _first(store, asked, row.seq)  # two may do this at the same time: the first counts, for both
    if first != answer and text is not None:
        why = "somebody else has resumed it, with something else, and it has not gone on yet"
        raise CannotResumeError(UUID(bytes=row.id), why, "Resume it without run_input to have it go on with that.")


def _checked(row: RunRow, asked: Suspension, text: str | None, now: int) -> PauseAnswer:
    if asked.expires is not None and now >= asked.expires:
        if text is not None:
            why = f"its pause {asked.key!r} has taken no input since {maybe_moment(asked.expires)}"
            raise CannotResumeError(
                UUID(bytes=row.id), why, "Resume it without run_input: its body gets a PauseTimeoutError."
            )
        return PauseAnswer(timed_out=_allowed(row, asked.expires), seq=row.seq)
    if asked.schema is None:
        if text is not None:
            why = f"its pause {asked.key!r} waits for no input"
            raise CannotResumeError(UUID(bytes=row.id), why, "Resume it without run_input.")
    elif problems := misfits(asked.schema, text):
        raise InputValidationError(UUID(bytes=row.id), asked.key, problems)
    return PauseAnswer(text, seq=row.seq)


def _allowed(row: RunRow, expires: int) -> float:
    since: int = history_of(row)[-1][3]
    return round((expires - since) / 1_000_000, 3)


def _first(store: RunStore, asked: Suspension, seq: int) -> PauseAnswer | None:
    answers = map(PauseAnswer.of, store.read_inputs(asked.run_id, record_of(asked.key), -1, MOST))
    return next((each for each in answers if each.seq == seq), None)
