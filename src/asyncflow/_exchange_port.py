"""The part of the store by which processes reach one another: requests, inputs, and a bell for each.

A bell says that there may be something to look for, and nothing else: what there is, the store tells. So a
bell may be lost, or rung for nothing. Who listens also looks by itself every second or so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from asyncflow._deployment_rows import InputRow, RequestRow

__all__ = ["Exchange"]


class Exchange(ABC):
    """Requests to the owners of live runs, inputs of runs, and bells.

    All of it blocks until what it did is on disk, except for `ring` and `listen`; errors are as for the
    rest of the store. Writing rings no bell. Moments are in microseconds since 1970 UTC.
    """

    # --- requests: kept until they are forgotten, or nobody is left to answer or to read the answer

    @abstractmethod
    def ask(self, owner: int, run_id: bytes, kind: str, data: str | None, now: int) -> int:
        """Ask the store of that number to do something with a run; gives the request's id."""

    @abstractmethod
    def read_requests(self) -> list[RequestRow]:
        """What this store is asked and has not answered yet, in the order it was asked."""

    @abstractmethod
    def answer(self, request_id: int, text: str) -> None:
        """Say what came of a request: the first answer counts. Nothing happens when it was forgotten meanwhile."""

    @abstractmethod
    def read_answer(self, request_id: int) -> str | None:
        """The answer; None as long as there is none, and when the owner has died."""

    @abstractmethod
    def forget(self, request_id: int) -> None:
        """Delete a request, answered or not."""

    # --- inputs

    @abstractmethod
    def add_input(self, run_id: bytes, key: str, data: str, sender: bytes | None, now: int) -> int:
        """Keep something for a run under a key; gives its place among those of this key, from 0.

        It goes with its run.
        """

    @abstractmethod
    def read_inputs(self, run_id: bytes, key: str, after: int, limit: int) -> list[InputRow]:
        """What was sent to a run under a key and has a place above `after`, in order."""

    # --- bells

    @abstractmethod
    def ring(self, owners: Iterable[int] | None = None) -> None:
        """Wake those who listen to these stores; None = to every store on the home, this one too.

        Never waits for anybody and never raises: a store that is gone, or that nobody listens to, is none
        to wake.
        """

    @abstractmethod
    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called when this store's bell has rung, by some thread; gives what ends that.

        Many rings may be one call, and there may be calls for nothing, one more while it is being ended. It
        must not block or raise.
        """
