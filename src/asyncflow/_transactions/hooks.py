"""The hooks of a transaction: what completed runs leave to be done, and doing it once."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from asyncflow._backend.base import Host
from asyncflow._options import TransactionHook
from asyncflow._run import BESIDE, current_transaction
from asyncflow.abc import Clock
from asyncflow.logs import library_logger

__all__ = ["HookCall", "Rollback", "Staged", "call_hook", "names_of_hooks", "on_commit_calls", "on_rollback_calls"]

_MOST_INTERRUPTS = 2


class Staged(NamedTuple):
    """What a run that completed inside a transaction leaves to be done."""

    run: str
    transaction: Any
    """What its hooks get."""
    on_commit: tuple[TransactionHook, ...]
    on_rollback: tuple[TransactionHook, ...]


class HookCall(NamedTuple):
    """One hook that is to be called, once."""

    hook: TransactionHook
    run: str
    transaction: Any

    def __str__(self) -> str:
        return f"{_name(self.hook)} of {self.run}"


def on_commit_calls(staged: Iterable[Staged]) -> list[HookCall]:
    """The commit hooks, in the order they are to be called."""
    return [HookCall(hook, each.run, each.transaction) for each in staged for hook in each.on_commit]


def on_rollback_calls(staged: Iterable[Staged]) -> list[HookCall]:
    """The rollback hooks, the latest first."""
    calls = [HookCall(hook, each.run, each.transaction) for each in staged for hook in each.on_rollback]
    return calls[::-1]


def names_of_hooks(staged: Iterable[Staged]) -> list[str]:
    """All of them for a reader of the record, in the order they were staged."""
    return [
        f"{option} {_name(hook)} of {each.run}"
        for each in staged
        for option in ("on_commit", "on_rollback")
        for hook in getattr(each, option)
    ]


def _name(hook: TransactionHook) -> str:
    return getattr(hook, "__qualname__", None) or repr(hook)


async def call_hook(host: Host, call: HookCall) -> None:
    """Call a hook on `host`, the way hooks of states are called, and outside of any transaction.

    So what it calls itself is recorded and stays, whatever becomes of the transaction around.
    """
    token = current_transaction.set(BESIDE)
    try:
        answer = call.hook(call.transaction)
        if inspect.isawaitable(answer):
            await host.run_async(lambda: answer)
    finally:
        with suppress(ValueError):  # a coroutine that is closed or collected may end in another context
            current_transaction.reset(token)


class Rollback:
    """Calls rollback hooks one by one; what one raises is logged and does not stop the others."""

    def __init__(self, host: Host, calls: Iterable[HookCall], what: str, clock: Clock, seconds: float) -> None:
        self._host = host
        self._left = deque(calls)
        self._current: HookCall | None = None
        self._what = what
        self._clock = clock
        self._until = clock.monotonic() + seconds
        self._interrupts = 0
        self._is_over = False

    def end(self) -> list[str]:
        """Call no more of them; gives those that were not called to their end."""
        self._is_over = True
        cut = [] if self._current is None else [self._current]
        return [str(call) for call in (*cut, *self._left)]

    async def run(self) -> None:
        # Looked at before each: a sync hook that blocks can be cut by nobody, and one that is deaf to
        # the cancellation at the deadline goes on alone.
        while self._left and not self._is_over and self._clock.monotonic() < self._until:
            self._current = self._left.popleft()
            try:
                await call_hook(self._host, self._current)
            except BaseException as error:
                if not self._goes_on_after(error):
                    raise
                library_logger().exception("rollback hook %s raised (%s)", self._current, self._what)
                # Where it was the deadline that ended the hook, this ends here as well; where the
                # hook waited for something that was cancelled, it is an error like any other.
                await self._host.sleep(0)
            self._current = None

    def _goes_on_after(self, error: BaseException) -> bool:
        if isinstance(error, KeyboardInterrupt):  # it cuts one hook short, not the undoing of everything else
            self._interrupts += 1
            return self._interrupts <= _MOST_INTERRUPTS
        return not self._is_over and not isinstance(error, GeneratorExit)
