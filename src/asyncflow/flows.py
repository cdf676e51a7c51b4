"""`@flow` and `Flow`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from inspect import currentframe
from typing import Any, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from asyncflow._engine.declared import declare
from asyncflow._specs import FlowOptions, Kind, Options
from asyncflow.declarations import Binds, Declaration
from asyncflow.deployments import Deployment, DeploymentOptions, make_deployment
from asyncflow.futures import FlowRunFuture
from asyncflow.parameters import ParameterModel
from asyncflow.serving import serve

__all__ = ["Flow", "FlowDecorator", "flow"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")


class Flow(Declaration[P, R_co]):
    """A function declared with `@flow`. Calling it makes a recorded flow run."""

    _kind = Kind.FLOW

    def __init__(self, fn: Callable[P, R_co], /, **options: Unpack[FlowOptions]) -> None:
        super().__init__(fn, Options().changed(Kind.FLOW, options), _names_around())
        declare(self)

    # The function's own signature first, which editors show. A future may stand for any argument, anywhere
    # inside it, which no type can say: such a call, and one with `wait_for`, is checked when it is made.
    @overload
    def submit(self: Flow[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> FlowRunFuture[T]: ...
    @overload  # a generator with persist_result=True: its items are the result
    def submit(
        self: Flow[P, AsyncIterator[Any] | Iterator[Any]], /, *args: P.args, **kwargs: P.kwargs
    ) -> FlowRunFuture[None]: ...
    @overload
    def submit(self: Flow[P, T], /, *args: P.args, **kwargs: P.kwargs) -> FlowRunFuture[T]: ...
    @overload
    def submit(self: Flow[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> FlowRunFuture[T]: ...
    @overload
    def submit(
        self: Flow[..., AsyncIterator[Any] | Iterator[Any]], /, *args: Any, **kwargs: Any
    ) -> FlowRunFuture[None]: ...
    @overload
    def submit(self: Flow[..., T], /, *args: Any, **kwargs: Any) -> FlowRunFuture[T]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> Any:
        """Start it now, in the task runner of the current flow run; gives its future at once.

        An async body runs on the flow's own loop, a sync one in a worker thread. The run around
        waits for it. Futures anywhere in the arguments are waited for, without a place or a
        thread, and replaced by their values. Outside of any run it needs an open `Runtime`, else
        `NoRuntimeError`; under a run that is ending, `RunEndedError`.
        """
        return self._submit(args, kwargs)

    def with_options(self, **options: Unpack[FlowOptions]) -> Self:
        """A copy with other options; what is not named stays as it is."""
        return self._with_options(dict(options))

    def to_deployment(self, name: str, **options: Unpack[DeploymentOptions]) -> Deployment:
        """A deployment of the flow, for `serve`: the flow with a name, defaults and rules that say when it runs.

        `cron="0 9 * * *"`, `interval=60` (seconds) and `rrule="FREQ=..."` are short for one schedule each;
        `schedules=[...]` takes any number, `triggers=[...]` those that start runs because of events. All else is
        as in `Deployment`. Raises `DeploymentError`, `DeploymentParametersError`, `ScheduleError` or `OptionError`.
        """
        return make_deployment(self, name, **options)

    async def serve(
        self, name: str | None = None, *, limit: int | None = None, **options: Unpack[DeploymentOptions]
    ) -> None:
        """Serve one deployment of the flow, in this process, until it is cancelled; see `asyncflow.serve`.

        Without a name it has the flow's; the options are those of `to_deployment`.
        """
        await serve(self.to_deployment(self.name if name is None else name, **options), limit=limit)

    @property
    def parameters(self) -> Any:
        """The parameter schema, as an instance of a pydantic model.

        `.model_dump()` gives title, type, properties, required, definitions.
        """
        return self._model().schema()

    def validate_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The values coerced to the type hints, from a mapping by name.

        Raises `ParameterValidationError`, which names each bad, missing or unknown one.
        """
        return self._model().validate_keywords(parameters)

    def _model(self) -> ParameterModel:
        assert self._spec.model is not None
        return self._spec.model

    # What a class attribute gives: the class bound (class method), itself (any other, read from
    # the class), the instance bound (method), itself (static method). See Binds.
    @overload
    def __get__(self: Binds[type[Any], Q, T], obj: object, owner: type | None = None, /) -> Flow[Q, T]: ...
    @overload
    def __get__(self, obj: None, owner: type | None = None, /) -> Self: ...
    @overload
    def __get__(self: Binds[S, Q, T], obj: S, owner: type | None = None, /) -> Flow[Q, T]: ...
    @overload
    def __get__(self, obj: object, owner: type | None = None, /) -> Self: ...
    def __get__(self, obj: object, owner: type | None = None, /) -> Any:
        return self._bind(obj, owner)


class FlowDecorator(Protocol):
    """`@flow(...)`: options given, the function still to come."""

    def __call__(self, fn: Callable[P, R], /) -> Flow[P, R]: ...


@overload
def flow(fn: Callable[P, R], /, **options: Unpack[FlowOptions]) -> Flow[P, R]: ...
@overload
def flow(fn: None = None, /, **options: Unpack[FlowOptions]) -> FlowDecorator: ...
def flow(fn: Any = None, /, **options: Unpack[FlowOptions]) -> Any:
    """Declare a function as a flow; with or without options.

    On a class or static method it stands above `@classmethod` or `@staticmethod`. Below them it works
    too, but a class method is then hidden from type checkers: they know it as callable, no more.
    """

    def declare(function: Callable[..., Any]) -> Flow[..., Any]:
        return Flow(function, **options)

    return declare if fn is None else declare(fn)


def _names_around() -> Mapping[str, Any]:
    """The locals of the function that declares a flow: hints given as text may name classes made there."""
    frame = currentframe()
    while frame is not None and frame.f_globals is globals():
        frame = frame.f_back
    return {} if frame is None or frame.f_locals is frame.f_globals else dict(frame.f_locals)
