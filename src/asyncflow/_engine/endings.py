"""From an ending to a record: plain code, so that nothing comes between a body's end and its final state."""

from __future__ import annotations

from typing import Any, cast

from asyncflow._backend.base import RunScope
from asyncflow._backend.inline import InlineCancelled
from asyncflow._cancellation import must_stop, settle_interrupted
from asyncflow._causes import Cause
from asyncflow._engine.records import keep_given
from asyncflow._recorded import ENDING
from asyncflow._rules import INTERRUPTED, STOPPING, Ending, ending_of_error
from asyncflow._run import Run
from asyncflow.error_records import encode_error
from asyncflow.exceptions import CrashedRunError, NotJSONError, RunCancelledError, RunInterruptedError
from asyncflow.logs import library_logger
from asyncflow.serializers import encode
from asyncflow.states import RESTED, StateType, exception_for

__all__ = ["Carried", "ending_of_cause", "ending_of_raised", "ending_of_scope", "finish", "resting_name"]

_BY_CALLER = "cancelled by its caller"
_OURS = (RunCancelledError, RunInterruptedError, CrashedRunError)
_STOPPED = (StateType.CANCELLED, StateType.PAUSED)


class Carried(Exception):
    """A StopIteration of a sync body on its way through the engine's coroutines, which cannot raise one."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def ending_of_raised(run: Run, error: BaseException) -> Ending:
    """The ending of a body (or of the engine's own waiting for it) that raised."""
    if isinstance(error, Carried):
        error = error.error
    if run.host.is_cancellation(error):
        return _stopped(run, _why_cancelled(run), error)
    if isinstance(error, InlineCancelled):  # a body in a worker thread stopped at a checkpoint
        return _stopped(run, _why_cancelled(run))
    if isinstance(error, KeyboardInterrupt) and resting_name(run) is not None:
        # The only way to stop a body on its caller's thread.
        return _stopped(run, _why_cancelled(run), error)
    if _is_only_of_cancelled_runs(error) and (cause := _cause_of_tree(run)) is not None:
        # Our own word coming back: a run below was told a moment earlier, perhaps by a thread before the loop knew.
        run.cause = run.cause or cause
        return ending_of_cause(run)
    # A nursery that was cancelled while a child of it failed raises both: the failure is the body's answer.
    own = run.host.without_cancellations(error)
    return ending_of_error(error if own is None else own)._replace(error=error)


def _is_only_of_cancelled_runs(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        group: Any = cast("Any", error)
        return all(_is_only_of_cancelled_runs(each) for each in group.exceptions)
    return isinstance(error, RunCancelledError | RunInterruptedError)


def resting_name(run: Run) -> str | None:
    """The name of the state in which a run that is being stopped waits to be resumed; None when it is cancelled."""
    above: Run | None = run
    while above is not None:
        if above.cause is not None:
            return above.cause.rests_as
        if above is not run and above.scope is not None and above.scope.expired:
            return None
        above = above.parent
    # Its caller was cancelled while its runtime was being left: with the program, most likely.
    return None if run.services.intake.is_open else INTERRUPTED


def _cause_of_tree(run: Run) -> Cause | None:
    """What the run is to stop for, also where it has not been marked yet."""
    above: Run | None = run
    while above is not None and above.cause is None:
        above = above.parent
    return None if above is None else above.cause


def _why_cancelled(run: Run) -> str:
    """The first cause that the tree knows, from the run upwards; without one it came from outside."""
    if run.cause is not None:
        return run.cause.message
    above = run.parent
    while above is not None:
        who = f"cancelled because its {above.spec.kind.value} run {above.display_name!r}"
        if above.cause is not None:
            return above.cause.message if above.cause.rests_as else f"{who} was cancelled"
        if above.scope is not None and above.scope.expired:
            return f"{who} exceeded its timeout of {above.spec.options.timeout_seconds:g} seconds"
        above = above.parent
    return _BY_CALLER if run.services.intake.is_open else f"{_BY_CALLER} while {STOPPING}"


def ending_of_scope(run: Run, scope: RunScope) -> Ending:
    """The ending of a body that its own scope stopped: by its deadline, or by the tree."""
    if run.cause is None and scope.expired:
        message = f"exceeded its timeout of {run.spec.options.timeout_seconds:g} seconds"
        if run.is_abandoned:
            message += " (abandoned: its thread still runs)"
        return Ending(
            type=StateType.FAILED,
            name="TimedOut",
            message=message,
            error=TimeoutError(f"{run.spec.kind.value} run {run.display_name!r} {message}"),
        )
    return ending_of_cause(run)


def ending_of_cause(run: Run) -> Ending:
    """The ending of a run that the tree stopped while its caller goes on."""
    cause = run.cause or Cause("cancelled")
    if run.is_abandoned and cause.rests_as is None:
        message = _ignored(run, cause.message)
        return Ending(type=StateType.CRASHED, message=message, error=CrashedRunError(message))
    if cause.error is not None and run.parent is None:
        return ending_of_error(cause.error)
    # Its caller, in the same thread, is to stop as well.
    error = InlineCancelled() if run.host.is_inline and must_stop(run.parent) else None
    return _stopped(run, cause.message, error)


def _stopped(run: Run, message: str, error: BaseException | None = None) -> Ending:
    """The ending of a body that was cancelled; `error` is what its caller gets, else one of ours."""
    name = resting_name(run)
    if name is not None:
        if run.is_abandoned:
            message += " (abandoned: its thread still runs)"
        error = error or RESTED[name](message)
        facts = None if run.cause is None or run.parent is not None else run.cause.facts
        return Ending(type=StateType.PAUSED, name=name, message=message, error=error, facts=facts)
    if run.is_abandoned and error is not None:
        return Ending(type=StateType.CRASHED, message=_ignored(run, message), error=error)
    return Ending(type=StateType.CANCELLED, message=message, error=error or RunCancelledError(message))


def _ignored(run: Run, reason: str) -> str:
    grace = run.services.settings.grace_seconds
    return f"ignored cancellation for {grace:g} seconds ({reason}); its thread still runs"


def finish(run: Run, ending: Ending) -> None:
    """Record the final state. A run that already has one (given up as deaf) keeps it."""
    if not run.status.seq:
        if not run.is_hosted:  # a Ctrl-C, or its caller's cancellation, before its first state: it never was
            run.error = ending.error
            return
        keep_given(run)
        run.enter(StateType.PENDING, run.services.clock.now())
    if ending.type is StateType.COMPLETED and not run.is_over:
        ending = _keep_value(run, ending)
    error_json = None
    if ending.error is not None and ending.type not in _STOPPED:
        error_json = encode_error(ending.error)
    message = ending.message
    if run.cause is not None and ending.type in (StateType.COMPLETED, StateType.FAILED):
        message = f"{message or 'completed'} (after it was asked to stop: {run.cause.message})"
    with ENDING:
        if run.is_over:
            _disown(run, ending)
            return
        run.value = ending.value
        run.error = ending.error
        run.error_json = error_json
        if run.interrupted is not None or ending.type is StateType.PAUSED:
            settle_interrupted(run, ending.type)
        run.enter(ending.type, run.services.clock.now(), name=ending.name, message=message, facts=ending.facts)
    if isinstance(ending.error, _OURS) and ending.error.state is None:
        ending.error.state = run.bare_state()  # one of ours: it was made before there was a state


def _disown(run: Run, ending: Ending) -> None:
    """A run that was given up has ended after all: whoever called it gets what the record says."""
    run.error = ending.error
    if run.error is None or isinstance(run.error, Exception):
        run.error = exception_for(run.bare_state())
        run.error.__cause__ = ending.error


def _keep_value(run: Run, ending: Ending) -> Ending:
    """Encode the value now, before the caller can change it, if it is to be persisted."""
    asked = run.spec.options.persist_result
    by_default = run.services.settings.persist_results_by_default or run.spec.options.is_cached
    if not (by_default if asked is None else asked):
        run.not_kept = "persist_result is off"
        return ending
    try:
        run.result = encode(ending.value)
    except NotJSONError as error:
        if asked:
            # The value was asked to be kept and cannot be: losing it silently would be worse.
            return ending_of_error(error)
        run.not_kept = str(error)
        _warn_once(run, error)
    return ending


def _warn_once(run: Run, error: NotJSONError) -> None:
    if "not kept" not in run.spec.said:
        run.spec.said.add("not kept")
        library_logger().warning(
            "the result of %s %r is not kept (said once): %s", run.spec.kind.value, run.spec.name, error
        )
