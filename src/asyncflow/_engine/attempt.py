"""One attempt: run the body once, then see to it that nothing it started is left.

The wait for the children lies inside the attempt's scope, so that a cancellation and the deadline
still reach it. What is left when a body failed is cancelled, together with the backend's task that
hosts it (a broken `asyncio.gather` leaves such ones), and waited for until the grace time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from asyncflow._backend.inline import InlineCancelled
from asyncflow._cancellation import bury, condemn, watch_deadline
from asyncflow._causes import Cause
from asyncflow._engine.bodies import GENERATORS, consumed, elsewhere
from asyncflow._engine.endings import Carried, ending_of_raised, ending_of_scope, resting_name
from asyncflow._engine.inputs import states_of_futures
from asyncflow._engine.reaching import needs_scope
from asyncflow._outcomes import blocked
from asyncflow._rules import Ending, ending_of_value
from asyncflow._run import Run
from asyncflow._specs import Colour
from asyncflow.context import current_run
from asyncflow.error_records import error_summary
from asyncflow.exceptions import RunCancelledError
from asyncflow.placeholders import Placeholder

__all__ = ["attempt", "clear_up"]

_GRACE_UNTIL = "_asyncflow_grace_until"

_NET = 2.0
"""How many grace times a body's end waits at most for what it started: nothing should, after one."""


async def attempt(run: Run) -> Ending:
    """Run the body once. Never raises: whatever happened is the ending."""
    seconds = run.spec.options.timeout_seconds
    host = run.host
    token = current_run.set(run)
    attached: Any = None
    try:
        if run.spans is not None:
            attached = run.spans.enter(run)
        if seconds is None and not needs_scope(run):
            return ending_of_value(await _body_and_children(run))
        value: Any = None
        with host.scope(seconds) as scope:
            run.scope = scope
            if seconds is not None and run.spec.is_async and not host.is_inline:
                watch_deadline(run, seconds)
            value = await _body_and_children(run)
        return ending_of_scope(run, scope) if scope.caught else ending_of_value(value)
    except BaseException as error:  # noqa: BLE001  # given to the caller as it is
        return ending_of_raised(run, error)
    finally:
        run.scope = None
        if run.timers is not None and run.cause is None:
            run.stop_timers()
        try:
            current_run.reset(token)
        except ValueError:  # a coroutine that is closed or collected may end in another context
            pass
        else:
            if attached is not None and run.spans is not None:
                run.spans.leave(attached)


async def _body_and_children(run: Run) -> Any:
    spec = run.spec
    try:
        # Called from here and not from a function: frames count where a hundred runs are nested.
        if run.stream is None and spec.colour is Colour.ASYNC:
            value = await spec.binder.call(spec.fn, run.arguments)
        elif run.stream is None and run.host.is_inline:
            if spec.binder.is_positional:
                value = spec.fn(*run.arguments.values())
            else:
                value = spec.binder.call(spec.fn, run.arguments)
        else:
            value = await elsewhere(run)
        if type(value) in GENERATORS:
            value = await consumed(run, value)
        run.closing = True
        if run.places is not None:
            run.leave_places()
        if run.children or run.companions:
            await _join(run)
        return await states_of_futures(run, value) if Placeholder.exist else value
    except BaseException as error:
        run.closing = True
        run.leave_places()
        if not run.is_alone:
            await _tear_down(run, error)
        if isinstance(error, StopIteration):
            raise Carried(error) from None
        raise


async def _join(run: Run) -> None:
    """Wait for the open children of a body that returned."""
    _stop_companions(run)
    for child in list(run.children or ()):
        if child.stream is not None:  # one that is still open is closed, not waited for
            child.stream.stop()
    _end_abandoned(run)
    signal = run.drained = run.host.signal()
    if not run.is_alone:  # the last one may have left before it could see the signal
        await blocked(run.host, run, signal)


async def _tear_down(run: Run, error: BaseException) -> None:
    """Cancel and wait for what a body that raised has left."""
    _stop_companions(run)
    if isinstance(error, GeneratorExit):
        # The coroutine is being closed: it must not wait. (A body that raises one itself looks the same.)
        _condemn_children(run, error)
        return
    _end_abandoned(run)
    signal = run.drained = run.host.signal()
    _condemn_children(run, error)
    if run.is_alone:
        return
    held_back = await run.host.settle(signal, run.services.settings.grace_seconds * _NET)
    for lost in list(run.children or ()):  # of a host that is gone, with its timers
        bury(lost, "its event loop ended before it did")
    if held_back is not None and not run.host.is_cancellation(error):
        raise held_back from error  # the caller was cancelled meanwhile: that wins


async def clear_up(run: Run, ending: Ending) -> Ending:
    """Cancel and wait for what a hook has submitted in whose course the run was stopped."""
    run.closing = True
    try:
        await _tear_down(run, ending.error or RunCancelledError(ending.message or "cancelled"))
    except BaseException as error:  # noqa: BLE001  # the caller was cancelled meanwhile
        return ending_of_raised(run, error)
    return ending


def _condemn_children(run: Run, error: BaseException) -> None:
    children = list(run.children or ())
    if children:
        cause = _reason_of(run, error)
        condemn(run, children, cause)
        with suppress(AttributeError):
            setattr(error, _GRACE_UNTIL, cause.until)


def _reason_of(run: Run, error: BaseException) -> Cause:
    """Why the children of a body that raised are cancelled.

    A cancellation from outside passes through each run in its way with the same exception, and all
    of them share the grace time that began with the first: the exception carries its end.
    """
    if run.cause is not None:
        return run.cause
    is_cancelled = run.host.is_cancellation(error) or isinstance(error, InlineCancelled)  # the latter in a thread
    if is_cancelled and (name := resting_name(run)) is not None:
        what = f"{name.lower()} because its {run.spec.kind.value} run {run.display_name!r} was {name.lower()}"
        return Cause(what, until=getattr(error, _GRACE_UNTIL, None), rests_as=name)
    how = "was cancelled" if is_cancelled else f"failed with {error_summary(error)}"
    if run.scope is not None and run.scope.expired:
        how = f"exceeded its timeout of {run.spec.options.timeout_seconds:g} seconds"
    cause = Cause(f"cancelled because its {run.spec.kind.value} run {run.display_name!r} {how}")
    if run.host.is_cancellation(error):
        cause.until = getattr(error, _GRACE_UNTIL, None)
    return cause


def _stop_companions(run: Run) -> None:
    for companion in list(run.companions or ()):
        companion.stop()


def _end_abandoned(run: Run) -> None:
    """End the open children whose host is the very task that looks: their frames are gone, or nobody drives them."""
    here = run.host.current_task()
    for child in list(run.children or ()):
        if child.task is here and child.stream is None:
            bury(child, "it was abandoned before it ended")
