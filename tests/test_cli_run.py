"""`asyncflow run`, `schema` and `version`, as a person or a program sees them."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.command_line import COMMAND, FLOWS, CommandLine


@pytest.fixture
def asyncflow(tmp_path: Path, home: Path) -> CommandLine:
    (tmp_path / "jobs.py").write_text(FLOWS)
    return CommandLine(tmp_path, home)


# --- a flow that completes -------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_result_is_json_on_stdout_and_progress_is_on_stderr(asyncflow: CommandLine, backend: str) -> None:
    done = asyncflow.ok("run", "jobs.py:whole", "-p", "parts=2", "-p", "label=day 1", "--backend", backend)
    assert done.json == {"label": "day 1", "parts": [[0, 10, 20], [100, 110, 120]]}
    lines = [line.split(None, 1)[1] for line in done.err.splitlines()[:-1]]
    name = asyncflow.runs("--flow", "whole")[0]["name"]
    assert [re.sub(r" in \S+ m?s$", "", line) for line in lines] == [
        f"Running       flow whole {name}",
        f"Info          {name}: summing up for day 1",
        "Running       flow part part-0",
        "Completed     flow part part-0",
        "Running       flow part part-10",
        "Completed     flow part part-10",
        f"Completed     flow whole {name}",
    ]
    assert done.err.splitlines()[-1] == "3 flow runs and 6 task runs: 9 Completed"


def test_backend_is_the_one_asked_for(asyncflow: CommandLine) -> None:
    assert asyncflow.ok("run", "jobs.py:library").json == "asyncio"
    assert asyncflow.ok("run", "jobs.py:library", "--backend", "trio").json == "trio"


def test_prints_of_a_flow_and_of_its_subprocesses_leave_stdout_alone(asyncflow: CommandLine) -> None:
    done = asyncflow.ok("run", "jobs.py:doubled", "-p", "numbers=[1, 2]")
    assert done.json == [2, 4]
    assert "a print of the user's\n" in done.err
    assert "a print of a subprocess\n" in done.err


def test_sync_flow_runs_on_the_main_thread(asyncflow: CommandLine) -> None:
    assert asyncflow.ok("run", "jobs.py:main_thread").json is True


@pytest.mark.parametrize("flow", ["counting", "sync_counting"])
def test_items_of_a_generator_are_the_result(asyncflow: CommandLine, flow: str) -> None:
    assert asyncflow.ok("run", f"jobs.py:{flow}", "-p", "to=3").json == [0, 1, 2]


def test_completed_under_another_name_is_completed(asyncflow: CommandLine) -> None:
    done = asyncflow.ok("run", "jobs.py:skipped")
    assert done.json is None
    assert "Skipped" in done.err


def test_result_that_is_not_json_is_shown_as_a_preview_with_a_warning(asyncflow: CommandLine) -> None:
    done = asyncflow.ok("run", "jobs.py:not_json")
    assert list(done.json) == ["__preview__"]
    assert "asyncflow: result.lock[0] is not JSON" in done.err
    assert asyncflow.runs()[0]["state"]["type"] == "COMPLETED"


def test_module_entrypoint_and_flow_under_its_recorded_name(asyncflow: CommandLine) -> None:
    assert asyncflow.ok("run", "jobs:whole", "-p", "parts=0").json["parts"] == []
    assert asyncflow.ok("run", "jobs.py:main-thread").json is True


def test_file_with_one_flow_needs_no_name_and_imports_what_lies_beside_it(asyncflow: CommandLine) -> None:
    folder = asyncflow.folder / "sub"
    folder.mkdir()
    (folder / "beside.py").write_text("import json\nWORD = 'found'\n")
    (folder / "json.py").write_text("")  # a file of a standard module's name must not take its place
    (folder / "one.py").write_text(
        "import sys, beside\nfrom asyncflow import flow\n"
        "@flow\ndef only() -> list[str]:\n    import one\n"
        "    return [beside.WORD, __name__, str(one is sys.modules[__name__])]\n"
    )
    assert asyncflow.ok("run", "sub/one.py").json == ["found", "one", "True"]


def test_home_option_is_where_it_is_recorded(asyncflow: CommandLine) -> None:
    asyncflow.ok("run", "jobs.py:main_thread", "--home", "elsewhere")
    assert not asyncflow.home.exists()
    assert (asyncflow.folder / "elsewhere" / "asyncflow.db").exists()
    assert len(asyncflow.runs("--home", "elsewhere")) == 1


# --- parameters ------------------------------------------------------------------------------


def test_every_kind_of_parameter_is_reached(asyncflow: CommandLine) -> None:
    pairs = ["-p", "a=1", "-p", "b=two", "-p", "args=[1, 2.5]", "-p", "c=true", "-p", "more=x"]
    assert asyncflow.ok("run", "jobs.py:every_kind", *pairs).json == [1, "two", [1.0, 2.5], True, {"more": "x"}]


@pytest.mark.parametrize("text", ["2024-01-01", "12", "true", '{"a":1}', "NaN", "", "a=b"])
def test_text_parameter_takes_the_words_as_they_are(asyncflow: CommandLine, text: str) -> None:
    done = asyncflow.ok("run", "jobs.py:whole", "-p", "parts=0", "-p", f"label={text}")
    assert done.json["label"] == text
    assert asyncflow.runs()[0]["parameters"] == {"parts": 0, "label": text}


def test_json_text_in_quotes_is_that_text(asyncflow: CommandLine) -> None:
    assert asyncflow.ok("run", "jobs.py:whole", "-p", "parts=0", "-p", 'label="12"').json["label"] == "12"


@pytest.mark.parametrize("source", ["parameters.json", "-"])
def test_parameters_from_a_file_give_way_to_the_command_line(asyncflow: CommandLine, source: str) -> None:
    text = json.dumps({"parts": 5, "label": "file"})
    (asyncflow.folder / "parameters.json").write_text(text)
    done = asyncflow.ok("run", "jobs.py:whole", "--params", source, "-p", "parts=0", stdin=text)
    assert done.json == {"label": "file", "parts": []}


def test_flow_that_does_not_validate_gets_what_was_given(asyncflow: CommandLine) -> None:
    assert asyncflow.ok("run", "jobs.py:unchecked", "-p", "a=[1]").json == [[1], 2]
    done = asyncflow("run", "jobs.py:unchecked", "-p", "x=1")
    assert (done.status, done.out) == (2, "")
    assert done.err == "asyncflow: flow 'unchecked': missing a required argument: 'a'\n"


# --- a flow that does not complete -----------------------------------------------------------


def test_failure_is_told_in_short_with_the_place_and_where_to_read_on(asyncflow: CommandLine) -> None:
    done = asyncflow("run", "jobs.py:failing")
    assert (done.status, done.out) == (1, "")
    run = asyncflow.runs()[0]
    line = 1 + FLOWS.splitlines().index('        raise ValueError(f"no item {number}")')
    assert done.err.endswith(
        f"✗ flow failing {run['name']}: Failed\n"
        f"  ValueError: no item -1\n"
        f"    at jobs.py:{line} in fetch\n"
        f"  asyncflow runs show {run['id']}\n"
    )
    assert re.search(r"AwaitingRetry task fetch fetch-\w+: ValueError: no item -1\n", done.err)
    assert re.search(r"Failed        task fetch fetch-\w+ in \d+ ms: ValueError: no item -1\n", done.err)
    assert "Traceback" not in done.err


def test_traceback_is_shown_when_asked_for(asyncflow: CommandLine) -> None:
    done = asyncflow("run", "jobs.py:failing", "--traceback")
    assert done.status == 1
    assert "Traceback (most recent call last)" in done.err
    assert 'raise ValueError(f"no item {number}")' in done.err


@pytest.mark.parametrize(
    ("flow", "state", "told"),
    [
        ("groups", "FAILED", ["ValueError: first", "KeyError: 'second'"]),
        ("given_up", "FAILED", ["on purpose"]),
        ("exiting", "CRASHED", ["SystemExit: out of paper"]),
    ],
)
def test_exit_status_is_1_for_anything_but_completed(
    asyncflow: CommandLine, flow: str, state: str, told: list[str]
) -> None:
    done = asyncflow("run", f"jobs.py:{flow}")
    assert (done.status, done.out) == (1, "")
    assert asyncflow.runs()[0]["state"]["type"] == state
    assert not [text for text in told if text not in done.err]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["jobs.py:waiting"],
        ["jobs.py:waiting_for_task"],
        ["jobs.py:waiting_for_task", "--backend", "trio"],
        ["jobs.py:sync_waiting"],
    ],
)
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_interrupts_it_and_it_can_be_resumed(
    asyncflow: CommandLine, words: list[str], number: signal.Signals, name: str
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", *words],
        cwd=asyncflow.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # An interpreter started with the signal ignored leaves it so: some runners of tests do that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line == "ready\n":
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (128 + number, ""), err
    assert "Traceback" not in err
    runs = [*asyncflow.runs(), *asyncflow.runs("--tasks")]
    assert {(run["state"]["type"], run["state"]["name"]) for run in runs} == {("PAUSED", "Interrupted")}
    assert f"interrupted by {name}\n  asyncflow runs resume {runs[0]['id']}\n" in err


# --- misuse and bad input --------------------------------------------------------------------

NONE_KNOWN = "asyncflow schema ENTRYPOINT shows the parameters there are"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.py:x"], "'nowhere.py:x': there is no such file; "),
        (["nowhere.at.all:x"], "there is no module 'nowhere' here or among the installed packages"),
        (["jobs.py:nothing"], "it has no flow named 'nothing'; its flows are:\n    jobs.py:part\n    jobs.py:whole\n"),
        (["jobs.py:fetch"], "'fetch' is a task (a flow can call it), not a flow"),
        (["jobs.py:os"], "'os' is of type 'module', not a flow"),
        (["jobs.py"], "it has several flows, name one of them:\n    jobs.py:part\n    jobs.py:whole\n"),
        (["jobs.py:whole", "-p", "parts"], "-p 'parts': write a parameter as name=value"),
        (["jobs.py:whole", "-p", "parts=many"], "  - parts: Input should be a valid integer, "),
        (["jobs.py:whole", "-p", "label=null"], "  - label: Input should be a valid string, got None\n"),
        (["jobs.py:whole", "-p", "part=1"], "  - part: No such parameter (there are: parts, label), got 1\n"),
        (["jobs.py:doubled"], "  - numbers: Missing, and it has no default, got nothing\n"),
        (["jobs.py:whole", "--params", "missing.json"], "--params: 'missing.json' cannot be read: No such file"),
        (
            ["jobs.py:whole", "--params", "bad.json"],
            "--params: 'bad.json' is not JSON: Expecting value at line 1 column 7",
        ),
        (["jobs.py:whole", "--params", "list.json"], "--params: 'list.json' holds a JSON array; it must be an object"),
        (["jobs.py:whole", "--params", "big.json"], "over the limit of 524,288; the biggest is 'label' with 600,0"),
        (["jobs.py:whole", "--backend", "twisted"], '"twisted"'),
        (["jobs.py:whole", "--colour"], "--colour"),
        ([], "ENTRYPOINT"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_misuse_is_one_message_and_exit_status_2(asyncflow: CommandLine, words: list[str], told: str) -> None:
    (asyncflow.folder / "bad.json").write_text('{"a": }')
    (asyncflow.folder / "list.json").write_text("[1]")
    (asyncflow.folder / "big.json").write_text(json.dumps({"label": "x" * 600_000}))
    done = asyncflow("run", *words)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("asyncflow: ")
    assert told in done.err
    assert "Traceback" not in done.err
    assert not asyncflow.home.exists(), "nothing was to be recorded"


def test_all_bad_parameters_are_named_at_once(asyncflow: CommandLine) -> None:
    done = asyncflow("run", "jobs.py:every_kind", "-p", "a=x", "-p", "c=maybe")
    assert [line.split(":")[0] for line in done.err.splitlines() if line.startswith("  - ")] == [
        "  - b",
        "  - a",
        "  - c",
    ]


def test_file_without_flows(asyncflow: CommandLine) -> None:
    (asyncflow.folder / "empty.py").write_text("x = 1\n")
    done = asyncflow("run", "empty.py")
    assert (done.status, done.err) == (2, "asyncflow: 'empty.py': it has no flow; declare one with @flow\n")


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("import os\nimport nothing_of_the_kind\n", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("def broken(:\n    pass\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit('not today')\n", "SystemExit: not today"),
    ],
)
@pytest.mark.parametrize("entrypoint", ["bad.py:x", "bad:x"])
def test_file_that_cannot_be_imported_shows_where_and_none_of_our_frames(
    asyncflow: CommandLine, code: str, last: str, entrypoint: str
) -> None:
    (asyncflow.folder / "bad.py").write_text(code)
    done = asyncflow("run", entrypoint)
    assert done.status == 1
    assert done.err.startswith(f"asyncflow: '{entrypoint}' could not be imported:\n")
    assert done.err.endswith(f"{last}\n")
    assert 'bad.py", line ' in done.err
    assert "importlib" not in done.err
    assert "cli/load" not in done.err


def damaged(home: Path) -> None:
    home.mkdir()
    (home / "asyncflow.db").write_text("this is not a database " * 100)


def newer(home: Path) -> None:
    home.mkdir()
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        database.execute(f"PRAGMA application_id = {0x41464C57}")
        database.execute("PRAGMA user_version = 9999")


def a_file(home: Path) -> None:
    home.write_text("")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (damaged, "the file is damaged or not a database"),
        (newer, "it has schema version 9999"),
        (a_file, "it is not a folder"),
    ],
)
def test_home_that_cannot_be_used(asyncflow: CommandLine, spoil: object, told: str) -> None:
    assert callable(spoil)
    spoil(asyncflow.home)
    done = asyncflow("run", "jobs.py:main_thread")
    assert (done.status, done.out) == (1, "")
    assert told in done.err
    assert str(asyncflow.home) in done.err
    assert "ASYNCFLOW_HOME" in done.err
    assert "Traceback" not in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_home_that_cannot_be_written(asyncflow: CommandLine) -> None:
    asyncflow.home.mkdir(mode=0o500)
    done = asyncflow("run", "jobs.py:main_thread")
    assert done.status == 1
    assert str(asyncflow.home) in done.err
    assert "Traceback" not in done.err


# --- the other commands ----------------------------------------------------------------------


def test_schema_is_json(asyncflow: CommandLine) -> None:
    schema = asyncflow.ok("schema", "jobs.py:whole").json
    assert schema["properties"]["parts"] == {"title": "parts", "type": "integer", "position": 0, "default": 2}
    assert schema["required"] == []


def test_version(asyncflow: CommandLine) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", asyncflow.ok("version").out)


def test_bare_command_shows_the_commands(asyncflow: CommandLine) -> None:
    shown = asyncflow.ok().out
    assert not [word for word in ("run", "runs", "schema", "version") if f" {word} " not in shown]


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_without_the_extra_it_says_what_to_install(asyncflow: CommandLine, missing: str) -> None:
    code = f"import sys\nsys.modules[{missing!r}] = None\nfrom asyncflow.cli import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=asyncflow.folder, check=False
    )
    assert done.returncode == 2
    assert done.stderr == 'asyncflow: the command line needs the extra "cli": pip install "asyncflow[cli]"\n'


DEAF = """
import sys
import anyio
from asyncflow import flow, task

@task
async def deaf() -> None:
    while True:
        try:
            sys.stderr.write("ready\\n")
            await anyio.sleep(1000)
        except anyio.get_cancelled_exc_class():
            pass

@flow
async def patient() -> None:
    await deaf()
"""


@pytest.mark.parametrize("interrupts", [1, 2, 3])
def test_run_that_ignores_its_cancellation_cannot_keep_the_process(asyncflow: CommandLine, interrupts: int) -> None:
    (asyncflow.folder / "deaf.py").write_text(DEAF)
    process = subprocess.Popen(
        [*COMMAND, "run", "deaf.py"],
        cwd=asyncflow.folder,
        env={**os.environ, "ASYNCFLOW_GRACE_SECONDS": "0.5", "ASYNCFLOW_DURABILITY_SECONDS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for _ in range(interrupts):
        for line in process.stderr:
            if line == "ready\n":
                break
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, ""), err
    states = {run["state"]["name"] for run in [*asyncflow.runs(), *asyncflow.runs("--tasks")]}
    assert states == {"Interrupted"} or interrupts == 3  # the third leaves at once: the next start marks what was open
