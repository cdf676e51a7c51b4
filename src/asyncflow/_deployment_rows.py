"""Deployments, their rules, and what is told to live runs: rows as stores keep them.

Times are microseconds since 1970 UTC, ids 16 bytes, as in `_rows`.
"""

from __future__ import annotations

from typing import NamedTuple

from asyncflow._rows import RunRow

__all__ = [
    "CANCEL_NEW",
    "ENQUEUE",
    "NOBODY",
    "SCHEDULE",
    "TRIGGER",
    "DeploymentRow",
    "Fired",
    "InputRow",
    "RequestRow",
    "RuleRow",
]

NOBODY = 0
"""The owner of a run that waits to be started: no store has this number."""
SCHEDULE, TRIGGER = range(2)
ENQUEUE, CANCEL_NEW = "enqueue", "cancel_new"


class DeploymentRow(NamedTuple):
    """A flow that is run when asked, by whichever process serves it."""

    id: bytes
    """Made of "flow/name", so that two processes make the same."""
    flow: str
    name: str
    entrypoint: str | None
    """Where its flow is in the code; None when no other process could find it."""
    data: str
    """JSON object of what the store does not look at: parameters, their schema, tags, description, version."""
    paused: int
    """1 while its rules fire nothing. Runs that somebody asks for are run all the same."""
    concurrency_limit: int | None
    """How many of its runs may go on at a time; None = any number."""
    collision: str
    """What becomes of a due run for which there is no place: it waits (ENQUEUE), or is Cancelled (CANCEL_NEW)."""
    created: int
    updated: int


class RuleRow(NamedTuple):
    """A schedule or an event trigger of a deployment, and how far it has been decided."""

    id: bytes
    deployment_id: bytes
    kind: int
    """SCHEDULE or TRIGGER."""
    slug: str
    """Its name among the rules of its deployment."""
    data: str
    """JSON of the rule itself: it is compared as text."""
    active: int
    """0 while it fires nothing."""
    state: str
    """JSON of what was decided so far: it is compared as text, too."""


class Fired(NamedTuple):
    """What came of firing a rule."""

    done: bool
    """False when it was in another state, or may not fire: then nothing was done."""
    runs: list[RunRow]
    """The runs of this firing as they are recorded, in the order they were given."""


class RequestRow(NamedTuple):
    """Something that the owner of a live run is asked to do with it."""

    id: int
    owner: int
    """Which store is asked; see `RunStore.owner`."""
    run_id: bytes
    kind: str
    data: str | None
    """JSON of what else is to be known."""
    asker: int
    """Which store asks."""
    at: int
    answer: str | None
    """None until it is done, or refused."""


class InputRow(NamedTuple):
    """Something that was sent to a run under a key. It is never consumed: a run that begins anew receives it again."""

    run_id: bytes
    key: str
    n: int
    """Its place among those of its key, from 0."""
    data: str
    """JSON."""
    sender: bytes | None
    """The run that sent it; None when it was no run."""
    at: int
