"""Runs that run again: finding what they did the last time, and not doing it twice."""

from __future__ import annotations

from functools import partial
from typing import Any

from asyncflow._engine.reaching import reachably
from asyncflow._past import Past
from asyncflow._rows import STATE_CODES, RunRow, details_of
from asyncflow._rules import RESUMING, Ending
from asyncflow._run import Run
from asyncflow.exceptions import AsyncflowError, CodecError
from asyncflow.logs import library_logger
from asyncflow.serializers import decode, misfit
from asyncflow.states import StateType

__all__ = ["ANSWERED", "recall", "remember"]

ANSWERED = Ending(type=StateType.COMPLETED)
"""The ending of a run that is not run: its record is there, and so is its value."""

_COMPLETED = STATE_CODES[StateType.COMPLETED]
_FAILED = STATE_CODES[StateType.FAILED]


async def recall(run: Run) -> Ending | None:
    """What a call under a run that runs again did the last time, if its record is there.

    A completed one is answered from it. Any other goes on where it was left, under its old id: its
    attempts are counted on, and what was completed below it is found again.
    """
    parent = run.parent
    if parent is None or parent.past is None or run.digest is None:
        return None
    asker = None if run.is_hosted or run.stream is not None else run.task  # the former come in their body's order
    row, could_be_anothers = parent.past.take(run.kind, run.spec.key, run.digest, asker)
    if row is None:
        return None
    if could_be_anothers and not run.spec.options.is_cached:
        _warn_once(run)
    if _may_answer(run, row, is_retry=parent.past.is_retry):
        answers: list[Any] = []
        if stopped := await reachably(run, partial(_answer, run, row, answers)):
            return stopped
        if answers:
            run.stay(row, answers[0])
            run.facts = {"committed": True} if details_of(row).get("committed") else None
            return ANSWERED
    _reopen(run, row)
    return await reachably(run, partial(_remember_children, run))


async def _answer(run: Run, row: RunRow, answers: list[Any]) -> None:
    """Read the value of a completed run, where it may be given just like that."""
    if run.transaction is not None and not details_of(row).get("committed"):
        called = await run.services.ask(run.host, lambda: run.services.store.read_children(row.id))
        if called:
            return  # they may have hooks that are still to be called: it runs again, and finds them
    await _read_value(run, row, answers)


def _may_answer(run: Run, row: RunRow, *, is_retry: bool) -> bool:
    if row.state != _COMPLETED or (row.result is None and row.result_file is None) or run.stream is not None:
        return False  # the items of a stream are not recorded: it runs again, and finds what it called
    options = run.spec.options
    if options.refresh_cache or (is_retry and not options.reuse_on_flow_retry):
        return False
    return not details_of(row).get("rolled_back")


async def _read_value(run: Run, row: RunRow, answers: list[Any]) -> None:
    results = run.services.results
    try:
        text = row.result if results is None else await results.read(row, run.host)
        if text is not None:
            answers.append(decode(text, run.spec.return_hint))
    except CodecError:
        raise  # the value is there, and running everything again is not what anybody wants
    except (ValueError, AsyncflowError) as error:
        # Running it again costs time; a value of another type than the caller was promised costs more.
        library_logger().warning(
            "the recorded value of %r cannot be used, so it runs again: %s", row.function, misfit(error)
        )


def _reopen(run: Run, row: RunRow) -> None:
    run.adopt(row)
    if row.state == _FAILED or row.state == _COMPLETED:
        run.spent = row.run_count  # it had its attempts, to the end
    run.enter(StateType.PENDING, run.services.clock.now(), name=RESUMING)


async def _remember_children(run: Run) -> None:
    rows = await run.services.ask(run.host, lambda: run.services.store.read_children(run.id))
    if rows:
        run.past = Past(rows)


async def remember(run: Run) -> None:
    """Before the next attempt of a flow: have what its last one completed at hand.

    Read from the store, as after a crash, so that there is one way to find it; which asks that it is there.
    """
    settings, store = run.services.settings, run.services.store
    on_disk, problem, held_back = await run.host.confirm(store, settings.durability_seconds)
    if held_back is not None:
        raise held_back
    if not on_disk:
        library_logger().warning(
            "%r is tried again from its beginning: what its tasks completed could not be read back (%s)",
            run.display_name, problem or store.last_error,
        )  # fmt: skip
        return
    rows = await run.services.ask(run.host, lambda: store.read_children(run.id))
    run.past = Past(rows, is_retry=True)


def _warn_once(run: Run) -> None:
    if "exchanged" not in run.spec.said:
        run.spec.said.add("exchanged")
        library_logger().warning(
            "equal calls of %s %r came from several tasks, so a recorded value may have gone to another one than "
            "the last time (said once): tell them apart with run_key",
            run.spec.kind.value, run.spec.name,
        )  # fmt: skip
