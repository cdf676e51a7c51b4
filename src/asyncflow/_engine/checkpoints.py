"""Checkpoints: how a sync body learns that it is to stop, because Python cannot stop a thread."""

from __future__ import annotations

from asyncflow._backend.inline import InlineCancelled
from asyncflow._cancellation import must_stop
from asyncflow._run import Run
from asyncflow._specs import Colour
from asyncflow.context import current_run

__all__ = ["check_call", "checkpoint"]


def checkpoint() -> None:
    """Stop here if the run, or any run above it, was cancelled or is past its deadline.

    For sync bodies: call it now and then in a long loop. It raises what the thread's own host
    raises for a cancellation, a `BaseException`, so that `finally` blocks run and `except
    Exception` does not hold it. Where nothing is to stop, and outside of runs, it does nothing.
    """
    run = current_run.get()
    check_deadlines(run)
    if run is not None and must_stop(run):
        run.is_stopped = True
        raise InlineCancelled


def check_call(parent: Run) -> None:
    """Raise where the body that calls something of ours is to stop: at a deadline; and at a cancellation, once.

    Once, because its `finally` may call tasks as well.
    """
    check_deadlines(parent)
    if parent.spec.colour is Colour.SYNC and not parent.is_stopped and must_stop(parent):
        parent.is_stopped = True
        raise InlineCancelled


def check_deadlines(run: Run | None) -> None:
    """Raise where a deadline of this thread's runs has passed: no loop is there to tell them."""
    while run is not None and run.host.is_inline and run.host.here():
        if run.scope is not None:
            run.scope.check()
        run = run.parent
