"""After the final state: the disk, the hooks, and whoever waits for the outcome."""

from __future__ import annotations

from types import TracebackType

from asyncflow._cancellation import end_tree
from asyncflow._engine.caching import keep
from asyncflow._engine.hooks import run_hooks
from asyncflow._run import Run
from asyncflow._unseen import keep_if_failed, warn_of_unseen
from asyncflow.exceptions import (
    AsyncflowError,
    DurabilityError,
    RunCancelledError,
)
from asyncflow.states import StateType, exception_for

__all__ = ["conclude", "follow_up"]

_ENGINE = __file__.removesuffix("aftermath.py")
_TEARING = (StateType.CANCELLED, StateType.CRASHED)


async def follow_up(run: Run) -> None:
    """What follows the final state: the disk, then the hooks."""
    if run.unseen is not None:
        warn_of_unseen(run)
    services, host, type_ = run.services, run.host, run.status.type
    if run.is_answered:
        return  # all this was in its first life
    if isinstance(run.error, GeneratorExit):
        return  # the coroutine is being closed: it must not wait for anything
    settings = services.settings
    held_back: BaseException | None = None
    if run.spec.options.is_cached:
        held_back = await keep(run)
    if run.parent is None or run.is_durable:
        on_disk, problem, late = await host.confirm(services.store, settings.durability_seconds)
        held_back = late or held_back
        if not on_disk and (run.error is None or isinstance(run.error, Exception)):
            run.error = _not_durable(run, problem, run.error)
    if type_ is not None and run.spec.options.hooks_for(type_):
        if type_ in _TEARING:
            # The run's own task is being torn down: its hooks still get their time.
            held_back = await host.protect(lambda: run_hooks(run, type_), settings.hook_seconds) or held_back
        else:
            await run_hooks(run, type_)
    if held_back is not None and (run.error is None or isinstance(run.error, Exception)):
        raise held_back


def _not_durable(run: Run, problem: Exception | None, cause: BaseException | None) -> AsyncflowError:
    seconds = run.services.settings.durability_seconds
    problem = problem or run.services.store.last_error
    error = DurabilityError(
        run.display_name, run.state(), problem or f"no word from the disk within {seconds:g} seconds"
    )
    error.__cause__ = cause
    return error


def conclude(run: Run) -> None:
    """A submitted run has ended: its outcome can be had."""
    error = run.error
    run.arguments = {}
    if error is not None and run.host.is_cancellation(error):
        # Nobody who waits for it was cancelled, and its traceback would keep the body's frames alive.
        state = run.bare_state()
        # One that has completed was cancelled while its record was waited for.
        run.error = RunCancelledError("cancelled", state) if state.is_completed() else exception_for(state)
    elif isinstance(error, KeyboardInterrupt | SystemExit):
        run.look()  # its outermost run's caller gets it
        end_tree(run, "{run} raised {error}", error)
    elif error is not None:
        run.error = error.with_traceback(_of_the_body(error.__traceback__))
    keep_if_failed(run)


def _of_the_body(traceback: TracebackType | None) -> TracebackType | None:
    """Without the engine's own frames at its beginning: they hold the run, and the run holds the exception."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_ENGINE):
        traceback = traceback.tb_next
    return traceback
