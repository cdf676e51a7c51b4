"""Settings: read from arguments, the environment and `pyproject.toml` when a runtime opens, never at import."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

from asyncflow._settings_sources import PREFIX, Origin, Written, in_environment, in_pyproject, nearest_name
from asyncflow.exceptions import OptionError

__all__ = ["Settings"]

_told: set[str] = set()
"""The variables that this process was warned of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a runtime behaves.

    Each field is also an environment variable, `ASYNCFLOW_<FIELD>`, and a key of `[tool.asyncflow]` in
    `pyproject.toml`. A value that a field cannot have raises `OptionError`.
    """

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
    otel: bool | None = None
    """Whether runs are spans of OpenTelemetry; when it is not set, they are where the program has configured a
    tracer provider."""
    upkeep_seconds: float = 1.0
    """How often a runtime looks whether another process on its home has died and whether there is
    something to delete; 0 = only when it opens."""

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, each.name, getattr(self, each.name))
        object.__setattr__(self, "home", Path(self.home))  # text will do

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, *, folder: Path | None = None, **given: Any) -> Self:
        """Settings from keywords first, then `ASYNCFLOW_*` variables, then `pyproject.toml`, then the defaults.

        The `pyproject.toml` is the nearest one with a table `[tool.asyncflow]`, from `folder` (the working folder)
        upwards. A keyword that is None counts as not given. A value that cannot be used raises `OptionError`, naming
        the variable or the file and the key, and a file that cannot be read `SettingsFileError`. A variable that is no
        setting is warned of, once.
        """
        return cls.load_with_origins(environ, folder=folder, **given)[0]

    @classmethod
    def load_with_origins(
        cls, environ: Mapping[str, str] | None = None, *, folder: Path | None = None, **given: Any
    ) -> tuple[Self, dict[str, Origin]]:
        """The same, and where each of them was written."""
        names = [each.name for each in fields(cls)]
        values = {name: value for name, value in given.items() if value is not None}
        origins = {name: Origin("argument", name) if name in values else Origin("default") for name in names}
        variables, unknown = in_environment(os.environ if environ is None else environ, names)
        for variable in unknown:
            _warn_of(variable, names)
        for name, written in (in_pyproject(folder, names) | variables).items():
            if name not in values:
                values[name] = _usable(cls, name, written)
                origins[name] = written.origin
        return cls(**values), origins


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
            return None if isinstance(value, str | os.PathLike) else "the path of a folder"
        case "synchronous":
            return None if value in ("full", "normal") else "'full' or 'normal'"
        case "log_level":
            import logging  # as in `asyncflow.logs`

            known = isinstance(value, str) and value.upper() in logging.getLevelNamesMapping()
            return None if known else "the name of a level of logging, such as 'INFO'"
        case "tag_limits":
            return None if _are_limits(value) else 'whole numbers from 1 by tag, such as {"database": 10}'
        case "persist_results_by_default" | "otel":
            fits = isinstance(value, bool) or (value is None and field == "otel")
            return None if fits else "true or false"
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


# --- what was written outside of the program -------------------------------------------------


def _usable(cls: type[Settings], name: str, written: Written) -> Any:
    """What was written as the value of a field. Raises `OptionError` in the name of its place."""
    place, value = str(written.origin), written.value
    if written.origin.kind == "environment":
        value = _from_text(name, value, get_type_hints(cls)[name])
    _check(name, place, value, written.value)
    return value


def _from_text(name: str, text: str, kind: Any) -> Any:
    """The text of a variable as the type of its field; the text itself where it does not say one."""
    if kind in (str, Path):
        return kind(text)
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        return adapter.validate_json(text) if name == "tag_limits" else adapter.validate_strings(text.strip().lower())
    except ValidationError:
        return text


def _warn_of(variable: str, names: list[str]) -> None:
    if variable in _told:
        return
    _told.add(variable)
    import warnings

    near = nearest_name(variable.removeprefix(PREFIX), names)
    instead = f"did you mean {PREFIX}{near.upper()}?" if near else "`asyncflow config show` lists those there are"
    warnings.warn(f"the environment variable {variable} is no setting of asyncflow; {instead}", stacklevel=2)
