"""What a run left behind the last time it ran: the recorded runs below it, found again by what they are and were given.

Not by when they began: under `gather` and in task groups that is another order each time, and an edit
of the code would shift all that comes after it. Only calls that are equal in everything are told apart
by their order, the one that began first being answered first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from asyncflow._rows import RunRow

__all__ = ["Past"]


class Past:
    """The recorded children of a run that runs again. Used on the run's host only."""

    __slots__ = ("_askers", "_left", "is_retry")

    def __init__(self, rows: Iterable[RunRow], *, is_retry: bool = False) -> None:
        # In the order they began: that of submitting is another one where some waited for a future.
        began_first = sorted(rows, key=lambda row: (row.started or row.ended or row.created, row.id))
        self.is_retry = is_retry
        """Whether they are of an earlier attempt of the same process, not of an earlier life."""
        self._left: dict[tuple[int, str, bytes], deque[RunRow]] = {}
        self._askers: dict[tuple[int, str, bytes], object] = {}
        for row in began_first:
            if row.digest is not None:
                self._left.setdefault((row.kind, row.key, row.digest), deque()).append(row)

    def take(self, kind: int, key: str, digest: bytes, asker: object) -> tuple[RunRow | None, bool]:
        """The record of a call that is made again, each of them once; and whether it could be another one's.

        It could when an equal call was made by another task of the host (`asker`): which of the two
        was which the last time, nothing tells.
        """
        identity = (kind, key, digest)
        left = self._left.get(identity)
        if not left:
            return None, False
        first = self._askers.setdefault(identity, asker)
        return left.popleft(), first is not asker
