"""Settings: where they come from, what wins, and that a bad one is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncflow import Runtime, Settings, flow
from asyncflow.exceptions import OptionError, ParametersTooLargeError


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
    ],
)
def test_a_bad_variable_is_named(name: str, text: str) -> None:
    with pytest.raises(OptionError, match=f"ASYNCFLOW_{name}='{text}': expected"):
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
    ],
    ids=str,
)
def test_a_bad_keyword_is_named(given: dict[str, Any], tmp_path: Path) -> None:
    (name,) = given
    with pytest.raises(OptionError, match=f"{name}={given[name]!r}: expected"):
        Runtime(tmp_path, **given)


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


async def test_settings_are_read_when_a_runtime_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASYNCFLOW_MAX_THREADS", "9")
    first = Runtime(tmp_path)
    monkeypatch.setenv("ASYNCFLOW_MAX_THREADS", "8")
    assert (first.settings.max_threads, Runtime(tmp_path).settings.max_threads) == (9, 8)
    assert first.home == tmp_path
