"""The life of one run: begin, attempts until the rules say stop, a final state, and what follows it."""

from __future__ import annotations

from functools import partial
from typing import Any

from asyncflow._engine.attempt import attempt, reachably
from asyncflow._engine.endings import crash, ending_of_cause, ending_of_raised, finish
from asyncflow._engine.hooks import allows_retry, name_of_run, run_hooks
from asyncflow._names import slug
from asyncflow._rules import Ending, ending_of_error
from asyncflow._run import Run
from asyncflow.exceptions import AsyncflowError, DurabilityError, RunEndedError
from asyncflow.parameters import encode_parameters
from asyncflow.retries import delay_after
from asyncflow.states import State, StateType

__all__ = ["execute"]

_TEARING = (StateType.CANCELLED, StateType.CRASHED)


async def execute(run: Run) -> None:
    """Take a run from its call to its record.

    When this returns, the run is final, `run.value` or `run.error` is what its caller gets, and
    an outermost run is on disk. What it raises is not the body's: a cancellation or Ctrl-C that
    came while the record was waited for, `DurabilityError`, or `RunEndedError` before the begin.
    """
    host, store = run.host, run.services.store
    if host.wants_to_relax():
        await host.relax(store, run.services.settings.queue_limit)
    run.task = host.current_task()
    try:
        if not run.link():
            raise RunEndedError(run.spec.name, run.parent.display_name if run.parent else "")
        try:
            try:
                ending = await _attempts(run)
            except BaseException as error:  # noqa: BLE001  # in a hook or between attempts; or Ctrl-C in the engine
                ending = ending_of_raised(run, error)
            finish(run, ending)
            del ending  # as in `_attempts`
        finally:
            # Does something only when the lines above were torn apart themselves.
            crash(run, "the engine was interrupted")
            if run.parent is None or run.spec.has_aftermath:
                await _after(run)
    finally:
        run.unlink()


async def _attempts(run: Run) -> Ending:
    services, options = run.services, run.spec.options
    if run.spec.model is not None or options.run_name is not None:
        run.enter(StateType.PENDING, services.clock.now())
        try:
            await _prepare(run)
        except Exception as error:  # noqa: BLE001  # the caller gets it; the run is Failed, and never was Running
            return ending_of_error(error)
    run.begin(services.clock.now())
    while True:
        if options.on_running and (stopped := await reachably(run, partial(run_hooks, run, StateType.RUNNING))):
            return stopped
        if run.cause is not None:  # a stream that was closed before there was a scope to cancel
            return ending_of_cause(run.cause)
        ending = await attempt(run)
        try:
            if ending.type is not StateType.FAILED or run.run_count > options.retries or run.cause is not None:
                return ending
            if not await allows_retry(run, _state_of(run, ending)):
                return ending._replace(facts={"retriable": False})
            delay = _delay(run)
            now = services.clock.now()
            run.enter(StateType.SCHEDULED, now, name="AwaitingRetry", message=ending.message, facts=_until(now + delay))
        finally:
            # The exception in it holds the attempt's frames and through them this one: a cycle.
            del ending
        if stopped := await reachably(run, partial(run.host.sleep, delay)):
            return stopped
        run.closing = False
        run.run_count += 1
        run.enter(StateType.RUNNING, services.clock.now(), name="Retrying")


def _delay(run: Run) -> float:
    import random  # only runs that are retried need it

    options = run.spec.options
    return delay_after(run.run_count, options.retry_delay_seconds, options.retry_jitter_factor, random.random)


def _until(moment: float) -> dict[str, Any]:
    return {"scheduled_time": int(moment * 1_000_000)}


async def _prepare(run: Run) -> None:
    """Check the parameters and give the run its name; whatever this raises fails the run."""
    spec = run.spec
    if spec.model is not None:
        run.name = slug(run.id)
        limit = run.services.settings.parameters_limit
        try:
            if spec.options.validate_parameters:
                if spec.model.needs_loading(run.arguments):  # that takes longer than a loop should be held
                    await run.host.run_blocking(spec.model.load)
                run.arguments = spec.model.validate(dict(run.arguments))
        finally:  # also what was refused is on record
            run.parameters_json = encode_parameters(run.arguments, flow=spec.name, limit=limit)
    if spec.options.run_name is not None:
        run.name = name_of_run(run) or run.name  # an empty one is none


def _state_of(run: Run, ending: Ending) -> State[object]:
    return State(
        type=ending.type, name=ending.name or "", message=ending.message, data=ending.error, state_details=run.details()
    )


async def _after(run: Run) -> None:
    """What follows the final state: the disk, then the hooks."""
    services, host, type_ = run.services, run.host, run.status.type
    if isinstance(run.error, GeneratorExit):
        return  # the coroutine is being closed: it must not wait for anything
    settings = services.settings
    held_back: BaseException | None = None
    if run.parent is None or run.spec.options.durability == "task":
        on_disk, problem, held_back = await host.confirm(services.store, settings.durability_seconds)
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
