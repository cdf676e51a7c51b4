"""Schedules and triggers as they are stored: rows of rules, and the states that say how far each is decided."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from asyncflow._deployment_rows import SCHEDULE, TRIGGER, RuleRow
from asyncflow._journal import Cursor, cursor_text, parse_cursor
from asyncflow._rows import moment
from asyncflow.schedules import Schedule, schedule_of
from asyncflow.schedules import to_data as schedule_data
from asyncflow.serializers import decode, encode
from asyncflow.triggers import Trigger, trigger_of, trigger_to_data

__all__ = [
    "decided_at",
    "decided_of",
    "decided_state",
    "followed_of",
    "followed_state",
    "schedule_of_rule",
    "schedule_rule",
    "slug_of",
    "trigger_of_rule",
    "trigger_rule",
]

_SLUG_DIGITS = 8


def slug_of(rule: Schedule | Trigger) -> str:
    """A name for a rule that was given none: by what it says, so that it keeps it wherever it stands in a list."""
    import hashlib  # at first use: importing asyncflow is to be quick

    data = _data_of(rule)
    digest = hashlib.blake2s(encode({**data, "slug": None, "active": None}).encode()).hexdigest()
    return f"{data['kind']}-{digest[:_SLUG_DIGITS]}"


def _data_of(rule: Any) -> dict[str, Any]:
    data: dict[str, Any] = schedule_data(rule) if isinstance(rule, Schedule) else trigger_to_data(rule)
    return data


def schedule_rule(deployment_id: bytes, schedule: Schedule, state: str) -> RuleRow:
    """The row of a schedule of a deployment."""
    return _rule(deployment_id, SCHEDULE, schedule, state)


def trigger_rule(deployment_id: bytes, trigger: Trigger, state: str) -> RuleRow:
    """The row of a trigger of a deployment."""
    return _rule(deployment_id, TRIGGER, trigger, state)


def _rule(deployment_id: bytes, kind: int, rule: Any, state: str) -> RuleRow:
    slug = rule.slug or slug_of(rule)
    return RuleRow(
        id=uuid5(UUID(bytes=deployment_id), f"{kind}/{slug}").bytes,
        deployment_id=deployment_id,
        kind=kind,
        slug=slug,
        data=encode(_data_of(rule), where="rule"),
        active=int(rule.active),
        state=state,
    )


def schedule_of_rule(row: RuleRow) -> Schedule:
    """The schedule in a row. Raises what the schedule's own checks raise."""
    return schedule_of(decode(row.data))


def trigger_of_rule(row: RuleRow) -> Trigger:
    """The trigger in a row, likewise."""
    return trigger_of(decode(row.data))


# --- how far they are decided ----------------------------------------------------------------


def decided_state(decided: datetime) -> str:
    """The state of a schedule whose slots up to a moment are decided."""
    return encode({"decided": decided})


def decided_of(state: str) -> datetime:
    """The moment in the state of a schedule."""
    return datetime.fromisoformat(decode(state)["decided"])


def decided_at(now: int) -> str:
    """The state of a schedule that begins now; microseconds since 1970 UTC."""
    return decided_state(moment(now))


def followed_state(cursor: Cursor, window: dict[str, Any] | None = None) -> str:
    """The state of a trigger that has seen all events up to a cursor; `window` is what it remembers of them."""
    return encode({"cursor": cursor_text(cursor), "window": window or {}})


def followed_of(state: str) -> tuple[Cursor, dict[str, Any]]:
    """The cursor and the memory in the state of a trigger."""
    told = decode(state)
    return parse_cursor(told["cursor"]), told["window"]
