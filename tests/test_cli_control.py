"""`asyncflow runs cancel`, `pause`, `suspend`, `resume`: a run of another process does what it is told."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import SHOP, CommandLine, Serving, until

UNKNOWN = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CommandLine, Serving]]:
    """A server that all tests here share, each with runs of its own."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(SHOP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYNCFLOW_HOME", str(folder / "home"))
        server = Serving(CommandLine(folder, folder / "home"), "shop.py")
    try:
        server.wait_for("Serving +waiting/shop")
        yield CommandLine(folder, folder / "home"), server
        assert server.stop(signal.SIGINT) == 130
    finally:
        server.kill()


@pytest.fixture
def asyncflow(shop: tuple[CommandLine, Serving], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("ASYNCFLOW_HOME", str(shop[0].home))
    return shop[0]


def begun(asyncflow: CommandLine, name: str, *words: str) -> str:
    return asyncflow.ok("deployments", "run", f"{name}/shop", *words).out.strip()


def until_it_is(asyncflow: CommandLine, run_id: str, state: str) -> None:
    until(lambda: asyncflow.state_of(run_id) == state, lambda: f"{run_id} {state}")


def test_cancel_ends_a_run_and_then_there_is_nothing_to_cancel(asyncflow: CommandLine, tmp_path: Path) -> None:
    run_id = begun(asyncflow, "waiting", "-p", f"path={tmp_path / 'never'}", "--name", "first")
    until_it_is(asyncflow, run_id, "Running")
    waits = begun(asyncflow, "waiting", "-p", f"path={tmp_path / 'never'}", "--name", "second")  # for its turn

    done = asyncflow.ok("runs", "cancel", waits, "--reason", "not needed")
    assert done.out.startswith("flow run second of waiting is Cancelled: ")
    assert done.out.endswith(": not needed\n")
    assert asyncflow.ok("runs", "cancel", run_id).out.startswith("flow run first of waiting is Cancelled: ")
    assert asyncflow.state_of(run_id) == "Cancelled"
    assert "not needed" in asyncflow.ok("runs", "show", waits).out

    ended = asyncflow.ok("deployments", "run", "add/shop", "--watch")
    assert ended.json == 3
    completed = asyncflow.runs("--deployment", "add/shop", "--limit", "1")[0]["id"]
    refused = asyncflow("runs", "cancel", completed)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.endswith(" of add is Completed: there is nothing to cancel\n")


def test_a_run_is_paused_and_goes_on(asyncflow: CommandLine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run_id = begun(asyncflow, "waiting", "-p", f"path={go}", "--name", "waits")
    until_it_is(asyncflow, run_id, "Running")
    done = asyncflow.ok("runs", "pause", run_id)
    assert done.out == f"flow run waits of waiting is Paused; asyncflow runs resume {run_id}\n"
    assert f"  asyncflow runs resume {run_id}\n" in asyncflow.ok("runs", "show", run_id).out
    assert asyncflow.ok("runs", "resume", run_id).out == "flow run waits of waiting goes on\n"

    refused = asyncflow("runs", "resume", run_id)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith(f"asyncflow: run {run_id} cannot be resumed: ")
    assert refused.err.count("\n") == 1
    go.touch()
    until_it_is(asyncflow, run_id, "Completed")


def test_an_input_is_checked_where_the_run_is_and_told_of(asyncflow: CommandLine) -> None:
    run_id = begun(asyncflow, "asking", "--name", "asks")
    until_it_is(asyncflow, run_id, "Paused")
    shown = asyncflow.ok("runs", "show", run_id).out
    assert '  an input: object\n    yes: boolean = (required)\n    note: string = "none"\n  until ' in shown
    assert f"  asyncflow runs resume {run_id} --input JSON\n" in shown

    bad = asyncflow("runs", "resume", run_id, "--input", '{"yes": "perhaps"}')
    assert (bad.status, bad.out) == (1, "")
    assert f"of run {run_id} does not fit what it waits for:\n  - yes: " in bad.err
    assert "got 'perhaps'" in bad.err
    assert asyncflow.state_of(run_id) == "Paused"
    broken = asyncflow("runs", "resume", run_id, "--input", '{"yes": ')
    assert broken.status == 2
    assert broken.err.startswith("asyncflow: --input: it is not JSON: ")

    assert asyncflow.ok("runs", "resume", run_id, "--input", '{"yes": true}').out == "flow run asks of asking goes on\n"
    until_it_is(asyncflow, run_id, "Completed")
    assert asyncflow.ok("runs", "result", run_id).json == "True none"


def test_a_suspended_run_goes_on_with_whoever_serves_its_deployment(asyncflow: CommandLine) -> None:
    run_id = begun(asyncflow, "resting", "--name", "rests")
    until_it_is(asyncflow, run_id, "Suspended")
    told = asyncflow.ok("runs", "resume", run_id, "--input", "21").out
    assert told == "flow run rests of resting waits for a process that serves resting/shop\n"
    until_it_is(asyncflow, run_id, "Completed")
    assert asyncflow.ok("runs", "result", run_id).json == 42


def test_suspend_ends_what_goes_on_of_a_run(asyncflow: CommandLine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run_id = begun(asyncflow, "waiting", "-p", f"path={go}", "--name", "goes")
    until_it_is(asyncflow, run_id, "Running")
    done = asyncflow.ok("runs", "suspend", run_id)
    assert done.out == f"flow run goes of waiting is Suspended; asyncflow runs resume {run_id}\n"
    assert asyncflow.state_of(run_id) == "Suspended"
    go.touch()
    asyncflow.ok("runs", "resume", run_id)
    until_it_is(asyncflow, run_id, "Completed")


@pytest.mark.parametrize(
    ("command", "wrong"), [("cancel", UNKNOWN), ("pause", "nonsense"), ("suspend", UNKNOWN), ("resume", "nonsense")]
)
def test_unknown_run(asyncflow: CommandLine, command: str, wrong: str) -> None:
    done = asyncflow("runs", command, wrong)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"asyncflow: no run has the id '{wrong}'")
    assert done.err.count("\n") == 1


def test_what_has_not_begun_is_neither_paused_nor_resumed(asyncflow: CommandLine) -> None:
    run_id = begun(asyncflow, "add", "--in", "1h")
    for command, told in (
        ("pause", "cannot be paused"),
        ("suspend", "cannot be paused"),
        ("resume", "cannot be resumed"),
    ):
        done = asyncflow("runs", command, run_id)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith(f"asyncflow: run {run_id} {told}: it ")
        assert "has not begun" in done.err
        assert done.err.count("\n") == 1
