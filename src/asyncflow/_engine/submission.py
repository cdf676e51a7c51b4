"""Submitting: starting a run in a task of its own, on its parent's loop, from wherever that is asked for."""

from __future__ import annotations

from contextvars import Context, copy_context
from functools import partial
from typing import Any

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._backend.portal import on_portal
from asyncflow._cancellation import bury, outermost_of
from asyncflow._engine.calls import PLAIN, CallKeywords, Home, apply_keywords, limit_by_tags, make_outermost, tags_for
from asyncflow._engine.checkpoints import check_call
from asyncflow._engine.endings import finish
from asyncflow._engine.execution import execute
from asyncflow._engine.inputs import may_hold_futures
from asyncflow._engine.preparation import join_parent
from asyncflow._limiter import Limiter
from asyncflow._places import Places
from asyncflow._recorded import ENDING
from asyncflow._rules import Ending
from asyncflow._run import Run
from asyncflow._specs import Spec
from asyncflow.context import current_run
from asyncflow.exceptions import NoRuntimeError, RunCancelledError
from asyncflow.futures import FlowRunFuture, RunFuture, TaskFuture
from asyncflow.states import StateType

__all__ = ["begin_hosted", "submit"]

_MICRO = 1_000_000


def submit(
    home: Home, owner: object, spec: Spec, arguments: dict[str, Any], keywords: CallKeywords = PLAIN
) -> RunFuture[Any]:
    """Start a run as a child of the current one, or of the open runtime; gives its future at once."""
    parent = current_run.get()
    if parent is None:
        run = _outermost(home, owner, spec, arguments)
    else:
        check_call(parent)  # as each call of ours does
        run = _child(parent, owner, spec, arguments)
    if keywords is not PLAIN:
        apply_keywords(run, keywords)
    run.is_hosted = True
    run.created = run.latest = int(run.services.clock.now() * _MICRO)
    join_parent(run)
    if run.limiters is not None and not may_hold_futures(run):
        run.places = Places(run.limiters)
        run.places.line_up()
    future: RunFuture[Any] = (FlowRunFuture if spec.is_flow else TaskFuture)(run)
    begin_hosted(run, copy_context())
    return future


def begin_hosted(run: Run, context: Context) -> None:
    """Have a run that is linked begin in a task of its own, on its host or, where that is no loop, on the process's."""
    if run.host.is_inline:
        on_portal(partial(_begin_on_portal, run, context))
    elif run.host.here():
        _begin(run, context)
    else:
        run.host.post(partial(_begin, run, context))


def _outermost(home: Home, owner: object, spec: Spec, arguments: dict[str, Any]) -> Run:
    services = home.explicit()
    if services is None:
        raise NoRuntimeError(getattr(spec.fn, "__name__", spec.name))
    return make_outermost(services, owner, spec, arguments)


def _child(parent: Run, owner: object, spec: Spec, arguments: dict[str, Any]) -> Run:
    host, services = _loop_above(parent), parent.services
    if host.is_dead():
        bury(outermost_of(parent), "its event loop was closed before it ended")
    run = Run(spec, arguments, parent=parent, host=host, services=services, owner=owner, tags=tags_for(spec))
    if services.tag_limits:
        limit_by_tags(run)
    workers = _workers_of(parent)
    if workers is not None:
        # Last, so that a place among the workers is not held while the others are waited for.
        run.limiters = (*(run.limiters or ()), workers)
    return run


def _loop_above(run: Run) -> Host:
    """The host of the nearest run on a loop; without one, a thread's, and the process's own loop is to be used."""
    above: Run | None = run
    while above is not None:
        if not above.host.is_inline:
            return above.host
        above = above.parent
    return run.host


def _workers_of(run: Run) -> Limiter | None:
    """The places of the task runner of the flow run that `run` belongs to; None where they are not bounded."""
    above: Run | None = run
    while above is not None and not above.spec.is_flow:
        above = above.parent
    if above is None or (runner := above.spec.options.task_runner) is None or runner.max_workers is None:
        return None
    with ENDING:  # two threads may submit its first
        above.workers = above.workers or Limiter(runner.max_workers)
    return above.workers


def _begin_on_portal(run: Run, context: Context) -> None:
    run.host = host_here(run.services.clock)
    _begin(run, context)


def _begin(run: Run, context: Context) -> None:
    run.host.spawn(partial(execute, run), context, partial(_lost, run))


def _lost(run: Run) -> None:
    """Its loop was taken down before it could begin."""
    if not run.is_settled:
        message = "cancelled because its event loop was taken down before it began"
        finish(run, Ending(type=StateType.CANCELLED, message=message, error=RunCancelledError(message)))
        run.leave_places()
        run.settle()
        run.unlink()
