"""Waiting outside of attempts in a way that the tree can still cancel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asyncflow._engine.endings import ending_of_cause
from asyncflow._rules import Ending
from asyncflow._run import Run

__all__ = ["needs_scope", "reachably"]


async def reachably(run: Run, wait: Callable[[], Awaitable[object]]) -> Ending | None:
    """Await something beside the attempts: a hook, a delay, a place. Gives an ending when the tree cancelled it."""
    if run.cause is None:
        if needs_scope(run):
            with run.host.scope(None) as scope:
                run.scope = scope
                try:
                    await wait()
                finally:
                    run.scope = None
        else:
            await wait()
    return None if run.cause is None else ending_of_cause(run)


def needs_scope(run: Run) -> bool:
    """Whether somebody other than its own task must be able to cancel this run without a deadline."""
    parent = run.parent
    return parent is None or run.stream is not None or run.host.needs_scope(parent.task, run.task)
