"""What is due: a schedule, what was decided last, and the time, give the slots to make runs for.

Slots are looked at from the newest back, and only as many as are wanted: a schedule by the second that
nobody looked at for a year costs what one costs that was looked at a minute ago.

What was decided is the newest slot that was looked at, so it never goes back, and a clock that is set
back finds everything decided: a slot comes at most once, whatever clocks do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice, takewhile

from asyncflow._schedules.fields import Schedule, moment_given

__all__ = ["GRACE", "Due", "due", "moment_of", "next_slot", "upcoming"]

GRACE = timedelta(seconds=60)
"""How old a slot may be that `catch_up="skip"` still makes a run for.

Whoever looks is always late by something: a machine under load, a laptop that wakes up, a process that is
deployed anew in between. A minute is more than that takes, and as much as the finest common schedule's step.
"""


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done about a schedule now."""

    slots: list[datetime]
    """Make a run for each of these (UTC, ascending)."""
    decided: datetime
    """What to give as `decided` the next time: nothing up to here is looked at again."""


def due(schedule: Schedule, decided: datetime, now: datetime) -> Due:
    """The slots after `decided`, up to and with `now`, that are left by the schedule's `catch_up`.

    Whether the schedule is active is not looked at.
    """
    decided, now = moment_given("due", "decided", decided), moment_given("due", "now", now)
    if now <= decided:
        return Due([], decided)
    slots = schedule.slots_until(now)
    newest = next(slots, None)
    if newest is None or newest <= decided:
        return Due([], decided)
    wanted = list(_wanted(schedule, chain([newest], slots), decided, now))
    return Due(wanted[::-1], newest)


def _wanted(
    schedule: Schedule, newest_first: Iterator[datetime], decided: datetime, now: datetime
) -> Iterator[datetime]:
    limit = 1 if schedule.catch_up == "latest" else schedule.catch_up_limit
    oldest = now - GRACE if schedule.catch_up == "skip" else datetime.min.replace(tzinfo=UTC)
    return islice(takewhile(lambda slot: slot > decided and slot >= oldest, newest_first), limit)


def next_slot(schedule: Schedule, after: datetime) -> datetime | None:
    """The first slot after a moment (UTC); None when there is none any more."""
    return next(schedule.slots_after(after), None)


def upcoming(schedule: Schedule, after: datetime, n: int) -> list[datetime]:
    """The first `n` slots after a moment (UTC)."""
    return list(islice(schedule.slots_after(after), n))


def moment_of(schedule: Schedule, slot: datetime, seed: bytes) -> datetime:
    """When the run of a slot is to begin: the slot, and of its `jitter` a part that (`seed`, slot) decides.

    Every process finds the same. Give each schedule a seed of its own, such as its id.
    """
    slot = moment_given("moment_of", "slot", slot)
    span = round(schedule.jitter * 1_000_000) if not isinstance(schedule.jitter, timedelta) else 0
    if span == 0:
        return slot
    from hashlib import blake2b  # few schedules have jitter

    digest = blake2b(seed + slot.isoformat().encode(), digest_size=8).digest()
    return slot + timedelta(microseconds=int.from_bytes(digest, "big") % span)
