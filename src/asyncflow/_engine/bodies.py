"""Bodies that are not simply called: in worker threads, generators, what they return to be consumed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from asyncflow._cancellation import condemn
from asyncflow._causes import Cause
from asyncflow._engine.endings import Carried
from asyncflow._engine.items import record_items
from asyncflow._run import Run
from asyncflow._specs import Colour
from asyncflow.states import StateType

__all__ = ["GENERATORS", "consumed", "elsewhere"]

GENERATORS = frozenset({GeneratorType, AsyncGeneratorType})


async def elsewhere(run: Run) -> Any:
    """Run a body that is not simply called where its engine is: a generator's, or a sync one below a loop."""
    if run.stream is not None:
        return await run.stream.produce(run)
    return await (record_items(run) if run.spec.keeps_items else _in_thread(run))


async def consumed(run: Run, items: Any) -> Any:
    """The items of a generator that a body returned, as a list: it could not be a result otherwise."""
    if isinstance(items, AsyncGeneratorType):
        return await run.host.run_async(partial(_collect, items))
    return _consumed(items)


async def _in_thread(run: Run) -> Any:
    services, spec, arguments = run.services, run.spec, run.arguments

    def call() -> Any:
        return _consumed(spec.binder.call(spec.fn, arguments))

    def cancelling() -> None:
        if not run.is_over:
            run.enter(StateType.CANCELLING, services.clock.now(), message="until its thread ends")
            wake_threads(run)
            # Now and not when the thread has ended: a checkpoint below it stops from here on, and who called
            # that must not take it for a failure.
            if children := list(run.children or ()):
                what = f"{spec.kind.value} run {run.display_name!r}"
                condemn(run, children, run.cause or Cause(f"cancelled because its {what} was cancelled"))

    def abandon() -> None:
        run.is_abandoned = True

    job = await run.host.call_sync(
        call, services.threads, services.settings.grace_seconds, cancelling, abandon, at_once=_is_waited_for(run)
    )
    if job.error is not None:
        try:
            raise Carried(job.error) if isinstance(job.error, StopIteration) else job.error
        finally:
            job.error = None  # its traceback holds this frame
    return job.value


def _is_waited_for(run: Run) -> bool:
    """Whether a thread of ours waits for this body, in the slot that it would need: `from_thread.run(task.acall)`."""
    parent = run.parent
    if run.is_hosted or parent is None:
        return False
    return parent.spec.colour is Colour.SYNC and not parent.host.is_inline


def wake_threads(run: Run) -> None:
    """Wake the threads that wait for something in this run or below it, to look whether they are to stop."""
    run.wake_threads()
    for child in list(run.children or ()):
        wake_threads(child)


def _consumed(value: Any) -> Any:
    # Also in the thread that made it: its code is not to run on the loop.
    items: Iterable[Any] = value
    return list(items) if isinstance(value, GeneratorType) else value


async def _collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]
