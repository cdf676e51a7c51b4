"""Errors of runs: their states, waiting for them, stopping them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncflow.exceptions.base import AsyncflowError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CannotCancelNestedRunError",
    "CannotDeleteRunError",
    "CannotResumeError",
    "CrashedRunError",
    "FailedRunError",
    "IllegalTransitionError",
    "MissingParametersError",
    "NestingTooDeepError",
    "NoRuntimeError",
    "RunCancelledError",
    "RunElsewhereError",
    "RunEndedError",
    "RunInterruptedError",
    "RunSuspendedError",
    "StateNotFinalError",
    "UnfinishedRunError",
    "UpstreamFailedError",
    "WaitCycleError",
    "WaitTimeoutError",
]


class FailedRunError(StateError):
    """A run ended Failed and no exception of its own says why (a state made by hand)."""


class CrashedRunError(StateError):
    """A run ended Crashed and no exception of its own says why."""


class RunCancelledError(StateError):
    """A run was cancelled, but whoever waits for it was not.

    An ``Exception`` on purpose: on trio nobody can make a cancellation, and asyncio's task
    groups swallow one that nobody asked for.
    """


class RunInterruptedError(StateError):
    """The runtime stopped while the run went on. Nothing of it is lost: it can be resumed.

    Who waits for the run gets this; a run whose own task was cancelled passes that cancellation on.
    """


class RunSuspendedError(RunInterruptedError):
    """The run has ended its part in this process until it is resumed: its body, or somebody else, wanted it so."""


class StateNotFinalError(StateError):
    """A flow returned a hand-made state that is not final."""


class UnfinishedRunError(StateError):
    """The result was asked of a state that is not final."""


class IllegalTransitionError(AsyncflowError):
    """A run was asked to move to a state it cannot reach from where it is."""

    def __init__(self, before: str, after: str) -> None:
        self.before = before
        self.after = after
        super().__init__(f"a run cannot go from {before} to {after}")


class RunEndedError(AsyncflowError, RuntimeError):
    """A flow or task was called under a run that is ending or has ended."""

    def __init__(self, called: str, parent: str) -> None:
        self.called = called
        self.parent = parent
        super().__init__(
            f"{called!r} was called under run {parent!r}, which is ending or has ended, so nothing would "
            f"wait for it. Await it inside the run, or start it on its own:\n"
            f"    with asyncflow.detached():\n"
            f"        ...  # call {called} here"
        )


class WaitTimeoutError(AsyncflowError, TimeoutError):
    """A run had not ended when the time to wait for it was over. It goes on."""

    def __init__(self, run: str, seconds: float) -> None:
        self.run = run
        self.seconds = seconds
        super().__init__(f"run {run!r} had not ended after {seconds:g} seconds")


class WaitCycleError(AsyncflowError, RuntimeError):
    """A run was asked to wait for one that can only end after itself."""

    def __init__(self, run: str, target: str) -> None:
        self.run = run
        self.target = target
        what = "itself" if run == target else f"run {target!r}, which cannot end before it"
        super().__init__(f"run {run!r} would wait for {what}: neither could ever go on")


class UpstreamFailedError(StateError):
    """A run was not begun, because one whose future it was given did not complete.

    The upstream's own exception is its `__cause__`.
    """

    def __init__(self, run: str, upstream: str, state: Any) -> None:
        self.run = run
        self.upstream = upstream
        super().__init__(
            f"run {run!r} was not begun: run {upstream!r}, whose future it was given, ended {state}. To begin "
            f"all the same, with the exception in its place, pass asyncflow.allow_failure(future)",
            state,
        )


class NestingTooDeepError(AsyncflowError, RecursionError):
    """Runs call runs more deeply than the limit, most likely without an end."""

    def __init__(self, run: str, limit: int) -> None:
        self.run = run
        self.limit = limit
        super().__init__(
            f"run {run!r} would be nested more than {limit} deep; if that is meant, set ASYNCFLOW_NESTING_LIMIT"
        )


class CannotCancelNestedRunError(AsyncflowError):
    """A nested flow run was to be cancelled without the run it is a part of."""

    def __init__(self, run_id: object, outermost_id: object) -> None:
        self.run_id: str = str(run_id)
        self.outermost_id: str = str(outermost_id)
        super().__init__(
            f"flow run {self.run_id} is a part of flow run {self.outermost_id} and cannot be cancelled apart from it: "
            f"cancel that one, or keep the future of the nested run, `future = my_flow.submit(...)`, and cancel that"
        )


class RunElsewhereError(AsyncflowError):
    """A run goes on, but not in this process, and the one it goes on in could not be asked."""

    def __init__(self, run_id: object, state: Any, why: str) -> None:
        self.run_id: str = str(run_id)
        self.state = state
        self.why = why
        super().__init__(f"run {self.run_id} is {state}, and not in this process: {why}")


class CannotDeleteRunError(AsyncflowError):
    """A run was to be deleted that goes on, or that is a part of another one. Nothing was deleted."""

    def __init__(self, run_id: object, why: str) -> None:
        self.run_id: str = str(run_id)
        self.why = why
        super().__init__(f"run {self.run_id} cannot be deleted: {why}. Nothing was deleted")


class CannotResumeError(AsyncflowError):
    """A run cannot be run again."""

    def __init__(self, run_id: object, why: str, instead: str) -> None:
        self.run_id: str = str(run_id)
        self.why = why
        self.instead = instead
        super().__init__(f"run {self.run_id} cannot be resumed: {why}. {instead}")


class MissingParametersError(CannotResumeError):
    """The record of a run does not hold everything that it was given: what is not JSON, and what is secret, is not."""

    def __init__(self, run_id: object, missing: Sequence[str]) -> None:
        self.missing: tuple[str, ...] = tuple(missing)
        given = ", ".join(f'"{name}": ...' for name in missing)
        super().__init__(
            run_id,
            f"its record does not hold the value of {', '.join(map(repr, missing))}",
            f"Pass what is missing: resume_flow_run(id, parameters={{{given}}})",
        )


class NoRuntimeError(AsyncflowError, RuntimeError):
    """A runtime is needed here, and none is open: for something submitted outside of any run, or asked for by name."""

    def __init__(self, function: str | None = None) -> None:
        self.function = function
        service = (
            "\nIn a web service, give it to the application that the server runs (one that is mounted in "
            "another is not told of starting and stopping):\n"
            "    FastAPI(lifespan=asyncflow.lifespan())"
        )
        if function is None:
            super().__init__(f"no runtime is open here; open one:\n    async with asyncflow.Runtime():{service}")
            return
        super().__init__(
            f"{function}.submit(...) was called outside of any run, so nothing would wait for it. Await "
            f"{function}.acall(...) instead, or open a runtime that outlives it:\n"
            f"    async with asyncflow.Runtime():\n"
            f"        future = {function}.submit(...){service}"
        )
