"""Run ids: time-ordered UUIDs (version 7) made at the price of a counter.

A random key would scatter inserts over the whole index (ten times slower at a million rows), and
`uuid4` or `os.urandom` for each run cost more than the rest of a run's bookkeeping. The layout is
RFC 9562's: 48 bits of milliseconds, then a counter of 26 bits that keeps ids of this process in
the order they were made, then 48 bits that keep processes apart: random ones of the process, mixed
with the counter so that the last digits, which people see in names, differ from run to run.
"""

from __future__ import annotations

import os
import time
from itertools import count
from uuid import UUID

__all__ = ["new_id", "parse_id", "state_id"]


def _random_bits(bits: int) -> int:
    return int.from_bytes(os.urandom(bits // 8), "big")


_next = count(_random_bits(24)).__next__
_tail = _random_bits(48)
_MIX = 0x9E3779B97F4A7C15  # odd, so that neighbouring numbers differ in their last digits
_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62
_latest_ms = 0


def _reseed() -> None:
    global _tail  # runs in a new child process, before any thread of it
    _tail = _random_bits(48)


if hasattr(os, "register_at_fork"):
    # A fork would go on with its parent's counter and tail: the same ids, twice.
    os.register_at_fork(after_in_child=_reseed)


def new_id() -> bytes:
    """The 16 bytes of a new id, greater than every id this process made before."""
    global _latest_ms  # a benign race: two threads may only both use the newer time
    ms = time.time_ns() // 1_000_000
    if ms < _latest_ms:  # the wall clock was set back: order matters more than the date
        ms = _latest_ms
    else:
        _latest_ms = ms
    number = _next() & 0x3FFFFFF
    high, low = number >> 14, number & 0x3FFF
    tail = (_tail ^ number * _MIX) & 0xFFFFFFFFFFFF
    return (ms << 80 | _VERSION | high << 64 | _VARIANT | low << 48 | tail).to_bytes(16, "big")


def state_id(run_id: bytes, sequence: int) -> UUID:
    """The id of a run's `sequence`-th state, derived so that it need not be stored.

    Version 8 (custom) tells it from the id of a run.
    """
    number = int.from_bytes(run_id, "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    return UUID(int=number ^ (sequence + 1))


def parse_id(value: UUID | str | bytes) -> bytes:
    """The 16 bytes of an id given as `UUID`, text or bytes; `ValueError` when it is none."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, UUID) else UUID(value)).bytes
