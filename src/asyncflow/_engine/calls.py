"""Calls: opening a run where it was called, and handing its outcome to the caller."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import never_suspends
from asyncflow._engine.checkpoints import check_call
from asyncflow._engine.execution import execute
from asyncflow._limiter import Limiter
from asyncflow._run import BESIDE, Run, current_transaction
from asyncflow._services import Services
from asyncflow._specs import Spec
from asyncflow.clock import SystemClock
from asyncflow.context import current_run, current_tags
from asyncflow.exceptions import DurabilityError, SyncCallOnEventLoopError
from asyncflow.states import ABSENT, State

__all__ = [
    "PLAIN",
    "CallKeywords",
    "Home",
    "apply_keywords",
    "call_async",
    "call_sync",
    "deliver",
    "limit_by_tags",
    "make_outermost",
    "open_run",
    "restore_context",
    "tags_for",
]

_CLOCK = SystemClock()


class CallKeywords(NamedTuple):
    """What a call takes for itself, beside the function's arguments."""

    return_state: bool = False
    wait_for: Any = None
    run_key: str | None = None


PLAIN = CallKeywords()


class Home(Protocol):
    """Where outermost runs get their services from; the composition layer's `Runtime` machinery."""

    def in_force(self) -> Services | None:
        """The services of the open runtime, or None when none is open yet."""
        ...

    def explicit(self) -> Services | None:
        """The services of the runtime that was opened here by hand, or None."""
        ...

    def open_default(self) -> Services:
        """Open the process's default runtime. Blocks."""
        ...


async def call_async(
    home: Home, owner: object, spec: Spec, arguments: dict[str, Any], keywords: CallKeywords = PLAIN
) -> Any:
    """A call that is awaited: of an async function, or of `acall` for either colour."""
    before, run = current_run.get(), None
    try:
        if before is None:
            run = await _outermost(home, owner, spec, arguments)
        else:
            run = _child(before, owner, spec, arguments)
        if keywords is not PLAIN:
            apply_keywords(run, keywords)
        await execute(run)
        return deliver(run, keywords.return_state)
    except BaseException:
        restore_context(before, run)
        raise


def call_sync(home: Home, owner: object, spec: Spec, arguments: dict[str, Any], keywords: CallKeywords = PLAIN) -> Any:
    """A plain call of a sync function, on its caller's own thread."""
    refuse_on_loop(spec)
    before, run = current_run.get(), None
    try:
        # Few frames: a hundred runs nested in each other must fit into Python's thousand.
        if before is None:
            run = make_outermost(home.in_force() or home.open_default(), owner, spec, arguments)
        else:
            run = _child(before, owner, spec, arguments)
        if keywords is not PLAIN:
            apply_keywords(run, keywords)
        engine = execute(run)
        try:
            engine.send(None)
        except StopIteration:
            pass  # not from in here: what is raised next would be told as raised while this was handled
        else:
            never_suspends(engine)
        return deliver(run, keywords.return_state)
    except BaseException:
        restore_context(before, run)
        raise


def restore_context(before: Run | None, run: Run | None) -> None:
    """Make the caller's context what it was: a Ctrl-C inside the engine may have kept it from being reset.

    Else each later call on this thread would belong to a dead run, or be taken for one of a hook's.
    """
    current_run.set(before)
    if run is not None and not run.is_beside and current_transaction.get() is BESIDE:
        current_transaction.set(run.transaction)


def refuse_on_loop(spec: Spec) -> None:
    """Raise where a sync body would block a running event loop."""
    if loop_is_running_here():
        raise SyncCallOnEventLoopError(spec.kind.value, getattr(spec.fn, "__name__", spec.name))


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
    return make_outermost(services, owner, spec, arguments)


def make_outermost(services: Services, owner: object, spec: Spec, arguments: dict[str, Any]) -> Run:
    """A run that no other run is around, on this thread's host."""
    host = host_here(services.clock)
    run = Run(spec, arguments, parent=None, host=host, services=services, owner=owner, tags=tags_for(spec))
    if services.tag_limits:
        limit_by_tags(run)
    return run


def _child(parent: Run, owner: object, spec: Spec, arguments: dict[str, Any]) -> Run:
    check_call(parent)  # a call of ours is one of the places where a sync body can be stopped
    services, host = parent.services, parent.host
    if not host.here():
        host = host_here(services.clock)
    run = Run(spec, arguments, parent=parent, host=host, services=services, owner=owner, tags=tags_for(spec))
    if services.tag_limits:
        limit_by_tags(run)
    return run


def apply_keywords(run: Run, keywords: CallKeywords) -> None:
    """Have a run heed what its call said beside the function's arguments."""
    run.run_key = keywords.run_key
    if keywords.wait_for is not None:
        run.wait_for = keywords.wait_for
        run.is_special = True


def tags_for(spec: Spec) -> frozenset[str]:
    """The tags of a run that begins here."""
    around = current_tags.get()
    return around | spec.options.tags if around else spec.options.tags


def limit_by_tags(run: Run) -> None:
    """Have the body of a task run wait for a place of each of its tags that is limited."""
    limits = run.services.tag_limits
    if not run.tags or run.spec.is_flow:
        return
    # In the order of their names, so that two bodies never wait for each other's.
    limited = [limits[tag] for tag in sorted(run.tags) if tag in limits]
    held = _held_by_caller(run)
    run.limiters = [each for each in limited if each not in held] or None


def _held_by_caller(run: Run) -> set[Limiter]:
    """The limits whose places the body around has: a run that is called, not submitted, is in those."""
    held: set[Limiter] = set()
    above = run.parent
    while above is not None:
        held.update(above.limiters or ())
        if above.is_hosted:
            break
        above = above.parent
    return held


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
    if isinstance(error, BaseExceptionGroup):  # a task group or nursery wraps what ends the program, and cancellations
        return True
    return run.host.is_cancellation(error) or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
