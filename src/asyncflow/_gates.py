"""Gates: what keeps others waiting until it is opened, once, from any thread."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

__all__ = ["Gate"]


class Gate:
    """Closed until `open` is called. Each who waits brings what wakes it: they wait on hosts of their own."""

    __slots__ = ("_lock", "_wakes", "is_open")

    def __init__(self) -> None:
        self._lock = Lock()
        self._wakes: dict[Callable[[], object], None] = {}
        self.is_open = False

    def open(self) -> None:
        """Let everybody go on; a second time changes nothing."""
        with self._lock:
            self.is_open = True
            wakes, self._wakes = self._wakes, {}
        for wake in wakes:
            wake()

    def attend(self, wake: Callable[[], object]) -> None:
        """Have `wake` called when it opens, or now where it is open."""
        with self._lock:
            if not self.is_open:
                self._wakes[wake] = None
                return
        wake()

    def desert(self, wake: Callable[[], object]) -> None:
        """Wait no longer."""
        with self._lock:
            self._wakes.pop(wake, None)
