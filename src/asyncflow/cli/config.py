"""`asyncflow config show`: which settings are in force here, and where each was written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
from cyclopts import App
from rich.table import Table

from asyncflow.cli.home import Home
from asyncflow.cli.output import json_text, printable, table_console, write_data
from asyncflow.cli.words import AsJSON
from asyncflow.settings import Settings

__all__ = ["app"]

app = App(name="config", help="Look at the settings.")

# The password in postgresql://user:password@host/database, also where a path has lost one of the slashes.
_PASSWORD = re.compile(r"(\w:/{1,2}[^/@:\s]*):[^/@\s]+@")


@app.command
def show(*, json: AsJSON = False, home: Home = None) -> int:
    """List the settings that a runtime opened here would have, each with the place that its value comes from.

    That is the option of this command, an environment variable, a pyproject.toml, or the default. What a program
    gives to its `Runtime(...)` wins over all of them and is not seen here.
    """
    given = None if home is None else os.path.abspath(home)  # noqa: PTH100  # as in `use_home`
    settings, origins = Settings.load_with_origins(home=given)
    rows: list[dict[str, Any]] = []
    for each in fields(settings):
        origin = origins[each.name]
        place = f"--{origin.place}" if origin.kind == "argument" else origin.place
        rows.append(
            {"name": each.name, "value": _plain(getattr(settings, each.name)), "origin": origin.kind, "place": place}
        )
    if json:
        write_data(json_text(rows))
    else:
        table_console().print(_table(rows))
    return 0


def _plain(value: Any) -> Any:
    """As JSON has it, without passwords."""
    if isinstance(value, str | Path):
        return _PASSWORD.sub(r"\1:***@", str(value))
    return dict(value) if isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("SETTING", no_wrap=True)
    table.add_column("VALUE", overflow="fold")
    table.add_column("FROM", overflow="fold")
    for row in rows:
        value = row["value"]
        text = "not set" if value is None else value if isinstance(value, str) else orjson.dumps(value).decode()
        style = "dim" if row["origin"] == "default" else None
        place = f"{row['origin']} {row['place']}" if row["origin"] == "environment" else row["place"] or row["origin"]
        table.add_row(row["name"], printable(text), printable(place), style=style)
    return table
