"""Why runs are cancelled."""

from __future__ import annotations

__all__ = ["Cause"]


class Cause:
    """Why a run is being cancelled. The first one wins and is the same for the whole subtree."""

    __slots__ = ("error", "is_shutdown", "message", "until")

    def __init__(
        self,
        message: str,
        *,
        until: float | None = None,
        error: BaseException | None = None,
        is_shutdown: bool = False,
    ) -> None:
        self.message = message
        self.is_shutdown = is_shutdown
        """Whether its runtime is stopping: who is stopped by it is interrupted, and may be resumed."""
        self.until = until
        """When the grace time of everything it was told to is over, by the runtime's clock; None before it begins."""
        self.error = error
        """What the outermost run's caller gets instead of a cancellation: a `SystemExit` of a submitted run."""
