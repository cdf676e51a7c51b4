"""The options of a declaration: what people give to `@flow`, `@task` and `with_options`, checked once.

`Options` holds them in one form, so that the engine never asks what else could have been given.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal, TypeAlias, TypedDict, cast

from asyncflow.cache_policies import CachePolicy
from asyncflow.exceptions import OptionError
from asyncflow.retries import Delay, Seconds, seconds_of
from asyncflow.states import State, StateType
from asyncflow.task_runners import ConcurrentTaskRunner

__all__ = [
    "CacheKeyFunction",
    "FlowOptions",
    "Hook",
    "Kind",
    "Options",
    "RunName",
    "TaskOptions",
    "TransactionHook",
]

Hook: TypeAlias = Callable[[Any, Any, State[Any]], Awaitable[None] | None]
"""`hook(flow_or_task, run, state)`, sync or async. One that raises is logged and changes nothing."""
RunName: TypeAlias = str | Callable[[], str] | Callable[[Mapping[str, Any]], str]
"""A template over the parameters (`"load-{day}"`), or a function of nothing or of the parameters."""
RetryCondition: TypeAlias = Callable[[Any, Any, State[Any]], bool | Awaitable[bool]]
CacheKeyFunction: TypeAlias = Callable[[Any, dict[str, Any]], str | None]
"""`key(context, arguments)`: what the value is kept under, or None where it is not to be cached."""
TransactionHook: TypeAlias = Callable[[Any], Awaitable[None] | None]
"""`hook(transaction)`, sync or async."""


class Kind(Enum):
    """Flow or task."""

    FLOW = "flow"
    TASK = "task"


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
    resume: Literal["auto"] | None


class TaskOptions(_CommonOptions, total=False):
    """What `@task(...)` and `task.with_options(...)` take."""

    task_run_name: RunName | None
    tags: Iterable[str]
    cache_policy: CachePolicy | None
    cache_key_fn: CacheKeyFunction | None
    cache_expiration: Seconds | None
    refresh_cache: bool | None
    reuse_on_flow_retry: bool
    on_commit: Iterable[TransactionHook]
    on_rollback: Iterable[TransactionHook]


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
    resume: Literal["auto"] | None = None
    tags: frozenset[str] = frozenset()
    cache_policy: CachePolicy | None = None
    cache_key_fn: CacheKeyFunction | None = None
    cache_expiration: float | None = None
    refresh_cache: bool | None = None
    reuse_on_flow_retry: bool = True
    on_commit: tuple[TransactionHook, ...] = ()
    on_rollback: tuple[TransactionHook, ...] = ()
    on_running: tuple[Hook, ...] = ()
    on_completion: tuple[Hook, ...] = ()
    on_failure: tuple[Hook, ...] = ()
    on_cancellation: tuple[Hook, ...] = ()
    on_crashed: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        # What people gave comes in through `changed`, as anything; from here on the types above are true.
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.persist_result is False and self.is_cached:
            raise OptionError("persist_result", False, "True or None for a task whose value is cached (or NO_CACHE)")

    def changed(self, kind: Kind, given: Mapping[str, Any]) -> Options:
        """A copy with the options `given` by a decorator or `with_options`; what is not named stays as it is."""
        unknown = given.keys() - _GIVEN[kind]
        if unknown:
            # The words of Python itself for a keyword that a function does not have.
            raise TypeError(f"@{kind.value} got an unexpected option {sorted(unknown)[0]!r}")
        changes = {_RENAMED.get(name, name): value for name, value in given.items()}
        if changes.get("cache_key_fn") is not None:
            if changes.get("cache_policy") is not None:
                raise OptionError(
                    "cache_policy", changes["cache_policy"], "either a policy or a cache_key_fn, not both"
                )
            changes["cache_policy"] = None  # what `with_options` says last is what holds
        elif changes.get("cache_policy") is not None:
            changes["cache_key_fn"] = None
        return replace(self, **changes)

    @property
    def is_cached(self) -> bool:
        """Whether values are looked for in the cache, and kept there."""
        return self.cache_key_fn is not None or bool(self.cache_policy)

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
_TRANSACTION_HOOKS = ("on_commit", "on_rollback")


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


def _expiration(option: str, given: Any) -> float | None:
    return None if given is None else seconds_of(option, given)


def _cache_policy(option: str, given: Any) -> Any:
    if given is not None and not isinstance(given, CachePolicy):
        raise OptionError(option, given, "a policy of asyncflow.cache_policies, such as INPUTS, or None")
    return given


def _cache_key_fn(option: str, given: Any) -> Any:
    if given is not None and (not callable(given) or inspect.iscoroutinefunction(given)):
        raise OptionError(option, given, "a plain function of (context, arguments) that gives text or None")
    return given


def _yes_or_no(option: str, given: Any) -> Any:
    if not isinstance(given, bool):
        raise OptionError(option, given, "True or False")
    return given


def _maybe_yes_or_no(option: str, given: Any) -> Any:
    return None if given is None else _yes_or_no(option, given)


def _resume(option: str, given: Any) -> Any:
    if given not in ("auto", None):
        raise OptionError(option, given, "'auto' or None")
    return given


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


def _hooks(option: str, given: Any) -> tuple[Callable[..., Any], ...]:
    if callable(given) or isinstance(given, str):
        raise OptionError(option, given, f"a list of functions: {option}=[...]")
    hooks = tuple(given)
    for hook in hooks:
        if not callable(hook):
            takes = "(transaction)" if option in _TRANSACTION_HOOKS else "(flow_or_task, run, state)"
            raise OptionError(option, hook, f"functions of {takes}")
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
    "resume": _resume,
    "cache_policy": _cache_policy,
    "cache_key_fn": _cache_key_fn,
    "cache_expiration": _expiration,
    "refresh_cache": _maybe_yes_or_no,
    "reuse_on_flow_retry": _yes_or_no,
    **dict.fromkeys((*_HOOKS.values(), *_TRANSACTION_HOOKS), _hooks),
}
