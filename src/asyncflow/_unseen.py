"""Failures of submitted runs that nobody looked at: told once, when nobody can look any more."""

from __future__ import annotations

from asyncflow._run import Run
from asyncflow.exceptions import RunCancelledError, RunInterruptedError
from asyncflow.logs import library_logger

__all__ = ["forsake", "keep_if_failed", "warn_of_unseen"]

_MOST_NAMED = 5


def keep_if_failed(run: Run) -> None:
    """A submitted run has ended; if it failed, the run around it tells of that at its own end."""
    if run.error is None or run.looked_at or isinstance(run.error, RunCancelledError | RunInterruptedError):
        return
    what = f"{run.display_name!r} ({run.status.message})"
    parent = run.parent
    if parent is not None:
        parent.unseen = parent.unseen or {}
        parent.unseen[run.id] = what
    elif run.is_forsaken:
        _warn([what], f"the runtime on {str(run.services.settings.home)!r}")


def forsake(run: Run) -> None:
    """Nobody holds the future of an outermost run any more."""
    run.is_forsaken = True
    if run.is_settled:
        keep_if_failed(run)


def warn_of_unseen(run: Run) -> None:
    """Tell, at the end of a run, of those that it submitted."""
    unseen, run.unseen = run.unseen, None
    if unseen:
        _warn(list(unseen.values()), f"{run.spec.kind.value} run {run.display_name!r}")


def _warn(lost: list[str], where: str) -> None:
    named = ", ".join(lost[:_MOST_NAMED])
    more = f" and {len(lost) - _MOST_NAMED:,} more" if len(lost) > _MOST_NAMED else ""
    library_logger().warning(
        "submitted runs failed in %s, and nobody looked at their futures: %s%s", where, named, more
    )
