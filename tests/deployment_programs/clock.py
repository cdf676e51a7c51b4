"""A wall clock that runs faster than the machine's, and is set forward and back at chosen moments."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Step", "SteppedClock", "clock_of_environment", "in_environment"]


class Step(NamedTuple):
    """For how long a clock is wrong, and by how much; in seconds."""

    begin: float
    """On the machine's wall clock."""
    end: float
    offset: float


class SteppedClock:
    """All that are made alike agree, in whatever process, but for their steps."""

    def __init__(self, begin: float, speed: float = 1.0, steps: Iterable[Step] = ()) -> None:
        self._begin = begin
        self._speed = speed
        self._steps = list(steps)

    def now(self) -> float:
        real = time.time()
        offset = sum(step.offset for step in self._steps if step.begin <= real < step.end)
        return self._begin + (real - self._begin) * self._speed + offset

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(min(seconds, threading.TIMEOUT_MAX))


def in_environment(begin: float, speed: float = 1.0, steps: Iterable[Step] = ()) -> dict[str, str]:
    """What a program's environment says of its clock."""
    return {"CLOCK": json.dumps([begin, speed, [*steps]])}


def clock_of_environment() -> SteppedClock | None:
    """The clock that this process is to have; None for the machine's."""
    told = os.environ.get("CLOCK")
    if told is None:
        return None
    begin, speed, steps = json.loads(told)
    return SteppedClock(begin, speed, [Step(*each) for each in steps])
