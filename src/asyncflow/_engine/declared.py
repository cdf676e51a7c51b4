"""The flows that this process has declared, by name: what a recorded run can be run again with."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakValueDictionary

from asyncflow._entrypoints import entrypoint_of
from asyncflow._specs import Spec

__all__ = ["Declared", "declare", "find_declared"]


class Declared(Protocol):
    """A flow, as people hold it."""

    @property
    def spec(self) -> Spec:
        """For the engine: what was declared."""
        ...


_by_name: dict[str, WeakValueDictionary[str | None, Declared]] = {}
"""By name and place: a flow that is declared again at its place, by a reload or a second call, takes that place."""


def declare(flow: Declared) -> None:
    """A flow was declared."""
    _by_name.setdefault(flow.spec.name, WeakValueDictionary())[entrypoint_of(flow.spec.fn)] = flow


def find_declared(name: str, entrypoint: str | None) -> list[Declared]:
    """The flows of this name; only the one at `entrypoint`, if there is one."""
    named = _by_name.get(name)
    if named is None:
        return []
    there = named.get(entrypoint)
    return list(named.values()) if there is None else [there]
