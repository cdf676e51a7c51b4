"""Errors of declaring and calling, of parameters and results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncflow.exceptions.base import AsyncflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EntrypointError",
    "MapError",
    "MissingResultError",
    "NotAFunctionError",
    "NotDigestibleError",
    "NotJSONError",
    "OptionError",
    "ParameterValidationError",
    "ParametersTooLargeError",
    "ReservedParameterError",
    "SyncCallOnEventLoopError",
    "TransactionEndedError",
    "TransactionReusedError",
    "TransactionValueError",
    "WaitOnEventLoopError",
]


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
            f"    await {function}.acall(...)        # runs the body in a worker thread\n"
            f"    future = {function}.submit(...)    # the same, and goes on here at once"
        )


class WaitOnEventLoopError(AsyncflowError, RuntimeError):
    """A wait that blocks its thread was asked for on a thread whose event loop is running."""

    def __init__(self, called: str, instead: str) -> None:
        self.called = called
        self.instead = instead
        super().__init__(
            f"{called} would block the running event loop, and with it perhaps the run it waits for. "
            f"Write instead:\n    {instead}"
        )


class MapError(AsyncflowError, ValueError):
    """The arguments of `map` cannot be taken apart item by item."""

    def __init__(self, function: str, problem: str) -> None:
        self.function = function
        self.problem = problem
        super().__init__(f"{function}.map(...): {problem}")


class EntrypointError(AsyncflowError):
    """`FILE.py:flow` or `package.module:flow` does not lead to exactly one flow."""

    def __init__(self, entrypoint: str, problem: str, *, flows: Sequence[str] = ()) -> None:
        self.entrypoint = entrypoint
        self.problem = problem
        self.flows: tuple[str, ...] = tuple(flows)
        listed = "".join(f"\n    {name}" for name in self.flows)
        super().__init__(f"{entrypoint!r}: {problem}{listed}")


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

    def __init__(self, path: str, problem: str, advice: str | None = None) -> None:
        self.path = path
        self.problem = problem
        self.advice = advice or (
            "Return plain data, a dataclass or a pydantic model, "
            "or say persist_result=False to keep the value in memory only"
        )
        """What to do; of a result, unless said otherwise."""
        super().__init__(f"{path} is not JSON: {problem}. {self.advice}")


class NotDigestibleError(AsyncflowError, TypeError):
    """Arguments cannot be compared with those of another call by a digest."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(
            f"{path} cannot be digested: {problem}. Pass plain data, a dataclass or a pydantic model, or say that "
            f"the argument does not identify the call: {path.partition('.')[0].partition('[')[0]}: NoKey[...]"
        )


class MissingResultError(AsyncflowError):
    """A completed run has no recorded value (it was not persisted, or its file is gone)."""

    def __init__(self, run_id: object, reason: str) -> None:
        self.run_id: str = str(run_id)
        self.reason = reason
        super().__init__(f"run {self.run_id} has no recorded result: {reason}")


class TransactionEndedError(AsyncflowError, RuntimeError):
    """Something was begun inside a transaction that is being rolled back or committed, or is over."""

    def __init__(self, what: str, transaction: str) -> None:
        self.what = what
        self.transaction = transaction
        super().__init__(
            f"{what} inside {transaction}, whose block is ending or has ended, so it could be neither committed "
            f"nor rolled back with it. Do it before the block ends; a task or thread that goes on after the block "
            f"has to be started outside of it, and a hook is outside by itself"
        )


class TransactionReusedError(AsyncflowError, RuntimeError):
    """A transaction object was entered a second time."""

    def __init__(self, transaction: str) -> None:
        self.transaction = transaction
        super().__init__(
            f"{transaction} has been entered before, and a transaction is entered once: "
            f"write `transaction(...)` anew for each block"
        )


class TransactionValueError(AsyncflowError, LookupError):
    """`txn.get` was asked for a value that neither the transaction nor one around it has."""

    def __init__(self, name: str, transaction: str) -> None:
        self.name = name
        self.transaction = transaction
        super().__init__(
            f"{transaction} and those around it have no value {name!r}: put it there with "
            f"txn.set({name!r}, ...), or give a default: txn.get({name!r}, None)"
        )
