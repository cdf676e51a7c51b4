"""The rarer facts that a state tells, as its entry in a run's history holds them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["details_from"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENTS = ("scheduled_time", "cache_expiration", "pause_timeout")
_OTHERS = ("cache_key", "retriable", "pause_key", "input_schema")


def details_from(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `StateDetails` that facts tell; their moments are microseconds since 1970 UTC."""
    found = {name: facts[name] for name in _OTHERS if name in facts}
    for name in _MOMENTS:
        if (at := facts.get(name)) is not None:
            found[name] = _EPOCH + timedelta(microseconds=at)
    return found
