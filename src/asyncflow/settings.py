"""Settings: read from arguments and the environment when a runtime opens, never at import."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import orjson

from asyncflow.exceptions import OptionError

__all__ = ["Settings"]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a runtime behaves. Each field is also an environment variable, `ASYNCFLOW_<FIELD>`."""

    home: Path = Path(".asyncflow")
    """The folder of the database and the result files."""
    synchronous: Literal["full", "normal"] = "full"
    """SQLite's setting: `normal` is faster and may lose the last commits when the power goes."""
    parameters_limit: int = 512 * 1024
    """Most bytes of JSON the parameters of one flow run may take; 0 = no limit."""
    persist_results_by_default: bool = True
    """Whether results are recorded where no `persist_result=` says."""
    grace_seconds: float = 10.0
    """How long the `finally` blocks of a cancelled run may take."""
    drain_seconds: float = 10.0
    """How long a runtime that is left waits for its runs before it interrupts them."""
    durability_seconds: float = 5.0
    """How long an outermost run waits for the disk to confirm its final state."""
    hook_seconds: float = 10.0
    """How long the hooks of a run that is being cancelled may take."""
    max_threads: int = 64
    """Most worker threads for sync bodies called from async code; more wait their turn."""
    nesting_limit: int = 100
    """How deep runs may call runs, the outermost counted."""
    queue_limit: int = 10_000
    """Unwritten records beyond which new runs are held back at their start."""
    tag_limits: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many task bodies with a tag run at once: `{"database": 10}`; in the environment as JSON."""
    log_level: str = "INFO"
    """The lowest level of run logs that is kept in the store."""
    retention_days: float = 30.0
    """How long an outermost run is kept after it ended, with all below it; 0 = for ever."""
    retention_runs: int = 0
    """Most outermost runs that are kept, the oldest ended ones going first; 0 = no limit."""
    retention_bytes: int = 4 * 1024**3
    """Most bytes that the database may hold, the oldest ended runs going first; 0 = no limit."""
    blocked_loop_seconds: float = 0.0
    """An event loop that does not turn for so long is told of, with the task that blocks it; 0 = nobody looks."""
    upkeep_seconds: float = 1.0
    """How often a runtime looks whether another process on its home has died and whether there is
    something to delete; 0 = only when it opens."""

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, each.name, getattr(self, each.name))

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """Settings from keywords first, then from `ASYNCFLOW_*` variables, then the defaults.

        A value that cannot be read raises `OptionError`, naming the variable.
        """
        environ = os.environ if environ is None else environ
        hints = get_type_hints(cls)
        values = {name: value for name, value in given.items() if value is not None}
        for each in fields(cls):
            variable = f"ASYNCFLOW_{each.name.upper()}"
            if each.name not in values and (text := environ.get(variable)):
                values[each.name] = _parse(variable, text, hints[each.name])
                _check(each.name, variable, values[each.name], text)
        if isinstance(values.get("home"), str):
            values["home"] = Path(values["home"])
        return cls(**values)


_LEAST = {
    "parameters_limit": 0,
    "max_threads": 1,
    "nesting_limit": 1,
    "queue_limit": 1,
    "retention_runs": 0,
    "retention_bytes": 0,
}


def _check(field: str, option: str, value: Any, given: object = None) -> None:
    """Raise `OptionError` in the name of `option` when `field` cannot have this value, which was `given` as text."""
    expected = _expected(field, value)
    if expected is not None:
        raise OptionError(option, value if given is None else given, expected)


def _expected(field: str, value: Any) -> str | None:
    """What a value must be that `field` cannot have; None when it can have it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match field:
        case "home":
            return None
        case "synchronous":
            return None if value in ("full", "normal") else "'full' or 'normal'"
        case "log_level":
            import logging  # as in `asyncflow.logs`

            known = isinstance(value, str) and value.upper() in logging.getLevelNamesMapping()
            return None if known else "the name of a level of logging, such as 'INFO'"
        case "tag_limits":
            return None if _are_limits(value) else "whole numbers from 1 by tag, such as {'database': 10}"
        case "persist_results_by_default":
            return None if isinstance(value, bool) else "true or false"
        case "retention_days":
            return None if is_number and 0 <= value < math.inf else "days: a number from 0"
        case name if name in _LEAST:
            least = _LEAST[name]
            return None if is_number and isinstance(value, int) and value >= least else f"a whole number from {least}"
        case _:
            return None if is_number and 0 <= value < math.inf else "seconds: a number from 0"


def _are_limits(value: Any) -> bool:
    try:
        pairs = dict(value).items()
    except (TypeError, ValueError):
        return False
    return all(isinstance(tag, str) and type(limit) is int and limit >= 1 for tag, limit in pairs)


def _parse(variable: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise OptionError(variable, text, "true or false")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise OptionError(variable, text, "a number") from None
    if kind == Literal["full", "normal"]:
        if text.lower() not in ("full", "normal"):
            raise OptionError(variable, text, "'full' or 'normal'")
        return text.lower()
    if get_origin(kind) is Mapping:
        try:
            return orjson.loads(text)
        except ValueError:
            raise OptionError(variable, text, 'a JSON object, such as {"database": 10}') from None
    return Path(text) if kind is Path else text
