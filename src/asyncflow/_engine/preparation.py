"""Before a body begins: its depth, the futures in its arguments, its parameters, its name, its places."""

from __future__ import annotations

from functools import partial

from asyncflow._backend.base import Host, Signal
from asyncflow._engine.caching import from_cache
from asyncflow._engine.endings import ending_of_cause
from asyncflow._engine.hooks import name_of_run
from asyncflow._engine.identity import identify, needs_identity
from asyncflow._engine.inputs import may_hold_futures, resolve_inputs
from asyncflow._engine.reaching import reachably
from asyncflow._engine.recall import recall
from asyncflow._engine.records import keep_given, keep_parameters
from asyncflow._names import slug
from asyncflow._outcomes import blocked
from asyncflow._places import Places
from asyncflow._rules import Ending, ending_of_error
from asyncflow._run import Run
from asyncflow.exceptions import NestingTooDeepError, RunEndedError, RuntimeStoppingError
from asyncflow.states import StateType

__all__ = ["join_parent", "not_begun", "prepare", "take_places"]


def join_parent(run: Run) -> None:
    """Make a run one of its parent's open children, or of its runtime's.

    Raises `RunEndedError` or `RuntimeStoppingError` when that takes none any more.
    """
    if run.link():
        return
    if run.parent is None:
        raise RuntimeStoppingError(run.spec.name, run.services.settings.home)
    raise RunEndedError(run.spec.name, run.parent.display_name)


async def prepare(run: Run) -> Ending | None:
    """Get a run ready to begin; gives an ending when it is not to."""
    try:
        if run.cause is not None:
            return not_begun(run)
        _check_call(run)
        if run.services.held and (stopped := await _hold_back(run)):
            return stopped
        if may_hold_futures(run) and (stopped := await resolve_inputs(run)):
            return stopped
        if run.spec.is_prepared:
            if not _has_past(run):  # a run that is found in the records goes on under its old id
                _enter_pending(run)
            await _check_parameters(run)
        if needs_identity(run):  # also a run that is given a cached value is one that is to be found again
            identify(run)
        if run.is_special and (stopped := await recall(run)):
            return stopped
        if run.spec.options.is_cached:
            return await from_cache(run)
    except Exception as error:  # noqa: BLE001  # the caller gets it; the run is Failed, and never was Running
        _enter_pending(run)
        return ending_of_error(error)
    return None


async def _hold_back(run: Run) -> Ending | None:
    """Wait while the outermost run is paused; gives an ending when it was cancelled meanwhile."""
    if not _has_past(run):
        _enter_pending(run)
    while (gate := run.services.held.get(run.root_id)) is not None and not gate.is_open:
        signal = run.host.signal()
        gate.attend(signal.set)
        try:
            if stopped := await reachably(run, partial(_wait, run, run.host, signal, None)):
                return stopped
        finally:
            gate.desert(signal.set)
    return None


def _has_past(run: Run) -> bool:
    return run.parent is not None and run.parent.past is not None


def not_begun(run: Run) -> Ending:
    """The ending of a run that was submitted, and cancelled before it began."""
    ending = ending_of_cause(run)
    if run.origin is not None and ending.type is not StateType.PAUSED:
        run.parameters_json = None  # what it waited with may tell a secret; if it is to be begun again, it needs that
    keep_given(run)
    _enter_pending(run)
    return ending


def _check_call(run: Run) -> None:
    if run.error is not None:  # it was asked for elsewhere, and what it was given does not fit its flow
        raise run.error
    limit = run.services.settings.nesting_limit
    if run.depth > limit:
        raise NestingTooDeepError(run.display_name, limit)


def _enter_pending(run: Run) -> None:
    if not run.status.seq:
        run.enter(StateType.PENDING, run.services.clock.now())


async def _check_parameters(run: Run) -> None:
    """Check the parameters and give the run its name; whatever this raises fails the run."""
    spec = run.spec
    if spec.model is not None:
        run.name = run.name or slug(run.id)
        checked = False
        try:
            if spec.options.validate_parameters:
                if spec.model.needs_loading(run.arguments):  # that takes longer than a loop should be held
                    await run.host.run_blocking(spec.model.load)
                run.arguments = spec.model.validate(dict(run.arguments))
                checked = True
        finally:  # also what was refused is on record
            keep_parameters(run, checked=checked)
    if spec.options.run_name is not None and not _was_named(run):
        run.name = name_of_run(run) or run.name  # an empty one is none


def _was_named(run: Run) -> bool:
    """Whether whoever asked a deployment for the run gave it a name."""
    return run.origin is not None and run.name != slug(run.id)


async def take_places(run: Run) -> Ending | None:
    """Wait until each limit that the run is under has room for it; gives an ending when it was cancelled meanwhile."""
    assert run.limiters is not None
    places, run.places = run.places or Places(run.limiters), None
    if not places.take_at_once():
        if not run.run_count:
            _enter_pending(run)
        try:
            stopped = await reachably(run, partial(places.take, run.host, wait=partial(_wait, run)))
        except BaseException:
            places.leave()
            raise
        if stopped:
            places.leave()
            return stopped
    run.places = places
    return None


async def _wait(run: Run, host: Host, signal: Signal, seconds: float | None) -> None:
    # The bodies that called this run wait as well, so they step aside: nobody keeps a place while waiting for another.
    await blocked(host, None if run.is_hosted else run.parent, signal, seconds)
