"""SIGKILL at every system call that changes a disk: nothing acknowledged is lost, nothing is torn.

`strace` counts the calls of one thread and kills the process on entering the n-th, for n = 1, 2, ...
until the program survives. Two threads are of interest: the one that opens a new home, and the
one that writes. `KILLS=200` (nox -s crash) counts the calls of every thread at once as well, each
for itself, whatever threads there are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from asyncflow import Runtime
from tests.crash.harness import Child, Template, check_home, injected, open_runs, template, why_no_strace
from tests.crash.programs import SUM, digest, small_flow

LONG = int(os.environ.get("KILLS", "40")) >= 200

pytestmark = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))

CALLS = (
    "openat", "mkdir", "write", "pwrite64", "fdatasync", "fsync",
    "rename", "renameat2", "unlink", "ftruncate", "flock", "chmod",
)  # fmt: skip


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with template(tmp_path_factory.mktemp("template")) as made:
        yield made


def killed_at(children: Template, program: str, home: Path, call: str, number: int, *, everywhere: bool) -> Child:
    child = children.start(program, home)
    with injected(child, home.with_name("trace"), call, f"signal=KILL:when={number}", every_thread=everywhere):
        child.go()
        child.end()
    assert child.status in (0, -signal.SIGKILL)
    return child


def go_on(home: Path, child: Child) -> None:
    """The home is as it should be, opens again, ends what was left open, and the next flow runs."""
    check_home(home, child.acknowledged)
    with Runtime(home):
        value = small_flow()
        assert value["number"] == SUM
    check_home(home, {**child.acknowledged, value["id"]: digest(value)})
    assert open_runs(home) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("program", ["open_then_run", "run_when_open"])
@pytest.mark.timeout(300)
def test_a_kill_at_any_system_call_of_a_thread(children: Template, tmp_path: Path, program: str, call: str) -> None:
    kill_at_every(children, tmp_path, program, call, everywhere=False)


@pytest.mark.skipif(not LONG, reason="long: KILLS=200 runs it")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.timeout(300)
def test_a_kill_at_any_system_call_of_any_thread(children: Template, tmp_path: Path, call: str) -> None:
    kill_at_every(children, tmp_path, "open_then_run", call, everywhere=True)


def kill_at_every(children: Template, folder: Path, program: str, call: str, *, everywhere: bool) -> None:
    for number in count(1):
        home = folder / f"home-{number}"
        child = killed_at(children, program, home, call, number, everywhere=everywhere)
        go_on(home, child)
        if child.status == 0:
            assert len(child.acknowledged) == 2
            return
