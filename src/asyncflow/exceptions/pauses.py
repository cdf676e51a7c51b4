"""Errors of pausing runs, and of what is given to them while they go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncflow.exceptions.base import AsyncflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CannotPauseError",
    "CannotSendInputError",
    "InputTimeoutError",
    "InputTooLargeError",
    "InputValidationError",
    "NoFlowRunError",
    "PauseTimeoutError",
]


class NoFlowRunError(AsyncflowError, RuntimeError):
    """Something was asked for that only the body of a flow run, or of a task run in it, can have."""

    def __init__(self, called: str, instead: str) -> None:
        self.called = called
        self.instead = instead
        super().__init__(f"{called} was called outside of any flow run. {instead}")


class CannotPauseError(AsyncflowError):
    """A run cannot be paused or suspended; it is as it was."""

    def __init__(self, run_id: object, why: str, instead: str) -> None:
        self.run_id: str = str(run_id)
        self.why = why
        self.instead = instead
        super().__init__(f"run {self.run_id} cannot be paused: {why}. {instead}")


class PauseTimeoutError(AsyncflowError, TimeoutError):
    """Nobody resumed a run in the time that its pause had. Its body gets this, and may go on all the same."""

    def __init__(self, run: str, key: str, seconds: float) -> None:
        self.run = run
        self.key = key
        self.seconds = seconds
        super().__init__(f"run {run!r} was not resumed within {seconds:g} seconds (its pause {key!r})")


class InputTimeoutError(AsyncflowError, TimeoutError):
    """No input came in the time that `receive_input` was to wait for it."""

    def __init__(self, run: str, key: str, seconds: float) -> None:
        self.run = run
        self.key = key
        self.seconds = seconds
        super().__init__(f"run {run!r} received no input {key!r} within {seconds:g} seconds")


class InputValidationError(AsyncflowError, ValueError):
    """What a run was given does not fit the type that it waits for.

    ``problems`` holds one ``(path, message, value)`` per bad field; the value is a preview, and the
    path of the input itself is ``"input"``.
    """

    def __init__(self, run_id: object, key: str, problems: Sequence[tuple[str, str, str]]) -> None:
        self.run_id: str = str(run_id)
        self.key = key
        self.problems: tuple[tuple[str, str, str], ...] = tuple(problems)
        lines = "".join(f"\n  - {path}: {text}, got {value}" for path, text, value in self.problems)
        super().__init__(f"the input {key!r} of run {self.run_id} does not fit what it waits for:{lines}")


class InputTooLargeError(AsyncflowError, ValueError):
    """The JSON of an input is over the limit for parameters (512 KiB unless set otherwise)."""

    def __init__(self, key: str, *, size: int, limit: int) -> None:
        self.key = key
        self.size = size
        self.limit = limit
        super().__init__(
            f"the input {key!r} takes {size:,} bytes as JSON, over the limit of {limit:,}. Send a reference to it "
            f"(a path, a key, a URL), or set ASYNCFLOW_PARAMETERS_LIMIT (bytes, 0 = no limit)"
        )


class CannotSendInputError(AsyncflowError):
    """A run cannot be sent an input: nothing of it will ever receive one."""

    def __init__(self, run_id: object, why: str) -> None:
        self.run_id: str = str(run_id)
        self.why = why
        super().__init__(f"run {self.run_id} cannot be sent an input: {why}")
