"""`@task` and `Task`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, Literal, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from asyncflow._options import TransactionHook
from asyncflow._signature import names_around
from asyncflow._specs import Kind, Options, TaskOptions
from asyncflow.declarations import Binds, Declaration
from asyncflow.futures import TaskFuture

__all__ = ["Task", "TaskDecorator", "task"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
H = TypeVar("H", bound=TransactionHook)
T = TypeVar("T")


class Task(Declaration[P, R_co]):
    """A function declared with `@task`. Calling it makes a recorded task run."""

    _kind = Kind.TASK

    def __init__(self, fn: Callable[P, R_co], /, **options: Unpack[TaskOptions]) -> None:
        super().__init__(fn, Options().changed(Kind.TASK, options), names_around(fn, globals()))

    # The function's own signature first, which editors show. A future may stand for any argument, anywhere
    # inside it, which no type can say: such a call, and one with `wait_for`, is checked when it is made.
    @overload
    def submit(self: Task[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    @overload  # a generator with persist_result=True: its items are the result
    def submit(
        self: Task[P, AsyncIterator[Any] | Iterator[Any]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[None]: ...
    @overload
    def submit(self: Task[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    @overload
    def submit(self: Task[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> TaskFuture[T]: ...
    @overload
    def submit(
        self: Task[..., AsyncIterator[Any] | Iterator[Any]], /, *args: Any, **kwargs: Any
    ) -> TaskFuture[None]: ...
    @overload
    def submit(self: Task[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> Any:
        """Start it now, in the task runner of the current flow run; gives its future at once.

        An async body runs on the flow's own loop, a sync one in a worker thread. The run around
        waits for it. Futures anywhere in the arguments are waited for, without a place or a
        thread, and replaced by their values. Outside of any run it needs an open `Runtime`, else
        `NoRuntimeError`; under a run that is ending, `RunEndedError`.
        """
        return self._submit(args, kwargs)

    def with_options(self, **options: Unpack[TaskOptions]) -> Self:
        """A copy with other options; what is not named stays as it is."""
        return self._with_options(dict(options))

    def on_commit(self, hook: H, /) -> H:
        """Decorate a function that is called when a transaction with a completed run of this task is committed.

        It gets the transaction, and may be async. What it raises rolls the transaction back.
        """
        self._add_hook("on_commit", hook)
        return hook

    def on_rollback(self, hook: H, /) -> H:
        """Decorate a function that undoes what a run of this task did, when its transaction is rolled back.

        It gets the transaction, and may be async. It is called for runs that completed, the latest
        first, also when the transaction is cancelled; what it raises is logged.
        """
        self._add_hook("on_rollback", hook)
        return hook

    def _add_hook(self, option: Literal["on_commit", "on_rollback"], hook: TransactionHook) -> None:
        hooks = (*getattr(self._spec.options, option), hook)
        # In place, unlike `with_options`: a decorator has nobody to give a copy to. The name is the task's own.
        self._spec = replace(self._spec, options=self._spec.options.changed(Kind.TASK, {option: hooks}))
        self._method_spec = None  # made anew, with the hook, when it is next bound

    # What a class attribute gives: the class bound (class method), itself (any other, read from
    # the class), the instance bound (method), itself (static method). See Binds.
    @overload
    def __get__(self: Binds[type[Any], Q, T], obj: object, owner: type | None = None, /) -> Task[Q, T]: ...
    @overload
    def __get__(self, obj: None, owner: type | None = None, /) -> Self: ...
    @overload
    def __get__(self: Binds[S, Q, T], obj: S, owner: type | None = None, /) -> Task[Q, T]: ...
    @overload
    def __get__(self, obj: object, owner: type | None = None, /) -> Self: ...
    def __get__(self, obj: object, owner: type | None = None, /) -> Any:
        return self._bind(obj, owner)


class TaskDecorator(Protocol):
    """`@task(...)`: options given, the function still to come."""

    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(fn: Callable[P, R], /, **options: Unpack[TaskOptions]) -> Task[P, R]: ...
@overload
def task(fn: None = None, /, **options: Unpack[TaskOptions]) -> TaskDecorator: ...
def task(fn: Any = None, /, **options: Unpack[TaskOptions]) -> Any:
    """Declare a function as a task; with or without options.

    On a class or static method it stands above `@classmethod` or `@staticmethod`. Below them it works
    too, but a class method is then hidden from type checkers: they know it as callable, no more.
    """

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        return Task(function, **options)

    return declare if fn is None else declare(fn)
