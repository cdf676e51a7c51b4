"""What the runs of a runtime share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from asyncflow._backend.threads import ThreadPool
from asyncflow.abc import Clock, ResultStore, RunStore
from asyncflow.settings import Settings

__all__ = ["Services"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a runtime gives to the runs in it."""

    store: RunStore
    results: ResultStore | None
    """Where large values are read back from; None when rows carry everything."""
    settings: Settings
    clock: Clock
    threads: ThreadPool
    outermost: WeakSet[Any] = field(default_factory=WeakSet[Any])
    """The live outermost runs: what is still open when the runtime closes is recorded Crashed."""
