"""What the runs of a runtime share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from asyncflow._backend.base import Host
from asyncflow._backend.threads import ThreadPool
from asyncflow._gates import Gate
from asyncflow._key_locks import KeyLocks
from asyncflow._limiter import Limiter
from asyncflow._limits import LimitRegistry
from asyncflow._spans import SpanSource
from asyncflow.abc import Clock, ResultStore, RunStore
from asyncflow.settings import Settings

__all__ = ["Intake", "Services"]

T = TypeVar("T")


class Intake:
    """Which outermost runs may begin."""

    __slots__ = ("_is_open", "_wakes", "drain_until", "is_draining")

    def __init__(self) -> None:
        self._is_open = True
        self._wakes: dict[Callable[[], object], None] = {}
        self.is_draining = True
        """Once it is not open: whether those may that a run which goes on has detached from itself."""
        self.drain_until: float | None = None
        """The end of the drain window, by the runtime's clock; None before it begins."""

    @property
    def is_open(self) -> bool:
        """Whether any may."""
        return self._is_open

    @is_open.setter
    def is_open(self, value: bool) -> None:
        # From any thread, or a signal handler: no lock, and nothing that waits.
        self._is_open = value
        for wake in list(self._wakes):
            wake()

    def attend(self, wake: Callable[[], object]) -> None:
        """Have `wake`, which must not block, called when it is closed."""
        self._wakes[wake] = None

    def desert(self, wake: Callable[[], object]) -> None:
        """Do not call it any more."""
        self._wakes.pop(wake, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a runtime gives to the runs in it."""

    store: RunStore
    results: ResultStore | None
    """Where large values are read back from; None when rows carry everything."""
    settings: Settings
    clock: Clock
    threads: ThreadPool
    limits: LimitRegistry = field(default_factory=LimitRegistry)
    """The named limits that `concurrency` and `rate_limit` share among these runs."""
    tag_limits: Mapping[str, Limiter] = field(default_factory=dict[str, Limiter])
    """The places of the task bodies with a tag, for the tags that are limited."""
    key_locks: KeyLocks = field(default_factory=KeyLocks)
    """One holder at a time for each key; among all processes on the home where it was given a folder."""
    flights: dict[str, Any] = field(default_factory=dict[str, Any])
    """The ways to cached values that runs are on, by key; see `_engine.caching`."""
    leaders: dict[Any, Any] = field(default_factory=dict[Any, Any])
    """The same by the run whose body makes the value."""
    intake: Intake = field(default_factory=Intake)
    """Closed when the runtime is being left; from then on what its runs are cancelled for interrupts them."""
    spans: SpanSource | None = None
    """Asked for each outermost run what traces it; None when nothing does."""
    recorders: WeakValueDictionary[bytes, Any] = field(default_factory=WeakValueDictionary[bytes, Any])
    """What records the items of the runs that go on here, by run; see `_engine.items`."""
    held: dict[bytes, Gate] = field(default_factory=dict[bytes, Gate])
    """What keeps runs from beginning whose outermost run is paused, by that run; see `_engine.pausing`."""
    pauses: dict[bytes, dict[Any, None]] = field(default_factory=dict[bytes, dict[Any, None]])
    """The pauses that flow runs are in, the longest first, by run."""
    received: WeakKeyDictionary[Any, dict[str, Any]] = field(default_factory=WeakKeyDictionary[Any, dict[str, Any]])
    """What the bodies of live runs have received so far, by run and key."""
    outermost: WeakSet[Any] = field(default_factory=WeakSet[Any])
    """The live outermost runs: what is still open when the runtime closes is recorded Crashed."""

    async def ask(self, host: Host, question: Callable[[], T]) -> T:
        """Call something that reads or writes the store, where it blocks nobody."""
        return question() if self.store.is_instant else await host.run_blocking(question)

    def live(self) -> list[Any]:
        """The outermost runs, as of now; from any thread."""
        while True:
            try:
                return list(self.outermost)
            except RuntimeError:  # another thread has begun or ended one meanwhile
                continue
