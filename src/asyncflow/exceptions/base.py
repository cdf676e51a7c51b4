"""What all errors of asyncflow have in common."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AsyncflowError",
    "StateError",
]


class AsyncflowError(Exception):
    """Base of everything asyncflow raises on its own account."""

    def __init_subclass__(cls) -> None:
        # Where people import them from, not where they stand.
        if cls.__module__.startswith("asyncflow.exceptions."):
            cls.__module__ = "asyncflow.exceptions"

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the subclass with the finished message instead of its fields.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(cls: type[AsyncflowError], args: tuple[Any, ...]) -> AsyncflowError:
    error = cls.__new__(cls)
    error.args = args
    return error


class StateError(AsyncflowError):
    """An error that stands for a run's state; ``state`` is that state."""

    def __init__(self, message: str, state: Any = None) -> None:
        self.state = state
        super().__init__(message)
