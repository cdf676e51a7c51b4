"""A disk that is full or broken, at every system call: a clear error or none, and then life goes on.

`strace` has the n-th call of one thread fail, for n = 1, 2, ... until there is no n-th: once (a
glitch, which a repeated turn may hide), or from there on until it is stopped (no space, then
space again). In CI a part of all n is taken, another one each time; `KILLS=200` (nox -s crash)
takes all.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.crash.harness import Child, Template, check_home, template
from tests.crash.tracing import injected, why_no_strace

LONG = int(os.environ.get("KILLS", "40")) >= 200
SECONDS = 1.0
"""How long a flow waits for the disk before it says that it is not on disk."""
OF_ONE_FLOW = 60
"""More records than one small flow has."""

traced = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))

FAULTS = [
    ("pwrite64", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("fdatasync", "EIO"),
    ("fsync", "EIO"),
    ("write", "ENOSPC"),
    ("write", "EIO"),
    ("openat", "ENOSPC"),
    ("openat", "EIO"),
    ("openat", "EMFILE"),
    ("rename", "ENOSPC"),
    ("rename", "EIO"),
    ("mkdir", "ENOSPC"),
    ("ftruncate", "EIO"),
    ("pread64", "EIO"),
    ("unlink", "EIO"),
    ("flock", "EIO"),
]


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with template(tmp_path_factory.mktemp("template")) as made:
        yield made


def numbers(step: int) -> Iterator[int]:
    return count(1) if LONG else count(random.randint(1, step), step)


@traced
@pytest.mark.parametrize(("call", "error"), FAULTS)
@pytest.mark.parametrize("program", ["survive_opening", "survive_writing"])
@pytest.mark.timeout(600)
def test_a_call_that_fails_once(children: Template, tmp_path: Path, program: str, call: str, error: str) -> None:
    for number in numbers(5):
        if not survives(children, tmp_path / f"home-{number}", program, call, f"error={error}:when={number}"):
            break


@traced
@pytest.mark.parametrize(("call", "error"), FAULTS)
@pytest.mark.parametrize("program", ["survive_opening", "survive_writing"])
@pytest.mark.timeout(600)
def test_a_disk_that_fails_for_a_while(children: Template, tmp_path: Path, program: str, call: str, error: str) -> None:
    for number in numbers(30):
        if not survives(children, tmp_path / f"home-{number}", program, call, f"error={error}:when={number}+"):
            break


def survives(children: Template, home: Path, program: str, call: str, what: str) -> bool:
    """Whether there was such a call; fails when the child did not come through it as it should."""
    child = children.start(program, home, SECONDS)
    with injected(child, home.with_name("trace"), call, what) as injection:
        child.go()
        come_through(child, injection.stop)
    check_errors(child, home)
    check_home(home, child.acknowledged)
    return injection.happened


def come_through(child: Child, repair: object) -> None:
    """Repair the disk when the child says that it waits for that, and listen until it is done."""
    while (line := child.hear("waiting", "done")) and line[0] == "waiting":
        assert line[1] < OF_ONE_FLOW, "what waits to be written grows"
        assert callable(repair)
        repair()
        child.go()
    assert child.end() == 0
    (done,) = child.words("done")
    assert done[0] < OF_ONE_FLOW


def check_errors(child: Child, home: Path) -> None:
    for kind, message in child.words("error"):
        assert str(home) in message, f"{kind} names no path: {message}"
        assert " failed on " in message, f"{kind} names no operation: {message}"


# --- a disk with no space, really --------------------------------------------------------------------


class SmallDisk:
    """A file system in memory, of 64 MiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (2**20, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def empty(self) -> None:
        self._filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "asyncflow-test", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("program", ["survive_opening", "survive_writing"])
def test_a_full_disk(children: Template, small_disk: SmallDisk, program: str) -> None:
    home = small_disk.folder / "home"
    child = children.start(program, home, SECONDS)
    small_disk.fill()
    child.go()
    come_through(child, small_disk.empty)
    assert child.words("error"), "a full disk went unnoticed"
    check_errors(child, home)
    # It looks every 0.5 s; the rest is for busy machines.
    assert all(seconds < 2 for (seconds,) in child.words("caught up")), "it took long to see that there was space"
    check_home(home, child.acknowledged)


def test_the_queue_in_front_of_a_full_disk_is_bounded(children: Template, small_disk: SmallDisk) -> None:
    limit = 100
    home = small_disk.folder / "home"
    child = children.start("fill_the_queue", home, limit)
    small_disk.fill()
    child.go()
    line = child.hear("waiting")
    assert line is not None, child.said
    # Of 20 times as many. Runs are held back once it is found too long; between two looks some begin.
    assert limit < line[1] < 6 * limit
    small_disk.empty()
    child.go()
    assert child.end() == 0
    assert len(child.acknowledged) == 1
    check_home(home, child.acknowledged)
