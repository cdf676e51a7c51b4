"""The life of one run: begin, attempts until the rules say stop, a final state, and what follows it."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from asyncflow._cancellation import crash
from asyncflow._engine.aftermath import conclude, follow_up
from asyncflow._engine.attempt import attempt, clear_up
from asyncflow._engine.endings import ending_of_cause, ending_of_raised, finish
from asyncflow._engine.hooks import allows_retry, run_hooks
from asyncflow._engine.identity import identify, needs_identity
from asyncflow._engine.inputs import may_hold_futures
from asyncflow._engine.preparation import join_parent, not_begun, prepare, take_places
from asyncflow._engine.reaching import reachably
from asyncflow._engine.recall import ANSWERED, remember
from asyncflow._recorded import ENDING
from asyncflow._rules import Ending
from asyncflow._run import Run
from asyncflow.retries import delay_after
from asyncflow.states import State, StateType

__all__ = ["execute"]


async def execute(run: Run) -> None:
    """Take a run from its call to its record.

    When this returns, the run is final, `run.value` or `run.error` is what its caller gets, and
    an outermost run is on disk. What it raises is not the body's: a cancellation or Ctrl-C that
    came while the record was waited for, `DurabilityError`, or `RunEndedError` before the begin.
    For a submitted run, whose outcome its future tells, it raises nothing.
    """
    host = run.host
    try:
        run.task = host.current_task()
        if not run.is_hosted:  # a submitted run has joined already
            join_parent(run)
        try:
            try:
                if host.wants_to_relax():
                    await host.relax(run.services.store, run.services.settings.queue_limit)
                ending = await _attempts(run)
            except BaseException as error:  # noqa: BLE001  # in a hook or between attempts; or Ctrl-C in the engine
                ending = ending_of_raised(run, error)
            if run.children is not None and not run.is_alone:
                ending = await clear_up(run, ending)
            if ending is not ANSWERED:
                finish(run, ending)
            del ending  # as in `_attempts`
        finally:
            # Does something only when the lines above were torn apart themselves.
            crash(run, "the engine was interrupted")
            if run.transaction is not None:
                run.transaction.ended(run)
            if run.parent is None or run.spec.has_aftermath or run.is_durable or run.unseen is not None:
                await follow_up(run)
    except BaseException as error:
        if not run.is_hosted:
            raise
        run.error = error
    finally:
        _let_go(run)


def _let_go(run: Run) -> None:
    """Have everybody who waits for a run go on: for its places, for its outcome, for its end."""
    if run.places is not None:
        run.leave_places()  # it was stopped before its body could begin
    if run.is_hosted:
        conclude(run)
    run.is_settled = True
    try:
        if run.waiters is not None:
            run.settle()
    finally:
        run.unlink()


async def _attempts(run: Run) -> Ending:
    services, options = run.services, run.spec.options
    # What most runs do not need must not cost them anything.
    is_plain = not (run.spec.is_prepared or run.is_special or services.held or may_hold_futures(run))
    if not is_plain and (stopped := await prepare(run)):
        return stopped
    asked = run.host.cancels_asked() if options.retries else 0
    while True:
        if run.limiters is not None and (stopped := await take_places(run)):
            return stopped
        if run.cause is not None and not run.run_count:  # it was submitted, and cancelled before it began
            return not_begun(run)
        _begin(run)
        if (run.origin or options.on_running) and (stopped := await reachably(run, partial(_before_body, run))):
            return stopped
        if run.cause is not None:  # a stream that was closed before there was a scope to cancel
            return ending_of_cause(run)
        ending, last = await attempt(run), None
        try:
            if ending.type is not StateType.FAILED:
                return ending
            if last := await _last_word(run, ending, asked):
                return last
            delay = _delay(run)
            now = services.clock.now()
            with ENDING:  # it may be paused at this moment
                run.enter(
                    StateType.SCHEDULED, now, name="AwaitingRetry", message=ending.message, facts=_until(now + delay)
                )
        finally:
            # The exception in them holds the attempt's frames and through those this one: a cycle.
            del ending, last
        if stopped := await _rest(run, delay):
            return stopped
        run.closing = False


async def _rest(run: Run, delay: float) -> Ending | None:
    """What lies between two attempts; gives an ending when the run was cancelled meanwhile."""
    stopped = await reachably(run, partial(run.host.sleep, delay))
    if stopped is None and run.spec.is_flow and run.children is not None:
        stopped = await reachably(run, partial(remember, run))
    return stopped


def _begin(run: Run) -> None:
    now = run.services.clock.now()
    if run.run_count:
        run.run_count += 1
        run.enter(StateType.RUNNING, now, name="Retrying")
    else:
        if needs_identity(run):
            identify(run)
        run.begin(now)


async def _before_body(run: Run) -> None:
    """What lies between Running and the body, for the few that have something there."""
    if run.origin is not None:
        await _have_recorded(run)
    if run.spec.options.on_running:
        await run_hooks(run, StateType.RUNNING)


async def _have_recorded(run: Run) -> None:
    """Wait until it is on disk that a deployment's run has begun, however long the disk takes.

    One that is not known to have begun is begun anew when its process dies: its body must not have been entered.
    """
    is_on_disk = False
    while not is_on_disk:
        is_on_disk, _, held_back = await run.host.confirm(run.services.store, run.services.settings.durability_seconds)
        if held_back is not None:
            raise held_back


async def _last_word(run: Run, ending: Ending, asked: int) -> Ending | None:
    """The ending of a run whose attempt failed; None when there is to be another attempt."""
    if run.is_over or run.cause is not None or run.run_count - run.spent > run.spec.options.retries:
        return ending
    if run.host.cancels_asked() > asked and not _is_ambiguous(ending):
        return ending  # it answered its caller's cancellation with an exception: the caller wants no more of it
    if not await allows_retry(run, _state_of(run, ending)):
        return ending._replace(facts={"retriable": False})
    return None


def _is_ambiguous(ending: Ending) -> bool:
    """Whether a request to cancel may be left over from a failed `asyncio.TaskGroup`, as before CPython 3.13."""
    return sys.version_info < (3, 13) and isinstance(ending.error, BaseExceptionGroup)


def _delay(run: Run) -> float:
    import random  # only runs that are retried need it

    options = run.spec.options
    attempts = run.run_count - run.spent
    return delay_after(attempts, options.retry_delay_seconds, options.retry_jitter_factor, random.random)


def _until(moment: float) -> dict[str, Any]:
    return {"scheduled_time": int(moment * 1_000_000)}


def _state_of(run: Run, ending: Ending) -> State[object]:
    return State(
        type=ending.type, name=ending.name or "", message=ending.message, data=ending.error, state_details=run.details()
    )
