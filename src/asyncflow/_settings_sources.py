"""Where settings are written: variables `ASYNCFLOW_*`, and `[tool.asyncflow]` of the nearest `pyproject.toml`.

Found by the standard library, because a plain program would pay for a library that does it each time it starts
(CPython 3.11, beyond importing asyncflow, to load two fields): typed-settings, which keeps dataclasses and was the
closest, takes 66 ms, pydantic-settings 80 ms, dynaconf 104 ms, and environ-config, which reads no files, 15 ms.
`tomllib` takes 3 ms, and only where a `pyproject.toml` names asyncflow. What a variable's text means to the type of
its field is pydantic's business, which asyncflow depends on anyway: it is imported where there is such a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from asyncflow.exceptions import OptionError, SettingsFileError

__all__ = ["PREFIX", "Origin", "Written", "in_environment", "in_pyproject", "nearest_name"]

PREFIX = "ASYNCFLOW_"
_FILE, _TABLE = "pyproject.toml", "tool.asyncflow"
# What Kubernetes puts into the environment of every container beside a service named "asyncflow" or "asyncflow-...".
_OF_KUBERNETES = re.compile(rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a setting's value was written."""

    kind: str
    """`argument`, `environment`, `file` or `default`."""
    place: str | None = None
    """The argument, the variable, or the file and the key in it; None for a default."""

    def __str__(self) -> str:
        return self.place or self.kind


@dataclass(frozen=True, slots=True)
class Written:
    """The value of a setting as it stands in a source."""

    value: Any
    origin: Origin


def in_environment(environ: Mapping[str, str], names: Iterable[str]) -> tuple[dict[str, Written], list[str]]:
    """The texts of the variables that settings have, by setting; and the variables that no setting has.

    An empty variable counts as one that is not there.
    """
    variables = {f"{PREFIX}{name.upper()}": name for name in names}
    found: dict[str, Written] = {}
    unknown: list[str] = []
    for variable in [each for each in environ if each.startswith(PREFIX)]:
        if variable in variables:
            if text := environ[variable]:
                found[variables[variable]] = Written(text, Origin("environment", variable))
        elif not _OF_KUBERNETES.fullmatch(variable):
            unknown.append(variable)
    return found, unknown


def in_pyproject(folder: Path | None, names: Iterable[str]) -> dict[str, Written]:
    """The settings of the nearest `pyproject.toml` with a table `[tool.asyncflow]`, from `folder` upwards.

    `folder` is the working folder when it is None. A `home` that is a relative path is meant from the file's own
    folder. Raises `SettingsFileError` for a file that cannot be read, and `OptionError` for a key that is no setting.
    """
    file, table = _nearest_table(folder)
    if file is None:
        return {}
    names = tuple(names)
    found: dict[str, Written] = {}
    for key, value in table.items():
        place = f"{file}: {_TABLE}.{key}"
        if key not in names:
            near = nearest_name(key, names)
            meant = f"did you mean {near!r}?" if near else f"one of {', '.join(names)}"
            raise OptionError(place, value, f"the name of a setting: {meant}")
        if key == "home" and isinstance(value, str):
            value = file.parent / Path(value).expanduser()
        found[key] = Written(value, Origin("file", place))
    return found


def _nearest_table(folder: Path | None) -> tuple[Path | None, Mapping[str, Any]]:
    try:
        start = Path.cwd() if folder is None else folder.absolute()
    except FileNotFoundError:  # the working folder was deleted
        return None, {}
    for each in (start, *start.parents):
        file = each / _FILE
        try:
            stat = file.stat()
        except OSError:  # none there, or none that could be seen
            continue
        # The runtimes of one process, such as those of its tests, would parse the same file again and again.
        table = _table_of(file, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if table is not None:
            return file, table
    return None, {}


@lru_cache(maxsize=8)
def _table_of(file: Path, *identity: int) -> Mapping[str, Any] | None:
    """The table of ours in a `pyproject.toml` of this identity; None when it has none."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingsFileError(file, error.strerror or error) from error
    if b"asyncflow" not in content:  # nor could it be: a key is written as it is
        return None
    import tomllib

    try:
        parsed = tomllib.loads(content.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsFileError(file, error) from error
    tools = parsed.get("tool", {})
    if not isinstance(tools, dict) or "asyncflow" not in tools:
        return None
    table = cast("dict[str, Any]", tools)["asyncflow"]
    if not isinstance(table, dict):
        raise SettingsFileError(file, f"{_TABLE} is {table!r}, and must be a table of settings: [{_TABLE}]")
    return cast("dict[str, Any]", table)


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that was probably meant."""
    from difflib import get_close_matches

    found = get_close_matches(name.lower().replace("-", "_"), list(names), n=1, cutoff=0.6)
    return found[0] if found else None
