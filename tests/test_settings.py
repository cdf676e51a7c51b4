"""Settings: where they come from, what wins, and that a bad one is named."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncflow import Runtime, Settings, flow
from asyncflow.exceptions import OptionError, ParametersTooLargeError, SettingsFileError
from tests.conftest import RunPython


def test_the_defaults() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert settings.home == Path(".asyncflow")
    assert settings.parameters_limit == 512 * 1024
    assert (settings.synchronous, settings.persist_results_by_default) == ("full", True)
    assert (settings.retention_days, settings.retention_runs, settings.retention_bytes) == (30, 0, 4 * 1024**3)
    assert settings.upkeep_seconds == 1


def test_variables_come_before_defaults_and_keywords_before_variables() -> None:
    environ = {"ASYNCFLOW_HOME": "/from/env", "ASYNCFLOW_MAX_THREADS": "3", "OTHER": "x"}
    settings = Settings.load(environ, max_threads=5, grace_seconds=None)
    assert settings.home == Path("/from/env")
    assert settings.max_threads == 5
    assert settings.grace_seconds == Settings().grace_seconds
    assert Settings.load(environ, home="given").home == Path("given")
    assert Settings.load({"ASYNCFLOW_HOME": ""}).home == Path(".asyncflow")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("HOME", "a/b", Path("a/b")),
        ("SYNCHRONOUS", "NORMAL", "normal"),
        ("PARAMETERS_LIMIT", "0", 0),
        ("PERSIST_RESULTS_BY_DEFAULT", "no", False),
        ("PERSIST_RESULTS_BY_DEFAULT", "On", True),
        ("GRACE_SECONDS", "0.5", 0.5),
        ("DURABILITY_SECONDS", "1e-1", 0.1),
        ("HOOK_SECONDS", "3", 3.0),
        ("MAX_THREADS", "7", 7),
        ("QUEUE_LIMIT", "10", 10),
        ("LOG_LEVEL", "debug", "debug"),
        ("RETENTION_DAYS", "0.5", 0.5),
        ("RETENTION_RUNS", "1000", 1000),
        ("RETENTION_BYTES", "0", 0),
        ("UPKEEP_SECONDS", "60", 60.0),
        ("TAG_LIMITS", '{"database": 10, "API": 2}', {"database": 10, "API": 2}),
        ("OTEL", "true", True),
        ("OTEL", "off", False),
    ],
)
def test_each_setting_is_a_variable(name: str, text: str, value: object) -> None:
    found = getattr(Settings.load({f"ASYNCFLOW_{name}": text}), name.lower())
    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SYNCHRONOUS", "off"),
        ("PARAMETERS_LIMIT", "many"),
        ("PARAMETERS_LIMIT", "-1"),
        ("PARAMETERS_LIMIT", "1.5"),
        ("PERSIST_RESULTS_BY_DEFAULT", "maybe"),
        ("GRACE_SECONDS", "soon"),
        ("GRACE_SECONDS", "-1"),
        ("GRACE_SECONDS", "nan"),
        ("DURABILITY_SECONDS", "inf"),
        ("HOOK_SECONDS", "-0.1"),
        ("MAX_THREADS", "0"),
        ("MAX_THREADS", "-3"),
        ("QUEUE_LIMIT", "0"),
        ("LOG_LEVEL", "loud"),
        ("RETENTION_DAYS", "-1"),
        ("RETENTION_DAYS", "for ever"),
        ("RETENTION_RUNS", "1e6"),
        ("RETENTION_BYTES", "4GB"),
        ("RETENTION_BYTES", "-4"),
        ("UPKEEP_SECONDS", "inf"),
        ("TAG_LIMITS", "database"),
        ("OTEL", "auto"),
        ("TAG_LIMITS", "[1]"),
        ("TAG_LIMITS", '{"database": "many"}'),
        ("TAG_LIMITS", '{"database": 0}'),
    ],
)
def test_a_bad_variable_is_named(name: str, text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"ASYNCFLOW_{name}={text!r}: expected")):
        Settings.load({f"ASYNCFLOW_{name}": text})


@pytest.mark.parametrize(
    "given",
    [
        {"max_threads": 0},
        {"max_threads": "3"},
        {"max_threads": True},
        {"grace_seconds": math.nan},
        {"grace_seconds": "1"},
        {"synchronous": "off"},
        {"log_level": "loud"},
        {"log_level": 10},
        {"persist_results_by_default": "yes"},
        {"parameters_limit": -1},
        {"queue_limit": 1.5},
        {"retention_days": -1},
        {"retention_days": math.inf},
        {"retention_runs": 1.5},
        {"retention_bytes": "4 GiB"},
        {"upkeep_seconds": -1},
        {"home": 7},
        {"otel": "yes"},
        {"otel": 1},
        {"tag_limits": {"database": 0}},
    ],
    ids=str,
)
def test_a_bad_keyword_is_named(given: dict[str, Any], tmp_path: Path) -> None:
    (name,) = given
    given = {"home": tmp_path, **given}
    for make in (Runtime, Settings, lambda **fields: Runtime(settings=Settings(), **fields)):
        with pytest.raises(OptionError, match=re.escape(f"{name}={given[name]!r}: expected")):
            make(**given)


def test_a_keyword_that_is_no_setting_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="threads"):
        Runtime(tmp_path, threads=3)


texts = st.text() | st.integers().map(str) | st.floats().map(str) | st.sampled_from(["normal", "on", "WARNING"])


@settings(suppress_health_check=[HealthCheck.too_slow])  # its first import on a busy machine
@given(st.dictionaries(st.sampled_from(["ASYNCFLOW_" + name.upper() for name in Settings.__annotations__]), texts))
def test_any_environment_gives_settings_or_names_a_variable_of_it(environ: dict[str, str]) -> None:
    try:
        settings = Settings.load(environ)
    except OptionError as error:
        named = error
    else:
        assert settings.max_threads >= 1
        assert 0 <= settings.grace_seconds < math.inf
        return
    assert environ[named.option] == named.value


async def test_the_limit_of_parameters_is_a_setting(tmp_path: Path) -> None:
    @flow
    async def main(text: str) -> int:
        return len(text)

    async with Runtime(tmp_path / "small", parameters_limit=100):
        assert await main("x" * 50) == 50
        with pytest.raises(ParametersTooLargeError, match="over the limit of 100; the biggest is 'text'"):
            await main("x" * 100)
    async with Runtime(tmp_path / "none", parameters_limit=0):
        assert await main("x" * 600_000) == 600_000
    with pytest.raises(ParametersTooLargeError, match="ASYNCFLOW_PARAMETERS_LIMIT"):
        await main("x" * 600_000)


def test_settings_are_read_when_a_runtime_opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = Runtime(tmp_path)
    monkeypatch.setenv("ASYNCFLOW_MAX_THREADS", "9")
    with runtime:
        monkeypatch.setenv("ASYNCFLOW_MAX_THREADS", "8")
        assert runtime.settings.max_threads == 9
    assert Runtime(tmp_path).settings.max_threads == 8
    assert runtime.home == tmp_path


async def test_a_file_of_settings_is_read_off_the_event_loop(project: Project) -> None:
    project('home = "records"\nmax_threads = 3')
    async with Runtime() as runtime:  # blockbuster raises where the loop's thread reads files
        assert runtime.settings.max_threads == 3


def test_a_runtime_is_shown_without_reading_anything(project: Project, tmp_path: Path) -> None:
    project("max_threads = 0")  # would raise
    assert repr(Runtime()) == "<asyncflow.Runtime '(home not read yet)' not open>"
    assert repr(Runtime(tmp_path)) == f"<asyncflow.Runtime {str(tmp_path)!r} not open>"


# --- a Settings object -----------------------------------------------------------------------


def test_a_runtime_takes_settings(monkeypatch: pytest.MonkeyPatch, project: Project, tmp_path: Path) -> None:
    monkeypatch.setenv("ASYNCFLOW_MAX_THREADS", "9")
    project("grace_seconds = 1")
    settings = Settings(home=tmp_path, max_threads=2)
    assert Runtime(settings=settings).settings == settings  # nothing else is looked at
    keywords = Runtime(tmp_path / "other", settings=settings, max_threads=7)
    assert (keywords.home, keywords.settings.max_threads) == (tmp_path / "other", 7)
    assert settings.max_threads == 2
    assert Settings(home="text").home == Path("text")  # type: ignore[arg-type]


def test_settings_of_another_type_are_refused() -> None:
    with pytest.raises(OptionError, match=r"settings=\{'max_threads': 2\}: expected an asyncflow.Settings"):
        Runtime(settings={"max_threads": 2})  # type: ignore[arg-type]


# --- pyproject.toml --------------------------------------------------------------------------


class Project(Protocol):
    """Writes `pyproject.toml` of the working folder, with this text in [tool.asyncflow]."""

    def __call__(self, text: str, *, table: str = "[tool.asyncflow]") -> Path: ...


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Project:
    """The working folder is `project/` below the test's folder, and no variable is set."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ASYNCFLOW_HOME")

    def write(text: str, *, table: str = "[tool.asyncflow]") -> Path:
        file = folder / "pyproject.toml"
        file.write_text(f"[project]\nname = 'x'\n{table}\n{text}\n")
        return file

    return write


def test_pyproject_comes_before_defaults_and_variables_before_it(project: Project) -> None:
    file = project('max_threads = 3\ngrace_seconds = 1\nlog_level = "DEBUG"\ntag_limits = {database = 10}')
    settings = Settings.load({"ASYNCFLOW_MAX_THREADS": "4", "ASYNCFLOW_LOG_LEVEL": "ERROR"}, log_level="WARNING")
    assert (settings.max_threads, settings.grace_seconds, settings.log_level) == (4, 1, "WARNING")
    assert settings.tag_limits == {"database": 10}
    _, origins = Settings.load_with_origins({"ASYNCFLOW_MAX_THREADS": "4"}, log_level="WARNING")
    assert str(origins["max_threads"]) == "ASYNCFLOW_MAX_THREADS"
    assert str(origins["grace_seconds"]) == f"{file}: tool.asyncflow.grace_seconds"
    assert (origins["log_level"].kind, str(origins["log_level"])) == ("argument", "log_level")
    assert str(origins["hook_seconds"]) == "default"


def test_the_nearest_file_that_has_the_table_counts(project: Project, tmp_path: Path) -> None:
    file = project("max_threads = 3")
    below = file.parent / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.asyncflow]\nmax_threads = 5\n")
    assert Settings.load({}, folder=below).max_threads == 3
    (below.parent / "pyproject.toml").write_text("[project]\ndependencies = ['asyncflow']\n[tool.other]\n")
    assert Settings.load({}, folder=below).max_threads == 3  # that one is another tool's
    (below / "pyproject.toml").write_text("tool.asyncflow.max_threads = 4\n")
    assert Settings.load({}, folder=below).max_threads == 4
    file.unlink()
    assert Settings.load({}).max_threads == 5


def test_a_home_in_a_file_is_meant_from_there(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = project('home = "records"').parent
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    assert Settings.load({}).home == folder / "records"
    project(f"home = '{tmp_path}/else'")
    assert Settings.load({}).home == tmp_path / "else"
    monkeypatch.setenv("HOME", str(tmp_path))
    project("home = '~/mine'")
    assert Settings.load({}).home == tmp_path / "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_threads = 0", "max_threads=0: expected a whole number from 1"),
        ("max_threads = '3'", "max_threads='3': expected a whole number from 1"),
        ("grace_seconds = nan", "grace_seconds=nan: expected seconds: a number from 0"),
        ("home = 3", "home=3: expected the path of a folder"),
        ("synchronous = 'off'", "synchronous='off': expected 'full' or 'normal'"),
        ("tag_limits = {a = 0}", "tag_limits={'a': 0}: expected whole numbers from 1 by tag"),
        ("max-threads = 3", "max-threads=3: expected the name of a setting: did you mean 'max_threads'?"),
        ("grace_secs = 3", "grace_secs=3: expected the name of a setting: did you mean 'grace_seconds'?"),
        ("zzz = 3", "zzz=3: expected the name of a setting: one of home, synchronous, "),
    ],
)
def test_what_is_wrong_in_a_file_is_named(project: Project, text: str, expected: str) -> None:
    file = project(text)
    with pytest.raises(OptionError, match=re.escape(f"{file}: tool.asyncflow.{expected}")):
        Settings.load({})


def test_a_wrong_value_that_does_not_count_is_not_looked_at(project: Project) -> None:
    project("max_threads = 0")
    assert Settings.load({}, max_threads=3).max_threads == 3


def test_a_file_that_is_not_toml_is_named(project: Project) -> None:
    file = project("max_threads = ")
    with pytest.raises(SettingsFileError, match=re.escape(f"the settings in {str(file)!r} cannot be read: Invalid")):
        Settings.load({})
    file.write_bytes(b"[tool.asyncflow]\nhome = '\xff'")
    with pytest.raises(SettingsFileError, match="utf-8"):
        Settings.load({})
    project("asyncflow = 3", table="[tool]")
    with pytest.raises(SettingsFileError, match=r"tool\.asyncflow is 3, and must be a table"):
        Settings.load({})
    file.unlink()
    file.mkdir()
    with pytest.raises(SettingsFileError, match="Is a directory"):
        Settings.load({})


def test_a_broken_file_that_does_not_name_asyncflow_is_not_ours(project: Project) -> None:
    project("broken", table="[tool.other]")
    assert Settings.load({}) == Settings()


def test_a_file_that_was_changed_is_read_again(project: Project) -> None:
    project("max_threads = 3")
    assert Settings.load({}).max_threads == 3
    project("max_threads = 44")
    assert Settings.load({}).max_threads == 44


def test_a_working_folder_that_is_gone_has_no_file(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = run_python(
        "import os, asyncflow; os.rmdir(os.getcwd()); print(asyncflow.Settings.load({}) == asyncflow.Settings())",
        cwd=tmp_path / "gone",
    )
    assert done.stdout == "True\n"


# --- what is no setting, and what reading costs ----------------------------------------------


def test_a_variable_that_is_no_setting_is_warned_of_once(run_python: RunPython) -> None:
    code = "import asyncflow\nfor _ in range(3):\n    print(asyncflow.Settings.load().max_threads)"
    unknown = {
        "ASYNCFLOW_MAX_TREADS": "3",
        "ASYNCFLOW_ZZZ": "",
        "ASYNCFLOW_SERVICE_HOST": "10.0.0.1",  # of Kubernetes, for a service named asyncflow
        "ASYNCFLOW_WEB_PORT_80_TCP": "tcp://10.0.0.1:80",
    }
    done = run_python(f"import warnings\nwarnings.simplefilter('always')\n{code}", env=unknown)
    assert done.stdout == "64\n64\n64\n"
    assert [line.partition("Warning: ")[2] for line in done.stderr.splitlines() if "Warning" in line] == [
        "the environment variable ASYNCFLOW_MAX_TREADS is no setting of asyncflow; did you mean ASYNCFLOW_MAX_THREADS?",
        "the environment variable ASYNCFLOW_ZZZ is no setting of asyncflow; "
        "`asyncflow config show` lists those there are",
    ]


def test_a_plain_program_loads_no_library_for_settings(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    done = run_python(
        "import sys, asyncflow\n"
        "@asyncflow.flow\n"
        "def plain():\n"
        "    return 1\n"
        "plain()\n"
        "print(sorted({'pydantic', 'tomllib'} & set(sys.modules)))\n"
    )
    assert done.stdout == "[]\n"


# --- the page about them ---------------------------------------------------------------------


def documented() -> list[str]:
    """The rows of the table in docs/settings.md, made from the fields and the text below each."""
    (body,) = [node.body for node in ast.walk(ast.parse(inspect.getsource(Settings))) if isinstance(node, ast.ClassDef)]
    rows: list[str] = []
    for statement, text in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            value = getattr(Settings(), name)
            shown = "not set" if value is None else str(value) if isinstance(value, str | Path) else json.dumps(value)
            assert isinstance(text, ast.Expr), f"{name} has no text"
            rows.append(f"| `{name}` | `{shown}` | {' '.join(str(ast.literal_eval(text.value)).split())} |")
    return rows


def test_the_page_lists_every_setting() -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    listed = [line for line in page.splitlines() if re.match(r"\| `\w+` \| `[^`]*` \|", line)]
    assert listed == documented(), "the table is to be:\n" + "\n".join(documented())
    assert len(listed) == len(fields(Settings))
