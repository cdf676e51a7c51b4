"""Which home a command uses, and opening it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from asyncflow._rows import RunRow
from asyncflow._services import Services
from asyncflow.cli.words import id_of
from asyncflow.exceptions import AsyncflowError, RunNotFoundError
from asyncflow.runtime import HOME
from asyncflow.settings import Settings

__all__ = ["Home", "NothingRecordedError", "open_recorded", "row_of", "use_home"]

Home = Annotated[
    str | None,
    Parameter(name="--home", help="The folder of the records; else what the settings say, else .asyncflow."),
]


class NothingRecordedError(AsyncflowError):
    """A command that only reads was told a home that does not exist."""

    def __init__(self, home: Path) -> None:
        self.home = str(home)
        super().__init__(
            f"nothing is recorded in {self.home!r}: it holds no database. Where another folder is meant, "
            f"name it with --home or ASYNCFLOW_HOME"
        )


def use_home(home: str | None) -> None:
    """Make `home` the one of this process, wherever its code opens a runtime, and of those it starts."""
    if home is not None:
        os.environ["ASYNCFLOW_HOME"] = os.path.abspath(home)  # noqa: PTH100  # resolve() would follow links


def open_recorded(home: str | None, *, upkeep: bool = False) -> Services:
    """Open a home that exists, without upkeep: who only looks must not change what is there.

    (What is kept for how long may be said in the program whose home it is, where a command does not see it.)
    Raises `NothingRecordedError` instead of making a home.
    """
    use_home(home)
    folder = Settings.load().home
    if not (folder / "asyncflow.db").exists():
        raise NothingRecordedError(folder)
    return HOME.open_default(upkeep=upkeep)


def row_of(services: Services, run_id: str) -> RunRow:
    """The row of a run that the command line names. Raises `RunNotFoundError`."""
    row = services.store.read_run(id_of(run_id))
    if row is None:
        raise RunNotFoundError(run_id, services.settings.home)
    return row
