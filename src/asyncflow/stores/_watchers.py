"""Those who want to know of each commit."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

__all__ = ["Watchers"]


class Watchers:
    """Calls to make after each commit; added and ended by any thread, made by the one that commits."""

    def __init__(self) -> None:
        self._changing = Lock()
        self._wakes: tuple[list[Callable[[], None]], ...] = ()  # replaced as a whole: who walks over it needs no lock

    def add(self, wake: Callable[[], None]) -> Callable[[], None]:
        entry = [wake]  # a list is equal to no other one by identity: the same call may be added twice
        with self._changing:
            self._wakes = (*self._wakes, entry)

        def end() -> None:
            with self._changing:
                self._wakes = tuple(each for each in self._wakes if each is not entry)

        return end

    def wake(self) -> None:
        for (wake,) in self._wakes:
            try:
                wake()
            except Exception as error:  # noqa: BLE001  # its loop may be gone; the others are to know
                _report(f"telling of a commit failed: {error!r}")


def _report(message: str) -> None:
    import logging  # at first use: see `asyncflow.logs`

    logging.getLogger("asyncflow").error(message)
