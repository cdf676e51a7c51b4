"""Calls: opening a run where it was called, and handing its outcome to the caller."""

from __future__ import annotations

from typing import Any, Protocol, cast

from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import drive
from asyncflow._engine.checkpoints import check_deadlines
from asyncflow._engine.execution import execute
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow._specs import Spec
from asyncflow.clock import SystemClock
from asyncflow.context import current_run, current_tags
from asyncflow.exceptions import DurabilityError, SyncCallOnEventLoopError
from asyncflow.states import ABSENT, State

__all__ = ["Home", "call_async", "call_sync", "deliver", "open_run"]

_CLOCK = SystemClock()


class Home(Protocol):
    """Where outermost runs get their services from; the composition layer's `Runtime` machinery."""

    def in_force(self) -> Services | None:
        """The services of the open runtime, or None when none is open yet."""
        ...

    def open_default(self) -> Services:
        """Open the process's default runtime. Blocks."""
        ...


async def call_async(home: Home, owner: object, spec: Spec, arguments: dict[str, Any], return_state: bool) -> Any:
    """A call that is awaited: of an async function, or of `acall` for either colour."""
    before = current_run.get()
    try:
        if before is None:
            run = await _outermost(home, owner, spec, arguments)
        else:
            run = _child(before, owner, spec, arguments)
        await execute(run)
        return deliver(run, return_state)
    except BaseException:
        current_run.set(before)  # a Ctrl-C inside the engine may have kept it from being reset
        raise


def call_sync(home: Home, owner: object, spec: Spec, arguments: dict[str, Any], return_state: bool) -> Any:
    """A plain call of a sync function, on its caller's own thread."""
    refuse_on_loop(spec)
    before = current_run.get()
    try:
        return deliver(drive(_run_to_end(home, before, owner, spec, arguments)), return_state)
    except BaseException:
        current_run.set(before)  # as above: else each later call on this thread would belong to a dead run
        raise


def refuse_on_loop(spec: Spec) -> None:
    """Raise where a sync body would block a running event loop."""
    if loop_is_running_here():
        raise SyncCallOnEventLoopError(spec.kind.value, getattr(spec.fn, "__name__", spec.name))


async def _run_to_end(home: Home, parent: Run | None, owner: object, spec: Spec, arguments: dict[str, Any]) -> Run:
    run = await open_run(home, owner, spec, arguments, parent)
    await execute(run)
    return run


async def open_run(home: Home, owner: object, spec: Spec, arguments: dict[str, Any], parent: Run | None = None) -> Run:
    """A run: child of `parent` or of the current run, or an outermost one."""
    parent = parent or current_run.get()
    if parent is None:
        return await _outermost(home, owner, spec, arguments)
    return _child(parent, owner, spec, arguments)


async def _outermost(home: Home, owner: object, spec: Spec, arguments: dict[str, Any]) -> Run:
    services = home.in_force()
    if services is None:
        services = await host_here(_CLOCK).run_blocking(home.open_default)
    host = host_here(services.clock)
    return Run(spec, arguments, parent=None, host=host, services=services, owner=owner, tags=_tags(spec))


def _child(parent: Run, owner: object, spec: Spec, arguments: dict[str, Any]) -> Run:
    check_deadlines(parent)  # a call of ours is one of the places where a sync body can be stopped
    services, host = parent.services, parent.host
    if not host.here():
        host = host_here(services.clock)
    return Run(spec, arguments, parent=parent, host=host, services=services, owner=owner, tags=_tags(spec))


def _tags(spec: Spec) -> frozenset[str]:
    around = current_tags.get()
    return around | spec.options.tags if around else spec.options.tags


def deliver(run: Run, return_state: bool) -> Any:
    """The value, the exception or the state, for the caller; the run keeps none of them."""
    error = run.error
    passes = error is not None and _always_passes(run, error)
    state: State[Any] | None = run.state() if return_state and not passes else None
    value, run.value, run.error, run.arguments = run.value, ABSENT, None, {}
    try:
        if state is not None:
            return state
        if error is not None:
            raise error
        return value
    finally:
        # An exception holds the frames it went through, and this one would hold the exception.
        del error, state, value


def _always_passes(run: Run, error: BaseException) -> bool:
    """The caller's own cancellation, what ends the program and a record in doubt are raised whatever was asked for."""
    if isinstance(error, Exception):
        return isinstance(error, DurabilityError) and getattr(error.state, "id", None) == run.state().id
    if isinstance(error, BaseExceptionGroup):  # a task group or nursery wraps what ends the program
        group = cast("BaseExceptionGroup[BaseException]", error)
        return run.host.is_cancellation(group) or group.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return run.host.is_cancellation(error) or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
