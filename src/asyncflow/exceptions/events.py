"""Errors about events."""

from __future__ import annotations

from asyncflow.exceptions.base import AsyncflowError

__all__ = ["EventPayloadError", "EventsGoneError"]


class EventPayloadError(AsyncflowError, TypeError):
    """The payload of an event cannot be kept."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(
            f"the payload of event {name!r} cannot be kept: {problem}. Give plain data, a dataclass or a pydantic "
            f"model; what is large belongs into a result or a file that the event names"
        )


class EventsGoneError(AsyncflowError, LookupError):
    """Events after a cursor are not kept any more: retention has deleted them.

    ``commits`` is how many commits told them, each of one event or more. Reading after ``oldest``, a
    cursor, gives what is left.
    """

    def __init__(self, after: str, *, oldest: str, commits: int) -> None:
        self.after = after
        self.oldest = oldest
        self.commits = commits
        super().__init__(
            f"what happened after {after!r} is not kept any more: the events of {commits:,} commits were deleted "
            f"(see the setting retention_days); go on after {oldest!r} to read what is left"
        )
