"""What was declared: frozen records of a decorated function and its options.

They stand *below* the engine, and the `Flow` and `Task` objects that people hold stand above it,
so that the engine never needs to know those. (Where the decorator object calls the engine and the
engine imports the decorator object, every module ends up in one cycle.)
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, Literal, TypeAlias, TypedDict, cast

from asyncflow.exceptions import NotAFunctionError, OptionError
from asyncflow.parameters import Binder, ParameterModel
from asyncflow.retries import Delay, Seconds, seconds_of
from asyncflow.states import FINAL_TYPES, State, StateType
from asyncflow.task_runners import ConcurrentTaskRunner

__all__ = ["Colour", "FlowOptions", "Hook", "Kind", "Options", "RunName", "Spec", "TaskOptions", "make_spec"]

Hook: TypeAlias = Callable[[Any, Any, State[Any]], Awaitable[None] | None]
"""`hook(flow_or_task, run, state)`, sync or async. One that raises is logged and changes nothing."""
RunName: TypeAlias = str | Callable[[], str] | Callable[[Mapping[str, Any]], str]
"""A template over the parameters (`"load-{day}"`), or a function of nothing or of the parameters."""
RetryCondition: TypeAlias = Callable[[Any, Any, State[Any]], bool | Awaitable[bool]]


class Kind(Enum):
    """Flow or task."""

    FLOW = "flow"
    TASK = "task"


class Colour(Enum):
    """How a body is run."""

    ASYNC = "async"
    SYNC = "sync"
    ASYNC_GENERATOR = "async generator"
    SYNC_GENERATOR = "sync generator"


class _CommonOptions(TypedDict, total=False):
    name: str | None
    version: str | None
    description: str | None
    retries: int
    retry_delay_seconds: Delay
    retry_jitter_factor: float
    retry_condition_fn: RetryCondition | None
    timeout_seconds: Seconds | None
    persist_result: bool | None
    durability: Literal["flow", "task"]
    log_prints: bool | None
    on_running: Iterable[Hook]
    on_completion: Iterable[Hook]
    on_failure: Iterable[Hook]
    on_cancellation: Iterable[Hook]
    on_crashed: Iterable[Hook]


class FlowOptions(_CommonOptions, total=False):
    """What `@flow(...)` and `flow.with_options(...)` take."""

    flow_run_name: RunName | None
    validate_parameters: bool
    task_runner: ConcurrentTaskRunner | None


class TaskOptions(_CommonOptions, total=False):
    """What `@task(...)` and `task.with_options(...)` take."""

    task_run_name: RunName | None
    tags: Iterable[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every option, checked and in one form; the decorators and `with_options` share it."""

    name: str | None = None
    version: str | None = None
    description: str | None = None
    run_name: RunName | None = None
    retries: int = 0
    retry_delay_seconds: float | tuple[float, ...] | Callable[[int], Seconds] = 0
    retry_jitter_factor: float = 0
    retry_condition_fn: RetryCondition | None = None
    timeout_seconds: float | None = None
    validate_parameters: bool = True
    task_runner: ConcurrentTaskRunner | None = None
    persist_result: bool | None = None
    durability: Literal["flow", "task"] = "flow"
    log_prints: bool | None = None
    tags: frozenset[str] = frozenset()
    on_running: tuple[Hook, ...] = ()
    on_completion: tuple[Hook, ...] = ()
    on_failure: tuple[Hook, ...] = ()
    on_cancellation: tuple[Hook, ...] = ()
    on_crashed: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        # What people gave comes in through `changed`, as anything; from here on the types above are true.
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def changed(self, kind: Kind, given: Mapping[str, Any]) -> Options:
        """A copy with the options `given` by a decorator or `with_options`; what is not named stays as it is."""
        unknown = given.keys() - _GIVEN[kind]
        if unknown:
            # The words of Python itself for a keyword that a function does not have.
            raise TypeError(f"@{kind.value} got an unexpected option {sorted(unknown)[0]!r}")
        return replace(self, **{_RENAMED.get(name, name): value for name, value in given.items()})

    def hooks_for(self, type_: StateType) -> tuple[Hook, ...]:
        """The hooks that run when a run gets to a state of this type."""
        name = _HOOKS.get(type_)
        return getattr(self, name) if name else ()


_GIVEN = {Kind.FLOW: FlowOptions.__optional_keys__, Kind.TASK: TaskOptions.__optional_keys__}
_RENAMED = {"flow_run_name": "run_name", "task_run_name": "run_name"}
_HOOKS = {
    StateType.RUNNING: "on_running",
    StateType.COMPLETED: "on_completion",
    StateType.FAILED: "on_failure",
    StateType.CANCELLED: "on_cancellation",
    StateType.CRASHED: "on_crashed",
}


def _text(option: str, given: Any) -> str | None:
    if not isinstance(given, str | None):
        raise OptionError(option, given, "text")
    return given


def _count(option: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise OptionError(option, given, "a whole number from 0")
    return given


def _delay(option: str, given: Any) -> Any:
    if isinstance(given, list | tuple):
        return tuple(seconds_of(option, each) for each in cast("Iterable[Any]", given))
    return given if callable(given) else seconds_of(option, given)


def _timeout(option: str, given: Any) -> float | None:
    return None if given is None else seconds_of(option, given) or None


def _condition(option: str, given: Any) -> Any:
    if given is not None and not callable(given):
        raise OptionError(option, given, "a function of (task, run, state)")
    return given


def _run_name(option: str, given: Any) -> Any:
    if given is not None and not (isinstance(given, str) or callable(given)):
        raise OptionError(option, given, 'a template such as "load-{day}", or a function')
    return given


def _task_runner(option: str, given: Any) -> Any:
    if given is not None and not isinstance(given, ConcurrentTaskRunner):
        raise OptionError(option, given, "ConcurrentTaskRunner(max_workers=...)")
    return given


def _durability(option: str, given: Any) -> Any:
    if given not in ("flow", "task"):
        raise OptionError(option, given, "'flow' or 'task'")
    return given


def _tags(option: str, given: Any) -> frozenset[str]:
    if isinstance(given, str):
        raise OptionError(option, given, f"several texts: tags=[{given!r}]")
    return frozenset(given)


def _hooks(option: str, given: Any) -> tuple[Hook, ...]:
    if callable(given) or isinstance(given, str):
        raise OptionError(option, given, f"a list of functions: {option}=[...]")
    hooks = tuple(given)
    for hook in hooks:
        if not callable(hook):
            raise OptionError(option, hook, "functions of (flow_or_task, run, state)")
    return hooks


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": _text,
    "version": _text,
    "description": _text,
    "run_name": _run_name,
    "retries": _count,
    "retry_delay_seconds": _delay,
    "retry_jitter_factor": seconds_of,
    "retry_condition_fn": _condition,
    "timeout_seconds": _timeout,
    "durability": _durability,
    "task_runner": _task_runner,
    "tags": _tags,
    **dict.fromkeys(_HOOKS.values(), _hooks),
}


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
    is_bound: bool = False
    """Whether `fn` is a method that has its object or class."""
    is_prepared: bool = False
    """Whether something is to be done before it begins: parameters to check, a name to make."""
    has_aftermath: bool = False
    """Whether something follows its final state even inside another run: hooks, or the wait for the disk."""
    persistence_warned: list[bool] = field(default_factory=lambda: [False])
    """Shared by the copies that `with_options` makes, so that a function warns once."""

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
    prepared = model is not None or options.run_name is not None
    aftermath = options.durability == "task" or any(options.hooks_for(type_) for type_ in FINAL_TYPES)
    return Spec(
        kind, fn, options, binder, model, name, key, _colour_of(fn), is_prepared=prepared, has_aftermath=aftermath
    )


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
    return getattr(fn, "__module__", None) or type(fn).__module__


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
