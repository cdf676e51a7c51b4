"""What was declared: frozen records of a decorated function and its options.

They stand *below* the engine, and the `Flow` and `Task` objects that people hold stand above it,
so that the engine never needs to know those. (Where the decorator object calls the engine and the
engine imports the decorator object, every module ends up in one cycle.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from asyncflow._entrypoints import module_name
from asyncflow._options import FlowOptions, Hook, Kind, Options, RunName, TaskOptions
from asyncflow._signature import Hints, parameter_names
from asyncflow.cache_policies import NOT_IN_KEY
from asyncflow.exceptions import NotAFunctionError, OptionError
from asyncflow.parameters import Binder, ParameterModel
from asyncflow.states import FINAL_TYPES

__all__ = ["Colour", "FlowOptions", "Hook", "Kind", "Options", "RunName", "Spec", "TaskOptions", "make_spec"]


class Colour(Enum):
    """How a body is run."""

    ASYNC = "async"
    SYNC = "sync"
    ASYNC_GENERATOR = "async generator"
    SYNC_GENERATOR = "sync generator"


_GENERATORS = (Colour.ASYNC_GENERATOR, Colour.SYNC_GENERATOR)


@dataclass(frozen=True, slots=True, eq=False)
class Spec:
    """A decorated function, as the engine sees it."""

    kind: Kind
    fn: Callable[..., Any]
    options: Options
    binder: Binder
    model: ParameterModel | None
    """For the parameters of a flow; tasks take what they are given."""
    name: str
    key: str
    colour: Colour
    hints: Hints
    """Of the function as it was written, read when first asked for."""
    is_bound: bool = False
    """Whether `fn` is a method that has its object or class."""
    is_prepared: bool = False
    """Whether something is to be done before it begins: parameters to check, a name to make."""
    has_aftermath: bool = False
    """Whether something follows its final state even inside another run: hooks, or the wait for the disk."""
    keeps_items: bool = False
    """Whether each item that it yields is recorded."""
    said: set[str] = field(default_factory=set[str])
    """What was said once of this function, and is not to be said again; its bound copies share it."""

    @property
    def return_hint(self) -> Any:
        """The type of what it returns, by its annotation; `Any` where none says so."""
        return Any if self.keeps_items else self.hints.returned  # its value is None, its annotation an iterator

    @property
    def not_in_key(self) -> frozenset[str]:
        """The names of the parameters whose arguments do not identify a call."""
        return self.hints.marked

    def keyed(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of a call's arguments identifies it, and what the function itself holds: its object, a partial's own."""
        bound = None if type(self.fn) is FunctionType else _held_by(self.fn, self.hints.first)
        excluded = self.not_in_key
        if not bound and not excluded:
            return arguments
        return {name: value for name, value in {**arguments, **(bound or {})}.items() if name not in excluded}

    @property
    def is_async(self) -> bool:
        """Whether its body runs on a loop."""
        return self.colour in (Colour.ASYNC, Colour.ASYNC_GENERATOR)

    @property
    def is_flow(self) -> bool:
        """Whether this is a flow, not a task."""
        return self.kind is Kind.FLOW


def make_spec(
    kind: Kind,
    fn: Callable[..., Any],
    options: Options,
    *,
    skip_first: bool = False,
    namespace: Mapping[str, Any] | None = None,
) -> Spec:
    """The spec of `fn`.

    `skip_first`: its first parameter is the object or class it is bound to. `namespace`: names
    that hints given as text may use, beside the function's globals and closure.
    """
    if not callable(fn):
        raise NotAFunctionError(kind.value, fn)
    called = _function_name(fn)
    binder = Binder(fn, name=called, kind=kind.value, skip_first=skip_first)
    is_flow = kind is Kind.FLOW
    name = options.name or (called.replace("_", "-") if is_flow else called)
    key = name if is_flow else f"{_module_of(fn)}.{options.name or _qualified_name(fn)}"
    model = ParameterModel(fn, binder, flow=name, namespace=namespace) if is_flow else None
    prepared = model is not None or options.run_name is not None or options.is_cached
    aftermath = any(options.hooks_for(type_) for type_ in FINAL_TYPES) or options.is_cached
    excluded = _excluded_from_key(fn, options)
    colour = _colour_of(fn)
    return Spec(
        kind,
        fn,
        options,
        binder,
        model,
        name,
        key,
        colour,
        Hints(fn, namespace or {}, marker=NOT_IN_KEY, marked=excluded),
        is_prepared=prepared,
        has_aftermath=aftermath or options.durability == "task",
        keeps_items=colour in _GENERATORS and options.persist_result is True,
    )


def _held_by(fn: Any, first: str) -> dict[str, Any]:
    """What a callable passes on by itself, under names that no parameter has."""
    held: dict[str, Any] = {}
    while isinstance(fn, partial):
        if fn.args:
            held[f"{first} of partial {len(held)}"] = fn.args
        fn = fn.func  # its keywords are defaults of the signature
    if isinstance(fn, MethodType):
        owner: Any = fn.__self__
        held[first] = f"{owner.__module__}.{owner.__qualname__}" if inspect.isclass(owner) else owner
    elif not (inspect.isroutine(fn) or inspect.isclass(fn)):
        held["self"] = fn
    return held


def _excluded_from_key(fn: Callable[..., Any], options: Options) -> frozenset[str]:
    policy = options.cache_policy
    if policy is None or not policy.without:
        return frozenset()
    known = parameter_names(fn)
    for name in sorted(policy.without - known.keys()):
        listed = ", ".join(map(repr, known)) or "none"
        raise OptionError("cache_policy", policy, f"names of parameters ({listed}) to be taken out, not {name!r}")
    return policy.without


def _function_name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    return getattr(fn, "__name__", None) or type(fn).__name__


def _qualified_name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def _module_of(fn: Callable[..., Any]) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    return module_name(getattr(fn, "__module__", None) or type(fn).__module__)


def _colour_of(fn: Callable[..., Any]) -> Colour:
    while isinstance(fn, partial):  # it may hold an object that is called
        fn = fn.func
    called: Any = fn
    kind: Any = type(fn)
    if not (inspect.isroutine(fn) or inspect.isclass(fn)):
        called = kind.__call__
    if inspect.isasyncgenfunction(called):
        return Colour.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(called):
        return Colour.ASYNC
    if inspect.isgeneratorfunction(called):
        return Colour.SYNC_GENERATOR
    return Colour.SYNC
