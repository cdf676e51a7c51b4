"""The names that limits are shared under.

A limit is made by the first who uses its name and forgotten with the last, so names may be made up
at run time ("user-4711") as freely as one likes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock
from typing import Generic, Protocol, TypeVar

from asyncflow._limiter import Limiter
from asyncflow._rates import RateLimiter
from asyncflow.exceptions import LimitConflictError

__all__ = ["PROCESS_LIMITS", "LimitRegistry", "Named", "Names", "Use"]


class _Limit(Protocol):
    def is_spent(self) -> bool: ...


class _Holder(Protocol):
    @property
    def display_name(self) -> str: ...


L = TypeVar("L", bound=_Limit)
_FEW = 64


class Use(Generic[L]):
    """Somebody's use of a named limit, from before the wait to the release."""

    __slots__ = ("count", "holder", "holds", "named")

    def __init__(self, holder: _Holder | None, count: int) -> None:
        self.holder: _Holder | None = holder
        """The run, until the use ends; None outside of any."""
        self.count: int = count
        self.holds: bool = False
        self.named: Named[L] | None = None
        """What is used; None before and after."""

    def end(self) -> None:
        """Leave the limit; a second time does nothing."""
        if self.named is not None:
            self.named.names.leave(self, self.named)

    def describe(self) -> str:
        """Who it is, for messages."""
        holder = self.holder
        return "code outside of any run" if holder is None else f"run {holder.display_name!r}"


class Named(Generic[L]):
    """A limit under its name."""

    __slots__ = ("limiter", "name", "names", "users", "value")

    def __init__(self, names: Names[L], name: str, value: float, limiter: L) -> None:
        self.names: Names[L] = names
        self.name: str = name
        self.value: float = value
        self.limiter: L = limiter
        self.users: dict[Use[L], None] = {}

    def holders(self) -> list[str]:
        """Who holds some of it."""
        return [use.describe() for use in list(self.users) if use.holds]

    def uses(self) -> list[Use[L]]:
        """Who holds some of it or waits for it, as of now; from any thread."""
        return self.names.uses_of(self)


class Names(Generic[L]):
    """The limits of one kind by their names, each kept as long as it makes a difference."""

    __slots__ = ("_kind", "_lock", "_named", "_sweep_at")

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = RLock()
        self._named: dict[str, Named[L]] = {}
        self._sweep_at = _FEW

    def __len__(self) -> int:
        return len(self._named)

    def join(self, use: Use[L], name: str, value: float, make: Callable[[L | None], L]) -> L:
        """Begin to use a limit; `make` gives a new one from the old one, where there is one that nobody uses.

        Raises `LimitConflictError` when the name is in use with another value.
        """
        with self._lock:
            named = self._named.get(name)
            if named is None or (named.value != value and not named.users):
                self._sweep()
                named = Named(self, name, value, make(None if named is None else named.limiter))
            elif named.value != value:
                raise LimitConflictError(self._kind, name, in_use=named.value, asked=value)
            use.named = named
            named.users[use] = None
            self._named[name] = named  # also when it was there: its last user may have been collected just now
            return named.limiter

    def leave(self, use: Use[L], named: Named[L]) -> None:
        """End a use."""
        with self._lock:
            use.named = use.holder = None  # contexts of tasks and threads may remember the use much longer
            named.users.pop(use, None)
            if not named.users and named.limiter.is_spent() and self._named.get(named.name) is named:
                del self._named[named.name]

    def now(self) -> list[Named[L]]:
        """The limits there are, as of now; from any thread."""
        with self._lock:
            return list(self._named.values())

    def uses_of(self, named: Named[L]) -> list[Use[L]]:
        """Its uses, as of now; from any thread."""
        with self._lock:
            return list(named.users)

    def _sweep(self) -> None:
        """Forget windows that have emptied since they were left; so seldom that it costs next to nothing."""
        if len(self._named) < self._sweep_at:
            return
        for name, named in list(self._named.items()):
            if not named.users and named.limiter.is_spent():
                self._named.pop(name, None)
        self._sweep_at = max(_FEW, 2 * len(self._named))


class LimitRegistry:
    """The named limits that the flows of a runtime share."""

    __slots__ = ("concurrency", "rates")

    concurrency: Names[Limiter]
    rates: Names[RateLimiter]

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as in a new child process: who uses limits in the parent does not in the child."""
        self.concurrency = Names("concurrency")
        self.rates = Names("rate_limit")


PROCESS_LIMITS = LimitRegistry()
"""Those of code outside of any run, while no runtime is open."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS_LIMITS.forget)
