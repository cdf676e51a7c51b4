"""Why runs are cancelled."""

from __future__ import annotations

from typing import Any

__all__ = ["Cause"]


class Cause:
    """Why a run is being cancelled. The first one wins and is the same for the whole subtree."""

    __slots__ = ("error", "facts", "message", "rests_as", "until")

    def __init__(
        self,
        message: str,
        *,
        until: float | None = None,
        error: BaseException | None = None,
        rests_as: str | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.message = message
        self.rests_as = rests_as
        """The name of the Paused state of whoever is stopped by it and may be resumed; None for who is cancelled."""
        self.facts = facts
        """What else that state of the outermost run tells."""
        self.until = until
        """When the grace time of everything it was told to is over, by the runtime's clock; None before it begins."""
        self.error = error
        """What the outermost run's caller gets instead of a cancellation: a `SystemExit` of a submitted run."""
