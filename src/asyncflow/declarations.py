"""What `Flow` and `Task` have in common: how a declared function is called, bound and copied."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, overload

from asyncflow._engine.calls import PLAIN, CallKeywords, call_async, call_sync
from asyncflow._engine.map_stream import MapStream, open_map_stream
from asyncflow._engine.mapping import submit_each
from asyncflow._engine.streams import Stream, open_stream
from asyncflow._engine.submission import submit
from asyncflow._engine.sync_streams import open_sync_stream
from asyncflow._specs import Colour, Kind, Options, Spec, make_spec
from asyncflow.exceptions import OptionError
from asyncflow.futures import FutureList
from asyncflow.logs import install_print_dispatcher
from asyncflow.placeholders import Unmapped
from asyncflow.runtime import HOME
from asyncflow.states import State

__all__ = ["Binds", "Declaration"]

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
Y = TypeVar("Y")
# Covariant, so that a declaration whose call gives a CoroutineType (pyright) or a Generator
# matches the Coroutine and Iterator of the self types below.
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)


class Binds(Protocol[S_contra, Q, T_co]):
    """A declaration whose function takes an S first.

    Checkers drop @classmethod and @staticmethod from a decorated function, above or below our
    decorator, so only the first parameter tells which kind of method it is. A protocol, because
    mypy does not compare the first parameter when `self` is written Task[Concatenate[S, Q], T].
    """

    @property
    def fn(self) -> Callable[Concatenate[S_contra, Q], T_co]:
        """The undecorated function."""
        ...


class Declaration(Generic[P, R_co]):
    """A declared function: what `@flow` and `@task` make.

    A signature cannot be written as "the function's own parameters and these keywords as well"
    (PEP 612). So each method has an overload with the function's own signature, and one that a
    call keyword makes the chosen one; there the result is typed and the other arguments are
    checked at the call. The function's signature comes first, because editors show the first.
    The price: a function that takes any keyword (`**kwargs: Any`) is typed as taking these too.

    The checkers' reports of overlapping overloads are ignored: a coroutine is a T as well, and a
    function may have parameters of these names as far as they know (it is refused at decoration).
    """

    _kind: Kind
    __name__: str

    def __init__(self, fn: Callable[P, R_co], options: Options, namespace: Mapping[str, Any] | None = None) -> None:
        self._declare(fn, options, namespace)

    def _declare(self, fn: Any, options: Options, namespace: Mapping[str, Any] | None) -> None:
        self._fn = fn
        self._namespace = namespace
        self._method_spec: Spec | None = None
        self._spec = make_spec(self._kind, _function_of(fn), options, namespace=namespace)
        self._call = _CALLS[self._spec.colour]
        if options.log_prints:
            install_print_dispatcher()
        mark: Any = getattr(inspect, "markcoroutinefunction", None)
        if self._spec.colour is Colour.ASYNC and mark is not None:
            mark(self)  # for frameworks that ask what they are given (CPython 3.12)
        # Name, docstring, annotations and signature are the function's: for people and for tools.
        self.__name__ = self._spec.binder.name  # partials and callables have none of their own
        update_wrapper(self, _function_of(fn), updated=())
        if isinstance(fn, partial):
            self.__doc__ = fn.func.__doc__

    @property
    def fn(self) -> Callable[P, R_co]:
        """The undecorated function: calling it runs the body and records nothing."""
        return self._spec.fn

    @property
    def spec(self) -> Spec:
        """For the engine: what was declared."""
        return self._spec

    @property
    def name(self) -> str:
        """The name it is recorded under."""
        return self._spec.name

    @property
    def version(self) -> str | None:
        """The version it was given."""
        return self._spec.options.version

    @property
    def description(self) -> str | None:
        """The description it was given, else the function's docstring."""
        return self._spec.options.description or self.__doc__

    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self: Declaration[..., Coroutine[Any, Any, T]], /, *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> Coroutine[Any, Any, State[T]]: ...
    @overload
    def __call__(self: Declaration[..., T], /, *args: Any, return_state: Literal[True], **kwargs: Any) -> State[T]: ...
    @overload
    def __call__(self, /, *args: Any, wait_for: Any, **kwargs: Any) -> R_co: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, /, *args: Any, run_key: str, **kwargs: Any
    ) -> R_co: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run it, like the function: gives the value (sync) or a coroutine (async), or a stream of a generator's items.

        With `return_state=True`: its final `State`, whatever the run did. With `wait_for=[...]`:
        after these futures, which have to complete. With `run_key="..."`: told apart from equal calls
        in the same run, whose recorded value it is never given when that run is resumed.
        """
        keywords = PLAIN if not kwargs or _OWN.isdisjoint(kwargs) else _taken_from(kwargs)
        arguments = self._spec.binder.bind(*args, **kwargs)
        return self._call(HOME, self, self._spec, arguments, keywords)

    @overload
    async def acall(  # type: ignore[overload-overlap]
        self: Declaration[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def acall(self: Declaration[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def acall(
        self: Declaration[..., Coroutine[Any, Any, T]], /, *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> State[T]: ...
    @overload
    async def acall(
        self: Declaration[..., T], /, *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> State[T]: ...
    @overload
    async def acall(
        self: Declaration[..., Coroutine[Any, Any, T]], /, *args: Any, wait_for: Any, **kwargs: Any
    ) -> T: ...
    @overload
    async def acall(self: Declaration[..., T], /, *args: Any, wait_for: Any, **kwargs: Any) -> T: ...
    @overload
    async def acall(
        self: Declaration[..., Coroutine[Any, Any, T]], /, *args: Any, run_key: str, **kwargs: Any
    ) -> T: ...
    @overload
    async def acall(self: Declaration[..., T], /, *args: Any, run_key: str, **kwargs: Any) -> T: ...
    async def acall(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run it from async code, whatever its colour: a sync body runs in a worker thread."""
        keywords = _taken_from(kwargs)
        arguments = self._spec.binder.bind(*args, **kwargs)
        self._refuse_generator()
        return await call_async(HOME, self, self._spec, arguments, keywords)

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keywords = _taken_from(kwargs)
        if keywords.return_state:
            raise TypeError(f"{self.__name__}.submit(...) gives a future: its state is `future.state`")
        arguments = self._spec.binder.bind(*args, **kwargs)
        if not self._spec.keeps_items:
            self._refuse_generator("; with persist_result=True it can be submitted, and its items are recorded")
        return submit(HOME, self, self._spec, arguments, keywords)

    def _refuse_generator(self, but: str = "") -> None:
        if self._spec.colour in (Colour.ASYNC_GENERATOR, Colour.SYNC_GENERATOR):
            raise TypeError(
                f"{self.__name__!r} yields its items: write `async for item in {self.__name__}.stream(...)`{but}"
            )

    @overload
    def map(
        self: Declaration[..., Coroutine[Any, Any, T]], /, *iterables: Any, wait_for: Any = None, **kwargs: Any
    ) -> FutureList[T]: ...
    @overload
    def map(self: Declaration[..., T], /, *iterables: Any, wait_for: Any = None, **kwargs: Any) -> FutureList[T]: ...
    def map(self, /, *args: Any, **kwargs: Any) -> Any:
        """Submit one run per item; gives the list of their futures, awaitable as a whole.

        Every argument that can be iterated over is taken apart, side by side, except text, bytes
        and `unmapped(x)`; the others go to each run as they are. Raises `MapError` when their
        lengths differ or nothing can be taken apart. Items of async iterables are submitted while
        the list is awaited.
        """
        return submit_each(self.__name__, lambda args, kwargs: self._submit(args, kwargs), args, kwargs)

    @overload
    def map_stream(
        self: Declaration[..., Coroutine[Any, Any, T]],
        iterable: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        limit: int,
        ordered: bool = True,
        return_state: Literal[False] = False,
        **kwargs: Any,
    ) -> MapStream[T]: ...
    @overload
    def map_stream(
        self: Declaration[..., T],
        iterable: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        limit: int,
        ordered: bool = True,
        return_state: Literal[False] = False,
        **kwargs: Any,
    ) -> MapStream[T]: ...
    @overload
    def map_stream(
        self: Declaration[..., Coroutine[Any, Any, T]],
        iterable: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        limit: int,
        ordered: bool = True,
        return_state: Literal[True],
        **kwargs: Any,
    ) -> MapStream[State[T]]: ...
    @overload
    def map_stream(
        self: Declaration[..., T],
        iterable: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        limit: int,
        ordered: bool = True,
        return_state: Literal[True],
        **kwargs: Any,
    ) -> MapStream[State[T]]: ...
    def map_stream(
        self, iterable: Any, /, *, limit: int, ordered: bool = True, return_state: bool = False, **kwargs: Any
    ) -> Any:
        """The results of one submitted run per item, as an iterator, over a source of any length.

        Each item of the iterable, sync or async, is the first argument of a run; `kwargs` go to
        each run as they are. At most `limit` runs are in flight or finished and not yet taken. The
        results come in the order of the items, or with `ordered=False` as they are done.

        `async for` takes them, or `for` in sync code. A run that did not complete raises its
        exception in its place, which ends the stream and cancels the rest; with `return_state=True`
        the final states come instead, whatever the runs did. `async with f.map_stream(...) as
        results:` returns when nothing of it is left; the run around closes a stream that is still
        open when its body ends.
        """
        self._refuse_generator()
        given = {name: value.value if isinstance(value, Unmapped) else value for name, value in kwargs.items()}
        return open_map_stream(
            HOME,
            self.__name__,
            iterable,
            lambda item: self._submit((item,), {**given}),
            limit=limit,
            ordered=ordered,
            return_state=return_state,
        )

    def stream(self: Declaration[P, AsyncIterator[Y] | Iterator[Y]], /, *args: P.args, **kwargs: P.kwargs) -> Stream[Y]:
        """The items of a generator, of either colour, as its body makes them.

        `async with f.stream(...) as items:` returns after the body's `finally`; `async for item in
        f.stream(...)` alone asks an unfinished body to stop when the loop is left.
        """
        spec = self._spec
        if spec.colour not in (Colour.ASYNC_GENERATOR, Colour.SYNC_GENERATOR):
            raise TypeError(f"{self.__name__!r} does not yield: only generator functions are streamed")
        return open_stream(HOME, self, spec, spec.binder.bind(*args, **kwargs), PLAIN)

    def _with_options(self, changes: dict[str, Any]) -> Self:
        changed = copy(self)
        changed._declare(self._fn, self._spec.options.changed(self._kind, changes), self._namespace)
        method = getattr(self._spec.fn, "__self__", None)
        return changed._bound_to(method) if self._spec.is_bound else changed

    def _bind(self, obj: object, owner: type | None) -> Any:
        """What reading it from a class or an instance gives: what the function or kind of method would."""
        if self._spec.is_bound:
            return self
        if isinstance(self._fn, classmethod):
            return self._bound_to(owner if owner is not None else type(obj))
        if obj is None or isinstance(self._fn, staticmethod) or not inspect.isfunction(self._fn):
            return self
        return self._bound_to(obj)

    def _bound_to(self, obj: object) -> Self:
        if self._method_spec is None:  # its first parameter is no argument of a call
            self._method_spec = make_spec(
                self._kind, self._spec.fn, self._spec.options, skip_first=True, namespace=self._namespace
            )
        # A new object each time: two instances never share what they are bound to.
        bound = copy(self)
        bound._spec = replace(self._method_spec, fn=MethodType(self._spec.fn, obj), is_bound=True)
        return bound

    def __repr__(self) -> str:
        return f"<{self._kind.value} {self._spec.name!r}>"


def _function_of(fn: Any) -> Callable[..., Any]:
    function: Callable[..., Any] = fn.__func__ if type(fn) in (classmethod, staticmethod) else fn
    return function


_OWN = frozenset(CallKeywords._fields)


def _taken_from(kwargs: dict[str, Any]) -> CallKeywords:
    if not kwargs:
        return PLAIN
    run_key = kwargs.pop("run_key", None)
    if run_key is not None and not isinstance(run_key, str):
        raise OptionError("run_key", run_key, "text that tells this call from equal ones")
    return CallKeywords(bool(kwargs.pop("return_state", False)), kwargs.pop("wait_for", None), run_key)


_CALLS: dict[Colour, Callable[[Any, object, Spec, dict[str, Any], CallKeywords], Any]] = {
    Colour.ASYNC: call_async,
    Colour.SYNC: call_sync,
    Colour.ASYNC_GENERATOR: open_stream,
    Colour.SYNC_GENERATOR: open_sync_stream,
}
