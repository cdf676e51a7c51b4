"""`asyncflow deployments` and what `asyncflow runs` tells of their runs, where nobody serves them at the moment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncflow.cli.app import run_command
from asyncflow.cli.schemas import is_meant_as_text, schema_lines, type_words
from tests.command_line import SHOP, CommandLine, Serving, until


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A home whose deployments were served once."""
    folder = tmp_path_factory.mktemp("known")
    (folder / "shop.py").write_text(SHOP)
    command = CommandLine(folder, folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYNCFLOW_HOME", str(command.home))
        server = Serving(command, "shop.py")
        try:
            server.wait_for("Serving +waiting/shop")
            until(lambda: (command.home / "asyncflow.db").exists(), lambda: "the home")
            until(lambda: "waiting/shop" in command("deployments", "ls").out, lambda: "the deployments")
            assert server.stop(signal.SIGTERM) == 143
        finally:
            server.kill()
    return command


@pytest.fixture
def asyncflow(known: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("ASYNCFLOW_HOME", str(known.home))
    return known


# --- listing and showing ---------------------------------------------------------------------


def test_deployments_are_listed_by_name(asyncflow: CommandLine) -> None:
    head, *lines = asyncflow.ok("deployments", "ls").out.splitlines()
    assert re.split(" {2,}", head.strip()) == ["DEPLOYMENT", "STATE", "SCHEDULE", "NEXT", "NEWEST RUN"]
    names = ["add/shop", "add/yearly", "asking/shop", "failing/shop", "resting/shop", "waiting/shop"]
    assert [line.split()[0] for line in lines] == names
    assert "● active  cron '0 5 1 1 *' Europe/Berlin  in " in lines[1]
    assert "● active  none" in lines[2]
    listed = asyncflow.ok("deployments", "ls", "--flow", "add", "--json").json
    assert [f"{each['flow']}/{each['name']}" for each in listed] == names[:2]
    assert listed[0]["tags"] == ["sums"]
    assert listed[0]["next"] is None
    slots = [datetime.fromisoformat(slot) for slot in listed[1]["schedules"][0]["slots"]]
    assert [(slot.month, slot.day, slot.hour, slot.utcoffset()) for slot in slots] == [(1, 1, 4, timedelta(0))] * 5
    assert listed[1]["next"] == slots[0].isoformat()


def test_show_tells_schedules_parameters_and_limits(asyncflow: CommandLine) -> None:
    shown = asyncflow.ok("deployments", "show", "add/yearly", TZ="America/New_York").out
    assert "● active  deployment add/yearly\n" in shown
    assert f"  entrypoint: {asyncflow.folder / 'shop.py'}:add\n" in shown
    assert "  description: Adds two numbers\n" in shown
    year = datetime.now(UTC).year + 1
    assert (
        re.findall(r"^    \w{3} (.*)$", shown, re.M)[0] == f"{year - 1}-12-31 23:00:00 EST  {year}-01-01 04:00:00 UTC"
    )
    assert len(re.findall(r"UTC$", shown, re.M)) == 5
    assert re.search(r"^  a +integer +1 *\n  b +integer +2 *$", shown, re.M)

    limited = asyncflow.ok("deployments", "show", "add/shop").out
    assert "  tags: sums\n  at once: 4 at most, more wait their turn\n" in limited
    told = asyncflow.ok("deployments", "show", "add/shop", "--json").json
    assert told["parameters"] == {"a": 1}
    assert told["schema"]["required"] == ["a"]


def test_a_name_that_is_nearly_right_is_told(asyncflow: CommandLine) -> None:
    done = asyncflow("deployments", "show", "add/shoop")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("asyncflow: no deployment 'add/shoop' on this home; did you mean 'add/shop'")
    assert done.err.count("\n") == 1
    assert asyncflow("runs", "ls", "--deployment", "nothing/like-it").err.startswith(
        "asyncflow: no deployment 'nothing"
    )


# --- running ---------------------------------------------------------------------------------


def test_a_run_for_later_waits_and_says_when_it_is_due(asyncflow: CommandLine) -> None:
    words = ["deployments", "run", "add/shop", "-p", "b=5", "--in", "2h", "--key", "today", "--tag", "extra"]
    made = asyncflow.ok(*words, "--json").json
    assert made["parameters"] == {"a": 1, "b": 5}
    assert made["tags"] == ["extra", "sums"]
    due = datetime.fromisoformat(made["expected_start_time"])
    assert timedelta(hours=1, minutes=55) < due - datetime.now(UTC) <= timedelta(hours=2)
    assert asyncflow.ok(*words).out.strip() == made["id"], "there is one run with a key"

    head, line = asyncflow.ok("runs", "ls", "--state", "scheduled", "--deployment", "add/shop").out.splitlines()
    assert head.split() == ["ID", "STATE", "FLOW", "NAME", "AGE", "DUE"]
    assert line.startswith(f"{made['id']}  ↻ Scheduled")
    assert re.search(r"  in (1 h 5\d|2 h 00) min$", line)
    shown = asyncflow.ok("runs", "show", made["id"]).out
    assert "  deployment: add/shop\n" in shown
    assert re.search(r"^  due: \S+ \S+, in (1 h 5\d|2 h 00) min\n  key: today$", shown, re.M)
    assert asyncflow.ok("runs", "cancel", made["id"]).out.startswith(f"flow run {made['name']} of add is Cancelled")


def test_words_are_what_the_schema_wants(asyncflow: CommandLine) -> None:
    """Nobody who serves it is there to check them: `path` is a text."""
    made = asyncflow.ok("deployments", "run", "waiting/shop", "-p", "path=815", "--in", "1h", "--json").json
    assert made["parameters"] == {"path": "815"}


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (
            ["add/shop", "-p", "c=3"],
            2,
            "deployment 'add/shop' was given parameters that do not fit its flow:\n"
            "  - c: No such parameter (there are: a, b), got 3\n"
            "asyncflow deployments show add/shop shows the parameters there are",
        ),
        (["nobody/knows"], 1, "no deployment 'nobody/knows' on this home; it is there once"),
    ],
)
def test_misuse_of_run_is_one_message(asyncflow: CommandLine, words: list[str], status: int, told: str) -> None:
    done = asyncflow("deployments", "run", *words)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(f"asyncflow: {told}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--in", "soon"], "--in 'soon': write a length of time, such as 90s, 15m, 2h, 30d, 4w"),
        (["--at", "soon"], "--at 'soon': write a date and time, such as 2024-01-31T12:00"),
        (["--at", "2999-01-01", "--in", "1h"], "--in and --at both say when the run is to begin"),
        (["--watch", "--json"], "--watch prints the value of the run; --json is for"),
    ],
)
def test_options_of_run_that_make_no_sense(words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["deployments", "run", "add/shop", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"asyncflow: {told}")


def test_who_watches_is_told_that_nobody_serves_it_and_can_leave(asyncflow: CommandLine) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "asyncflow", "deployments", "run", "add/shop", "--watch"],
        cwd=asyncflow.folder,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr is not None
    first = watching.stderr.readline()
    run_id = first.split()[-1]
    told = "asyncflow: no process has begun it yet; is one serving add/shop?"
    assert watching.stderr.readline() == f"{told} (its flow is {asyncflow.folder}/shop.py:add)\n"
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=50)
    assert (watching.returncode, out) == (130, "")
    assert err.endswith(f" is Scheduled, and not stopped by this: asyncflow runs cancel {run_id}\n")
    asyncflow.ok("runs", "cancel", run_id)


# --- pausing and removing --------------------------------------------------------------------


def test_a_paused_deployment_has_no_next_slot(asyncflow: CommandLine) -> None:
    assert asyncflow.ok("deployments", "pause", "add/yearly").out == "add/yearly is paused\n"
    [listed] = [each for each in asyncflow.ok("deployments", "ls", "--json").json if each["name"] == "yearly"]
    assert (listed["paused"], listed["next"]) == (True, None)
    assert "‖ paused  deployment add/yearly\n" in asyncflow.ok("deployments", "show", "add/yearly").out
    assert asyncflow.ok("deployments", "resume", "add/yearly").out == "add/yearly is active\n"
    assert asyncflow.ok("deployments", "ls", "--flow", "add", "--json").json[1]["next"] is not None


def test_rm_removes_all_that_are_named_or_none(known: CommandLine, tmp_path: Path, home: Path) -> None:
    shutil.copytree(known.home, home)
    asyncflow = CommandLine(tmp_path, home)
    waits = asyncflow.ok("deployments", "run", "failing/shop", "--in", "1h").out.strip()
    done = asyncflow("deployments", "rm", "failing/shop", "no/such")
    assert (done.status, done.out) == (1, "")
    assert asyncflow.state_of(waits) == "Scheduled"
    assert asyncflow.ok("deployments", "rm", "failing/shop").out == "failing/shop is removed\n"
    assert asyncflow.state_of(waits) == "Cancelled"
    assert asyncflow("deployments", "run", "failing/shop").status == 1


def test_a_home_without_deployments_says_what_to_do(asyncflow: CommandLine, tmp_path: Path) -> None:
    done = asyncflow("deployments", "ls", "--home", str(tmp_path / "none"))
    assert done.status == 1
    assert "nothing is recorded in" in done.err
    assert not (tmp_path / "none").exists()


# --- schemas in words ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "anything"),
        ({"type": "integer"}, "integer"),
        ({"type": "string", "format": "date"}, "date"),
        ({"type": "array", "items": {"type": "string"}}, "array of string"),
        ({"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}, "array of integer or null"),
        ({"enum": ["a", "b"]}, '"a" or "b"'),
        ({"$ref": "#/definitions/Order"}, "Order"),
        ({"type": ["integer", "null"]}, "integer or null"),
    ],
)
def test_a_type_in_words(schema: dict[str, object], words: str) -> None:
    assert type_words(schema) == words


def test_values_of_a_schema() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"default": 2}, "c": {}}, "required": ["a", "c"]}
    assert list(schema_lines(schema, {"c": [1]})) == [
        ("a", "integer", "(required)"),
        ("b", "anything", "2"),
        ("c", "anything", "[1]"),
    ]


@pytest.mark.parametrize(
    ("schema", "value", "is_meant"),
    [
        ({"type": "string"}, 815, True),
        ({"type": "string"}, "815", False),
        ({"type": "string"}, None, False),
        ({"type": "integer"}, 815, False),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, 815, False),
        ({"anyOf": [{"type": "string"}, {}]}, 815, False),
        ({"$ref": "#/definitions/Code"}, 815, True),
        ({}, 815, False),
    ],
)
def test_what_is_meant_as_text(schema: dict[str, object], value: object, is_meant: bool) -> None:
    root = {"definitions": {"Code": {"type": "string"}}}
    assert is_meant_as_text(value, schema, root) is is_meant
