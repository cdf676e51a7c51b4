"""Every error asyncflow raises on its own account.

An error takes fields, writes its own message from them and says what to do next, so that the
place that raises it states facts only. All of them derive from :class:`AsyncflowError`, keep
their fields as attributes and survive ``pickle`` and ``copy`` (worker processes send them home).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "AsyncflowError",
    "CrashedRunError",
    "DurabilityError",
    "EntrypointError",
    "FailedRunError",
    "ForkedRuntimeError",
    "HomeError",
    "IllegalTransitionError",
    "MissingResultError",
    "NotAFunctionError",
    "NotJSONError",
    "OptionError",
    "ParameterValidationError",
    "ParametersTooLargeError",
    "ReservedParameterError",
    "RunCancelledError",
    "RunEndedError",
    "RunNotFoundError",
    "RuntimeClosedError",
    "StateNotFinalError",
    "StoreBusyError",
    "StoreError",
    "SyncCallOnEventLoopError",
    "UnfinishedRunError",
    "UnsupportedSchemaError",
]


class AsyncflowError(Exception):
    """Base of everything asyncflow raises on its own account."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the subclass with the finished message instead of its fields.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(cls: type[AsyncflowError], args: tuple[Any, ...]) -> AsyncflowError:
    error = cls.__new__(cls)
    error.args = args
    return error


# --- declaring and calling -----------------------------------------------------------------


class NotAFunctionError(AsyncflowError, TypeError):
    """`@flow` or `@task` was put on something that cannot be called."""

    def __init__(self, kind: str, value: object) -> None:
        self.kind = kind
        self.value_type: str = type(value).__name__
        super().__init__(
            f"@{kind} decorates a function, a method or another callable, not {value!r} "
            f"(a {self.value_type}); options go by keyword: @{kind}(name=...)"
        )


class OptionError(AsyncflowError, ValueError):
    """An option of `@flow` or `@task` has a value that cannot be used."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        self.option = option
        self.value = value
        self.expected = expected
        super().__init__(f"{option}={value!r}: expected {expected}")


class ReservedParameterError(AsyncflowError, ValueError):
    """A decorated function has a parameter that every call of a flow or task already has."""

    def __init__(self, kind: str, function: str, parameter: str) -> None:
        self.kind = kind
        self.function = function
        self.parameter = parameter
        super().__init__(
            f"{kind} {function!r} has a parameter named {parameter!r}, which each call of a {kind} "
            f"already takes for itself; rename it, for example to '{parameter}_'"
        )


class SyncCallOnEventLoopError(AsyncflowError, RuntimeError):
    """A sync flow or task was called on a thread whose event loop is running.

    Its body would block every other task of that loop until it returns.
    """

    def __init__(self, kind: str, function: str) -> None:
        self.kind = kind
        self.function = function
        super().__init__(
            f"{kind} {function!r} is a plain function, and calling it here would block the running "
            f"event loop until it returns. Write instead:\n"
            f"    await {function}.acall(...)        # runs the body in a worker thread"
        )


class EntrypointError(AsyncflowError):
    """`FILE.py:flow` or `package.module:flow` does not lead to exactly one flow."""

    def __init__(self, entrypoint: str, problem: str, *, flows: Sequence[str] = ()) -> None:
        self.entrypoint = entrypoint
        self.problem = problem
        self.flows: tuple[str, ...] = tuple(flows)
        listed = "".join(f"\n    {name}" for name in self.flows)
        super().__init__(f"{entrypoint!r}: {problem}{listed}")


# --- parameters and results ----------------------------------------------------------------


class ParameterValidationError(AsyncflowError, ValueError):
    """Arguments of a flow do not fit its type hints.

    ``problems`` holds one ``(path, message, value)`` per bad field, for example
    ``("items.3.price", "Input should be a valid number", "'x'")``; the value is a preview.
    """

    def __init__(self, flow: str, problems: Sequence[tuple[str, str, str]]) -> None:
        self.flow = flow
        self.problems: tuple[tuple[str, str, str], ...] = tuple(problems)
        lines = "".join(f"\n  - {path}: {text}, got {value}" for path, text, value in problems)
        super().__init__(f"flow {flow!r} was given parameters that do not fit its type hints:{lines}")


class ParametersTooLargeError(AsyncflowError, ValueError):
    """The JSON of a run's parameters is over the limit (512 KiB unless set otherwise)."""

    def __init__(self, flow: str, *, size: int, limit: int, biggest: str, biggest_size: int) -> None:
        self.flow = flow
        self.size = size
        self.limit = limit
        self.biggest = biggest
        self.biggest_size = biggest_size
        super().__init__(
            f"the parameters of flow {flow!r} take {size:,} bytes as JSON, over the limit of {limit:,}; "
            f"the biggest is {biggest!r} with {biggest_size:,} bytes. Pass a reference to it (a path, a key, "
            f"a URL) and load it inside the flow, or set ASYNCFLOW_PARAMETERS_LIMIT (bytes, 0 = no limit)"
        )


class NotJSONError(AsyncflowError, TypeError):
    """A value cannot be written as JSON without changing its meaning."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(
            f"{path} is not JSON: {problem}. Return plain data, a dataclass or a pydantic model, "
            f"or say persist_result=False to keep the value in memory only"
        )


class MissingResultError(AsyncflowError):
    """A completed run has no recorded value (it was not persisted, or its file is gone)."""

    def __init__(self, run_id: object, reason: str) -> None:
        self.run_id: str = str(run_id)
        self.reason = reason
        super().__init__(f"run {self.run_id} has no recorded result: {reason}")


# --- states --------------------------------------------------------------------------------


class _StateError(AsyncflowError):
    """An error that stands for a run's state; ``state`` is that state."""

    def __init__(self, message: str, state: Any = None) -> None:
        self.state = state
        super().__init__(message)


class FailedRunError(_StateError):
    """A run ended Failed and no exception of its own says why (a state made by hand)."""


class CrashedRunError(_StateError):
    """A run ended Crashed and no exception of its own says why."""


class RunCancelledError(_StateError):
    """A run was cancelled, but whoever waits for it was not.

    An ``Exception`` on purpose: on trio nobody can make a cancellation, and asyncio's task
    groups swallow one that nobody asked for.
    """


class StateNotFinalError(_StateError):
    """A flow returned a hand-made state that is not final."""


class UnfinishedRunError(_StateError):
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


# --- store and runtime ---------------------------------------------------------------------


class RunNotFoundError(AsyncflowError, LookupError):
    """No run has this id."""

    def __init__(self, run_id: object, home: Path | str | None = None) -> None:
        self.run_id: str = str(run_id)
        self.home: str | None = None if home is None else str(home)
        where = "" if self.home is None else f" in {self.home!r}"
        super().__init__(f"no run has the id {self.run_id!r}{where}; `asyncflow runs ls` lists the runs there are")


class StoreError(AsyncflowError):
    """The store failed at ``operation`` on ``path``; what it was told before is not lost."""

    def __init__(self, operation: str, path: Path | str, reason: object) -> None:
        self.operation = operation
        self.path: str = str(path)
        self.reason: str = str(reason)
        super().__init__(f"{operation} failed on {self.path!r}: {self.reason}")


class StoreBusyError(StoreError):
    """Another process held the database's write lock longer than we wait for it."""


class HomeError(StoreError):
    """The home folder cannot be used: not writable, damaged, or not ours."""

    def __init__(self, operation: str, path: Path | str, reason: object) -> None:
        super().__init__(
            operation, path, f"{reason}. Set ASYNCFLOW_HOME to a folder that you own and that can be written"
        )


class UnsupportedSchemaError(StoreError):
    """The database was written by a newer asyncflow than this one."""

    def __init__(self, path: Path | str, *, found: int, supported: int) -> None:
        self.found = found
        self.supported = supported
        super().__init__(
            "opening the database",
            path,
            f"it has schema version {found}, and this asyncflow knows versions up to {supported}; "
            f"upgrade asyncflow, or set ASYNCFLOW_HOME to another folder",
        )


class DurabilityError(AsyncflowError):
    """A run reached its final state, but the store has not confirmed it is on disk.

    ``state`` is that final state: the work was done, only its record is in doubt.
    """

    def __init__(self, run: str, state: Any, reason: object) -> None:
        self.run = run
        self.state = state
        self.reason: str = str(reason)
        super().__init__(f"run {run!r} ended {state}, but that is not confirmed on disk: {self.reason}")


class ForkedRuntimeError(AsyncflowError, RuntimeError):
    """A runtime that was opened before ``fork`` was used in the child process."""

    def __init__(self, owner_pid: int, pid: int) -> None:
        self.owner_pid = owner_pid
        self.pid = pid
        super().__init__(
            f"this runtime was opened in process {owner_pid} and is used in process {pid}, its fork, where "
            f"writes would be lost; open a Runtime in the child, or start processes with 'spawn'"
        )


class RuntimeClosedError(AsyncflowError, RuntimeError):
    """A runtime was used after it was closed."""

    def __init__(self, home: Path | str) -> None:
        self.home: str = str(home)
        super().__init__(f"the runtime on {self.home!r} is closed; open a new one: async with asyncflow.Runtime(...)")
