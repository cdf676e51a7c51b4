"""What the live runs of this process wait for: for people who ask why nothing goes on."""

from __future__ import annotations

from uuid import UUID

from asyncflow._snapshots import await_tree_of
from asyncflow._waits import AwaitTree, CodePlace, CycleStep, LiveRun, LiveWait, PlaceHolder
from asyncflow.exceptions import RunNotFoundError
from asyncflow.ids import parse_id
from asyncflow.runtime import HOME, Runtime

__all__ = ["AwaitTree", "CodePlace", "CycleStep", "LiveRun", "LiveWait", "PlaceHolder", "snapshot"]


def snapshot(runtime: Runtime | None = None, *, run_id: UUID | str | None = None) -> AwaitTree:
    """What the live runs of `runtime` wait for, or of all open runtimes of this process; at once.

    From any thread, a debugger or a signal handler: `print(asyncflow.await_tree.snapshot())`. With
    `run_id` it is that run and all below it; there is none where it is not live here.
    """
    services = HOME.every_open() if runtime is None else [each for each in (runtime.services,) if each is not None]
    return await_tree_of(services, None if run_id is None else _id_of(run_id))


def _id_of(run_id: UUID | str) -> bytes:
    try:
        return parse_id(run_id)
    except (ValueError, AttributeError, TypeError):
        raise RunNotFoundError(run_id) from None
