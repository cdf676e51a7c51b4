"""Futures in arguments and return values: waited for without a place, and replaced by what they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from asyncflow._engine.reaching import reachably
from asyncflow._outcomes import wait_settled
from asyncflow._rules import Ending
from asyncflow._run import Run
from asyncflow.exceptions import UpstreamFailedError
from asyncflow.futures import FutureList, RunFuture
from asyncflow.placeholders import Awaited, Placeholder, futures_in, with_values
from asyncflow.states import StateType

__all__ = ["may_hold_futures", "resolve_inputs", "states_of_futures"]


_PLAIN = frozenset({int, str, float, bool, bytes, type(None)})


def may_hold_futures(run: Run) -> bool:
    """Whether a future could be in what it was given: a search costs microseconds, and most calls have scalars."""
    if run.wait_for is not None:
        return True
    return Placeholder.exist and not _PLAIN.issuperset(map(type, run.arguments.values()))


class _NotReady(Exception):
    def __init__(self, upstream: Run) -> None:
        self.upstream = upstream


async def resolve_inputs(run: Run) -> Ending | None:
    """Wait for the futures that the run was given and put their values in its arguments.

    Gives an ending when the run is not to begin: one of them did not complete, or the run was
    cancelled meanwhile. Raises `WaitCycleError` when one of them waits for this run.
    """
    given = (dict(run.arguments), run.wait_for)
    while upstream := [each for each in _runs_in(given) if not each.is_settled]:
        # Again, because a list that it was given may have got more of them meanwhile.
        if not run.status.seq and (run.parent is None or run.parent.past is None):
            # (Below a run that runs again it may turn out to be one that is recorded already.)
            run.enter(StateType.PENDING, run.services.clock.now())
        if stopped := await reachably(run, partial(_wait_for_all, run, upstream)):
            return stopped
    try:
        run.arguments, _ = with_values(given, _value_of)
    except _NotReady as not_ready:
        return _not_ready(run, not_ready.upstream)
    finally:
        run.wait_for = None
    return None


def _runs_in(value: Any) -> list[Run]:
    return [cast("RunFuture[Any]", each).run for each in futures_in(value)]


async def _wait_for_all(run: Run, upstream: Iterable[Run]) -> None:
    for each in upstream:
        await wait_settled(each, run.host, run)


def _value_of(future: Awaited, failure_is_allowed: bool) -> Any:
    run = cast("RunFuture[Any]", future).run
    run.look()
    if run.error is None:
        return run.value
    if not failure_is_allowed:
        raise _NotReady(run)
    return run.error


def _not_ready(run: Run, upstream: Run) -> Ending:
    if not run.status.seq:
        run.enter(StateType.PENDING, run.services.clock.now())
    error = UpstreamFailedError(run.display_name, upstream.display_name, upstream.bare_state())
    error.__cause__ = upstream.error
    message = f"upstream run {upstream.display_name!r} did not complete: {upstream.state()}"
    return Ending(type=StateType.FAILED, name="NotReady", message=message, error=error)


async def states_of_futures(run: Run, value: Any) -> Any:
    """What a body returned, with each future on top or in a list, tuple or set replaced by its run's state."""
    if isinstance(value, RunFuture):
        return await _state_of(run, value)
    if not isinstance(value, list | tuple | set):
        return value
    container: Any = cast("Any", value)
    if not any(isinstance(each, RunFuture) for each in container):
        return container
    replaced = [await _state_of(run, each) if isinstance(each, RunFuture) else each for each in container]
    if isinstance(container, FutureList):
        return replaced
    make: Any = getattr(container, "_make", container.__class__)  # a named tuple takes its items one by one
    return make(replaced)


async def _state_of(run: Run, future: Any) -> Any:
    await wait_settled(future.run, run.host, run)
    return future.state
