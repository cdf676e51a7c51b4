"""`asyncflow runs`: listings, one run and its result, as tables and as JSON; for its logs see `test_cli_logs`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.command_line import COMMAND, FLOWS, CommandLine

UNKNOWN = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A home with some runs in it, which the tests only read."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "jobs.py").write_text(FLOWS)
    command = CommandLine(folder, folder / "home")
    for words in (["whole", "-p", "label=first"], ["failing"], ["not_json"], ["main_thread"]):
        command("run", f"jobs.py:{words[0]}", *words[1:], "--home", "home")
    return command


@pytest.fixture
def asyncflow(recorded: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("ASYNCFLOW_HOME", str(recorded.home))
    return recorded


def run_id(asyncflow: CommandLine, *words: str) -> str:
    found: str = asyncflow.runs(*words)[0]["id"]
    return found


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["main-thread", "not-json", "failing", "part", "part", "whole"]),
        (["--limit", "2", "--offset", "1"], ["not-json", "failing"]),
        (["--flow", "part"], ["part", "part"]),
        (["--name", "part-10"], ["part"]),
        (["--state", "failed"], ["failing"]),
        (["--state", "failed", "--state", "crashed"], ["failing"]),
        (["--since", "1h", "--flow", "failing"], ["failing"]),
        (["--since", "2999-01-01"], []),
        (["--tag", "nightly"], []),
    ],
)
def test_flow_runs_are_listed_newest_first_and_filtered(
    asyncflow: CommandLine, words: list[str], names: list[str]
) -> None:
    assert [run["flow_name"] for run in asyncflow.runs(*words)] == names


def test_task_runs_are_listed(asyncflow: CommandLine) -> None:
    assert len(asyncflow.runs("--tasks")) == 7
    assert {run["task_name"] for run in asyncflow.runs("--tasks")} == {"fetch"}
    assert len(asyncflow.runs("--task", "fetch", "--state", "failed")) == 1
    part = run_id(asyncflow, "--name", "part-0")
    assert [run["flow_run_id"] for run in asyncflow.runs("--tasks", "--in", part)] == [part] * 3


def test_table_has_whole_lines_where_there_is_no_terminal(asyncflow: CommandLine) -> None:
    head, *lines = asyncflow.ok("runs", "ls").out.splitlines()
    assert head.split() == ["ID", "STATE", "FLOW", "NAME", "AGE", "TOOK"]
    assert len(lines) == 6
    for line, run in zip(lines, asyncflow.runs(), strict=True):
        assert line.startswith(run["id"])
        assert f" {run['state']['name']} " in line
        assert f" {run['name']} " in line
    assert asyncflow.ok("runs", "ls", "--since", "2999-01-01").out == "no runs\n"


def test_show_tells_states_parameters_tree_and_result(asyncflow: CommandLine) -> None:
    whole = run_id(asyncflow, "--flow", "whole")
    shown = asyncflow.ok("runs", "show", whole).out
    assert f"  id: {whole}\n" in shown
    assert re.findall(r"^  \S+ \S+  (\w+)$", shown, re.M) == ["Pending", "Running", "Completed"]
    assert '  label = "first"\n' in shown
    assert re.search(r"├─ ✓ part  part-0  \d+ ms\n  │  └─ ✓ fetch \N{MULTIPLICATION SIGN} 3  \d+ ms\n", shown)
    assert "  2 flow runs and 6 task runs: 8 Completed\n" in shown
    assert '"label": "first"' in shown


def test_show_tells_the_error_with_its_traceback(asyncflow: CommandLine) -> None:
    shown = asyncflow.ok("runs", "show", run_id(asyncflow, "--flow", "failing")).out
    assert "Failed  ValueError: no item -1\n" in shown
    assert "Traceback (most recent call last)" in shown
    assert 'raise ValueError(f"no item {number}")' in shown
    retried = asyncflow.ok("runs", "show", run_id(asyncflow, "--task", "fetch", "--state", "failed")).out
    assert "AwaitingRetry  ValueError: no item -1\n" in retried
    assert "  attempts: 2\n" in retried


def test_show_says_why_a_result_was_not_kept(asyncflow: CommandLine) -> None:
    shown = asyncflow.ok("runs", "show", run_id(asyncflow, "--flow", "not-json")).out
    assert "not recorded: result.lock[0] is not JSON" in shown


def test_show_as_json(asyncflow: CommandLine) -> None:
    whole = run_id(asyncflow, "--flow", "whole")
    shown = asyncflow.ok("runs", "show", whole, "--json").json
    assert shown["kind"] == "flow"
    assert [state["type"] for state in shown["states"]] == ["PENDING", "RUNNING", "COMPLETED"]
    assert shown["result"] == {"label": "first", "parts": [[0, 10, 20], [100, 110, 120]]}
    assert shown["error"] is None
    assert [child["name"] for child in shown["children"]] == ["part-0", "part-10"]
    assert [[each["kind"] for each in child["children"]] for child in shown["children"]] == [["task"] * 3] * 2
    failed = asyncflow.ok("runs", "show", run_id(asyncflow, "--flow", "failing"), "--json").json
    assert failed["error"]["type"] == "ValueError"
    assert failed["result"] is None


def test_result_is_json(asyncflow: CommandLine) -> None:
    whole = run_id(asyncflow, "--flow", "whole")
    assert asyncflow.ok("runs", "result", whole).json["parts"][1] == [100, 110, 120]
    task = asyncflow.runs("--task", "fetch", "--state", "completed")[0]["id"]
    assert asyncflow.ok("runs", "result", task).json == 120


def test_run_without_a_result_says_why(asyncflow: CommandLine) -> None:
    for flow, why in (("failing", "it is Failed"), ("not-json", "result.lock[0] is not JSON")):
        done = asyncflow("runs", "result", run_id(asyncflow, "--flow", flow))
        assert (done.status, done.out) == (1, "")
        assert f"has no recorded result: {why}" in done.err


@pytest.mark.parametrize("command", ["show", "logs", "result"])
@pytest.mark.parametrize("wrong", [UNKNOWN, "nonsense"])
def test_unknown_run(asyncflow: CommandLine, command: str, wrong: str) -> None:
    done = asyncflow("runs", command, wrong)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"asyncflow: no run has the id '{wrong}'")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("words", [["ls"], ["show", UNKNOWN], ["logs", UNKNOWN], ["result", UNKNOWN]])
def test_home_that_does_not_exist_is_not_made(asyncflow: CommandLine, tmp_path: Path, words: list[str]) -> None:
    home = tmp_path / "nowhere"
    done = asyncflow("runs", *words, "--home", str(home))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"asyncflow: nothing is recorded in '{home}'")
    assert not home.exists()


def test_damaged_home(asyncflow: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "asyncflow.db").write_text("not a database, as anybody can see " * 100)
    done = asyncflow("runs", "ls", "--home", str(tmp_path))
    assert done.status == 1
    assert "damaged" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ls", "--state", "happy"], "the states are scheduled, pending, running"),
        (["ls", "--since", "yesterday"], "--since 'yesterday': write a date"),
        (["ls", "--limit", "-1"], "--limit"),
        (["ls", "--limit", "many"], "--limit"),
        (["ls", "--flow", "a", "--task", "b"], "--flow lists flow runs and --task lists task runs"),
        (["show"], "RUN_ID"),
    ],
)
def test_misuse_is_exit_status_2(asyncflow: CommandLine, words: list[str], told: str) -> None:
    known = run_id(asyncflow, "--flow", "whole")
    done = asyncflow("runs", *(known if word == "ID" else word for word in words))
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert "Traceback" not in done.err


def test_reader_that_stops_early_is_no_error_of_ours(asyncflow: CommandLine) -> None:
    command = subprocess.Popen(
        [*COMMAND, "runs", "ls"], cwd=asyncflow.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.stderr is not None
    with command.stderr as err:
        assert err.read() == ""
    assert command.wait(20) == 1


def test_json_holds_what_is_not_ascii(asyncflow: CommandLine, tmp_path: Path) -> None:
    words = ["run", "jobs.py:whole", "-p", "parts=0", "-p", "label=Zürich €", "--home", str(tmp_path / "other")]
    done = asyncflow.ok(*words, PYTHONIOENCODING="ascii")
    assert '"label": "Zürich €"' in done.out
    assert json.loads(done.out)["label"] == "Zürich €"
