"""`asyncflow config show`: the real command, in a folder with a `pyproject.toml`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from asyncflow import Settings
from tests.command_line import CommandLine


@pytest.fixture
def command(tmp_path: Path, home: Path) -> CommandLine:
    return CommandLine(tmp_path, home)


def by_name(listed: list[dict[str, Any]]) -> dict[str, tuple[object, str, str | None]]:
    return {each["name"]: (each["value"], each["origin"], each["place"]) for each in listed}


def test_each_setting_is_shown_with_its_origin(command: CommandLine) -> None:
    file = command.folder / "pyproject.toml"
    file.write_text('[tool.asyncflow]\ngrace_seconds = 3\ntag_limits = {database = 10}\nhome = "records"\n')
    shown = command.ok("config", "show", "--json", ASYNCFLOW_MAX_THREADS="8").json
    assert [each["name"] for each in shown] == [each.name for each in fields(Settings)]
    found = by_name(shown)
    assert found["home"] == (str(command.home), "environment", "ASYNCFLOW_HOME")
    assert found["max_threads"] == (8, "environment", "ASYNCFLOW_MAX_THREADS")
    assert found["grace_seconds"] == (3, "file", f"{file}: tool.asyncflow.grace_seconds")
    assert found["tag_limits"] == ({"database": 10}, "file", f"{file}: tool.asyncflow.tag_limits")
    assert found["log_level"] == ("INFO", "default", None)
    assert found["otel"] == (None, "default", None)
    assert not command.home.exists()  # it only looks


def test_the_option_comes_before_the_rest(command: CommandLine) -> None:
    (command.folder / "pyproject.toml").write_text('[tool.asyncflow]\nhome = "records"\n')
    shown = command.ok("config", "show", "--home", "here", "--json").json
    assert by_name(shown)["home"] == (str(command.folder / "here"), "argument", "--home")
    assert by_name(command.ok("config", "show", "--json", ASYNCFLOW_HOME="").json)["home"] == (
        str(command.folder / "records"),
        "file",
        f"{command.folder / 'pyproject.toml'}: tool.asyncflow.home",
    )


def test_the_table(command: CommandLine) -> None:
    (command.folder / "pyproject.toml").write_text("[tool.asyncflow]\ntag_limits = {database = 10}\n")
    lines = command.ok("config", "show", ASYNCFLOW_LOG_LEVEL="DEBUG").out.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "FROM"]
    table = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert table["home"] == [str(command.home), "environment", "ASYNCFLOW_HOME"]
    assert table["log_level"] == ["DEBUG", "environment", "ASYNCFLOW_LOG_LEVEL"]
    assert table["persist_results_by_default"] == ["true", "default"]
    assert table["otel"] == ["not", "set", "default"]
    assert table["tag_limits"][0] == '{"database":10}'
    assert len(lines) == 1 + len(fields(Settings))


def test_a_password_is_not_shown(command: CommandLine) -> None:
    for words in (["--json"], []):
        shown = command.ok("config", "show", *words, ASYNCFLOW_HOME="postgresql://ann:hunter2@db/records").out
        assert "hunter2" not in shown
        assert "ann:***@db/records" in shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_threads = 0", "tool.asyncflow.max_threads=0: expected a whole number from 1"),
        ("max_treads = 1", "tool.asyncflow.max_treads=1: expected the name of a setting: did you mean 'max_threads'?"),
        ("max_threads", "cannot be read: "),
    ],
)
def test_a_bad_file_is_a_misuse(command: CommandLine, text: str, told: str) -> None:
    (command.folder / "pyproject.toml").write_text(f"[tool.asyncflow]\n{text}\n")
    for words in (["config", "show"], ["runs", "ls"]):
        done = command(*words)
        assert done.status == 2
        assert told in done.err
        assert "Traceback" not in done.err
