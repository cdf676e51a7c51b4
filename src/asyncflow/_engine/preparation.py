"""Before a body begins: its depth, the futures in its arguments, its parameters, its name, its places."""

from __future__ import annotations

from functools import partial

from asyncflow._engine.endings import ending_of_cause
from asyncflow._engine.hooks import name_of_run
from asyncflow._engine.inputs import may_hold_futures, resolve_inputs
from asyncflow._engine.reaching import reachably
from asyncflow._names import slug
from asyncflow._places import Places
from asyncflow._rules import Ending, ending_of_error
from asyncflow._run import Run
from asyncflow.exceptions import NestingTooDeepError
from asyncflow.parameters import encode_parameters
from asyncflow.states import StateType

__all__ = ["prepare", "take_places"]


async def prepare(run: Run) -> Ending | None:
    """Get a run ready to begin; gives an ending when it is not to."""
    limit = run.services.settings.nesting_limit
    try:
        if run.cause is not None:  # it was submitted, and cancelled before it began
            _enter_pending(run)
            return ending_of_cause(run)
        if run.depth > limit:
            raise NestingTooDeepError(run.display_name, limit)
        if may_hold_futures(run) and (stopped := await resolve_inputs(run)):
            return stopped
        if run.spec.is_prepared:
            _enter_pending(run)
            await _check_parameters(run)
    except Exception as error:  # noqa: BLE001  # the caller gets it; the run is Failed, and never was Running
        _enter_pending(run)
        return ending_of_error(error)
    return None


def _enter_pending(run: Run) -> None:
    if not run.status.seq:
        run.enter(StateType.PENDING, run.services.clock.now())


async def _check_parameters(run: Run) -> None:
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


async def take_places(run: Run) -> Ending | None:
    """Wait until each limit that the run is under has room for it; gives an ending when it was cancelled meanwhile."""
    assert run.limiters is not None
    places = run.places = Places(run.limiters)
    if places.take_at_once():
        return None
    if not run.run_count:
        _enter_pending(run)
    try:
        stopped = await reachably(run, partial(places.take, run.host))
    except BaseException:
        run.leave_places()
        raise
    if stopped:
        run.leave_places()
    return stopped
