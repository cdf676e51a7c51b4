"""What loops and threads wait for beside their timers: the disk. Virtual time stands still for it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from asyncflow.abc import RunStore, Ticket

__all__ = ["disk_is_awaited", "no_longer_awaited", "waiting_for_disk"]

_awaited: dict[Ticket, RunStore] = {}
"""Changed by single calls: any thread."""


@contextmanager
def waiting_for_disk(store: RunStore, ticket: Ticket) -> Generator[None]:
    """Around the wait for a ticket."""
    if store.is_instant:  # it has answered, or never will
        yield
        return
    _awaited[ticket] = store
    try:
        yield
    finally:
        _awaited.pop(ticket, None)


def no_longer_awaited(tickets: Iterable[Ticket]) -> None:
    """Who waits for them has been told, or will not be; from any thread."""
    for ticket in tickets:
        _awaited.pop(ticket, None)


def disk_is_awaited() -> bool:
    """Whether somebody waits for a store that is writing. One that cannot write now is not waited for: time goes on."""
    return any(store.last_error is None for store in list(_awaited.values()))
