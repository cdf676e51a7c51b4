"""People's functions: hooks, run names, retry conditions. A hook that raises is logged and changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from asyncflow._engine.records import record_of
from asyncflow._run import BESIDE, Run, current_transaction
from asyncflow._specs import Hook, RunName
from asyncflow.context import current_run
from asyncflow.exceptions import OptionError
from asyncflow.logs import library_logger
from asyncflow.states import State, StateType

__all__ = ["allows_retry", "name_of_run", "run_hooks"]


async def run_hooks(run: Run, type_: StateType) -> None:
    """Call the hooks for a state of this type, in the order given."""
    hooks = run.spec.options.hooks_for(type_)
    if not hooks:
        return
    record, state = record_of(run), run.state()
    token, transaction = current_run.set(run), current_transaction.set(BESIDE)
    try:
        for hook in hooks:
            try:
                await _call(run, hook, record, state)
            except Exception:  # noqa: BLE001  # theirs, whatever it is: it changes nothing
                library_logger().exception(
                    "hook %s of %s run %r raised", _name(hook), run.spec.kind.value, run.display_name
                )
    finally:
        current_transaction.reset(transaction)
        current_run.reset(token)


async def allows_retry(run: Run, state: State[Any]) -> bool:
    """What `retry_condition_fn` says; a condition that raises says no, and is logged."""
    condition = run.spec.options.retry_condition_fn
    if condition is None:
        return True
    try:
        return bool(await _call(run, condition, record_of(run), state))
    except Exception:  # noqa: BLE001  # likewise
        library_logger().exception("retry_condition_fn of %s %r raised", run.spec.kind.value, run.spec.name)
        return False


async def _call(run: Run, fn: Callable[..., Any], record: Any, state: State[Any]) -> Any:
    answer = fn(run.owner, record, state)
    if inspect.isawaitable(answer):
        return await run.host.run_async(lambda: answer)
    return answer


def _name(hook: Hook) -> str:
    return getattr(hook, "__qualname__", None) or repr(hook)


def name_of_run(run: Run) -> str | None:
    """The name its template or function gives, or None when it has neither.

    Raises `OptionError` when the template names no parameter or the function gives no text.
    """
    given: RunName | None = run.spec.options.run_name
    function: Any = given
    option = f"{run.spec.kind.value}_run_name"
    if given is None:
        return None
    if isinstance(given, str):
        try:
            return given.format(**run.arguments)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
            names = ", ".join(run.arguments) or "none"
            raise OptionError(option, given, f"a template over the parameters ({names}): {error!r}") from error
    token = current_run.set(run)
    try:
        takes = len(inspect.signature(function).parameters)
        name: Any = function(dict(run.arguments)) if takes else function()
    finally:
        current_run.reset(token)
    if not isinstance(name, str):
        raise OptionError(option, name, "a function that returns text")
    return name
