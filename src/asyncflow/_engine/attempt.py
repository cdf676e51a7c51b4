"""One attempt: run the body once, then see to it that nothing it started is left.

The wait for the children lies inside the attempt's scope, so that a cancellation and the deadline
still reach it. What is left when a body failed is cancelled, together with the backend's task that
hosts it (a broken `asyncio.gather` leaves such ones), and waited for until the grace time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from asyncflow._engine.endings import crash, ending_of_cause, ending_of_raised, ending_of_scope
from asyncflow._rules import Ending, ending_of_value
from asyncflow._run import Cause, Run
from asyncflow._specs import Colour
from asyncflow.context import current_run
from asyncflow.error_records import error_summary
from asyncflow.states import StateType

__all__ = ["attempt", "reachably"]

_LAST_CALL = 0.9
"""The part of the grace time after which a child that somebody else had cancelled already is told by us too."""


async def attempt(run: Run) -> Ending:
    """Run the body once. Never raises: whatever happened is the ending."""
    seconds = run.spec.options.timeout_seconds
    host = run.host
    token = current_run.set(run)
    try:
        if seconds is None and not _needs_scope(run):
            return ending_of_value(await _body_and_children(run))
        value: Any = None
        with host.scope(seconds) as scope:
            run.scope = scope
            value = await _body_and_children(run)
        return ending_of_scope(run, scope) if scope.caught else ending_of_value(value)
    except BaseException as error:  # noqa: BLE001  # given to the caller as it is
        return ending_of_raised(run, error)
    finally:
        run.scope = None
        try:  # noqa: SIM105  # `suppress` would cost each run more than all else here
            current_run.reset(token)
        except ValueError:  # a coroutine that is closed or collected may end in another context
            pass


async def reachably(run: Run, wait: Callable[[], Awaitable[None]]) -> Ending | None:
    """Await something beside the attempts: a hook, a delay. Gives an ending when the tree cancelled it meanwhile."""
    if run.cause is None:
        if _needs_scope(run):
            with run.host.scope(None) as scope:
                run.scope = scope
                try:
                    await wait()
                finally:
                    run.scope = None
        else:
            await wait()
    return None if run.cause is None else ending_of_cause(run.cause)


def _needs_scope(run: Run) -> bool:
    """Whether somebody other than its own task must be able to cancel this run without a deadline."""
    parent = run.parent
    return run.stream is not None or (parent is not None and run.host.needs_scope(parent.task, run.task))


async def _body_and_children(run: Run) -> Any:
    try:
        value = await _body(run)
        run.closing = True
        if run.children:
            await _join(run)
        return value
    except GeneratorExit as error:
        run.closing = True
        _tell(run, error)
        raise  # the coroutine is being closed: it must not wait for anything
    except BaseException as error:
        run.closing = True
        if run.children:
            held_back = await _drain(run, error)
            if held_back is not None and not run.host.is_cancellation(error):
                raise held_back from error  # the caller was cancelled meanwhile: that wins
        raise


async def _body(run: Run) -> Any:
    spec = run.spec
    if run.stream is not None:
        return await run.stream.produce(run)
    if spec.colour is Colour.ASYNC:
        value = await spec.binder.call(spec.fn, run.arguments)
    elif run.host.is_inline:
        value = spec.binder.call(spec.fn, run.arguments)
    else:
        value = await _body_in_thread(run)
    if isinstance(value, AsyncGeneratorType):
        return await run.host.run_async(partial(_collect, value))
    return _consumed(value)


async def _body_in_thread(run: Run) -> Any:
    services, spec, arguments = run.services, run.spec, run.arguments

    def call() -> Any:
        return _consumed(spec.binder.call(spec.fn, arguments))

    def cancelling() -> None:
        if not run.is_final:
            run.enter(StateType.CANCELLING, services.clock.now(), message="until its thread ends")

    job = await run.host.call_sync(call, services.threads, services.settings.grace_seconds, cancelling)
    if job.error is not None:
        try:
            raise job.error
        finally:
            job.error = None  # its traceback holds this frame
    return job.value


def _consumed(value: Any) -> Any:
    """The items of a returned generator: it could not be a result otherwise."""
    items: Iterable[Any] = value
    return list(items) if isinstance(value, GeneratorType) else value


async def _collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def _join(run: Run) -> None:
    """Wait for the open children of a body that returned."""
    _stop_streams(run)
    _bury(run)
    signal = run.drained = run.host.signal()
    if run.children:  # the last one may have left before it could see the signal
        await signal.wait()


async def _drain(run: Run, error: BaseException) -> BaseException | None:
    """Cancel and wait for the open children of a body that raised; gives what was held back meanwhile."""
    _bury(run)
    signal = run.drained = run.host.signal()
    reason = _tell(run, error)
    if not run.children:
        return None
    grace = run.services.settings.grace_seconds
    held_back = await run.host.settle(signal, grace * _LAST_CALL)
    if run.children:
        _tell(run, error, again=True)
        held_back = await run.host.settle(signal, grace * (1 - _LAST_CALL)) or held_back
    for deaf in list(run.children):
        crash(deaf, f"ignored cancellation for {grace:g} seconds ({reason.message})")
        deaf.unlink()
    return held_back


def _tell(run: Run, error: BaseException, *, again: bool = False) -> Cause:
    """Mark everything open below a run whose body raised, then deliver; gives the reason."""
    reason = run.cause or Cause(_reason_of(run, error))
    children = list(run.children or ())
    for child in children:
        child.mark(reason)
    for child in children:
        child.host.post(partial(_deliver, child, again)) if not child.host.here() else _deliver(child, again)
    return reason


def _bury(run: Run) -> None:
    """End the open children whose host is the very task that looks: their frames are gone, or nobody drives them."""
    here = run.host.current_task()
    for child in list(run.children or ()):
        if child.task is here and child.stream is None:
            crash(child, "it was abandoned before it ended")
            child.unlink()


def _reason_of(run: Run, error: BaseException) -> str:
    how = "was cancelled" if run.host.is_cancellation(error) else f"failed with {error_summary(error)}"
    return f"cancelled because its {run.spec.kind.value} run {run.display_name!r} {how}"


def _deliver(child: Run, again: bool) -> None:
    """Cancel an open child, on its own host."""
    if child.is_final:
        return
    if child.stream is not None:
        child.stream.stop()
    elif not child.host.cancel_task(child.task, again=again) and child.scope is not None:
        child.scope.cancel()


def _stop_streams(run: Run) -> None:
    """A stream still open when the body that holds it ends is closed, not waited for."""
    for child in list(run.children or ()):
        if child.stream is not None:
            child.stream.stop()
