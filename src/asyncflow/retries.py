"""When the next attempt begins: pure arithmetic on the options of a flow or task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from asyncflow.exceptions import OptionError

__all__ = ["Delay", "Seconds", "delay_after", "exponential_backoff", "seconds_of"]

Seconds: TypeAlias = float | timedelta
"""A length of time: seconds, or a `timedelta`."""
Delay: TypeAlias = Seconds | Sequence[Seconds] | Callable[[int], Seconds]
"""`retry_delay_seconds`: one length, one per retry (the last repeats), or a function of the retry's number from 1."""


def seconds_of(option: str, value: Seconds) -> float:
    """`value` in seconds; `OptionError` when it is not a length of time (negative, NaN, not a number)."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    number: Any = value  # what people gave, whatever the hint says
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise OptionError(option, value, "seconds (a number from 0) or a timedelta")
    return float(number)


def delay_after(attempt: int, delay: Delay, jitter_factor: float, random: Callable[[], float]) -> float:
    """Seconds to wait after the `attempt`-th failed attempt (from 1).

    Jitter spreads the delay evenly over `delay * (1 ± jitter_factor)`, never below 0, so that
    runs that failed together do not come back together.
    """
    if callable(delay):
        delay = delay(attempt)
    elif not isinstance(delay, int | float | timedelta):
        delay = delay[min(attempt, len(delay)) - 1] if delay else 0
    seconds = seconds_of("retry_delay_seconds", delay)
    return max(0.0, seconds * (1 + jitter_factor * (2 * random() - 1)))


def exponential_backoff(first: Seconds = 1, *, factor: float = 2, maximum: Seconds = 3600) -> Callable[[int], float]:
    """A `retry_delay_seconds` that grows: `first`, `first * factor`, `first * factor**2`, ... up to `maximum`."""
    start, most = seconds_of("first", first), seconds_of("maximum", maximum)

    def delay(retry: int) -> float:
        try:
            return min(most, start * factor ** (retry - 1))
        except OverflowError:
            return most

    return delay
