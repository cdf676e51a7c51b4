"""SIGKILL at random points of flows whose calls overlap, and their resuming in a new process.

The result is the one of a flow that nobody killed, and no task whose record was on disk before a
kill is executed again. `SEEDS=500` (nox -s crash) is as many as a release wants.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncflow._rows import FLOW, TASK
from tests.crash.harness import COMPLETED, Child, Template, check_home, template
from tests.crash.resumable import LANES, POSITIONS, ROUNDS, STEPS, value_of_lanes

SEEDS = int(os.environ.get("SEEDS", "20"))
BATCH = 5
"""Runs in one process: each is at another point when it is killed."""

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's"),
    pytest.mark.timeout(60 + SEEDS * 2),
]


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with template(tmp_path_factory.mktemp("template")) as made:
        yield made


def live(children: Template, program: str, *arguments: object, most: int | None) -> Child:
    """A process that is killed a moment after one of its first `most` executions, or ends by itself."""
    child = children.start(program, *arguments)
    if most is not None:
        for _ in range(random.randint(1, most)):
            child.hear("executed", "exit")
        child.hear("exit", within=random.uniform(0, 0.01))
        if child.status is None:
            child.kill()
    assert child.end() in (0, -signal.SIGKILL)
    return child


def values(home: Path, kind: int) -> list[Any]:
    """What the completed runs of a kind returned, as the disk has it."""
    query = "SELECT result FROM run WHERE kind = ? AND state = ?"
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        return [json.loads(result) for (result,) in database.execute(query, (kind, COMPLETED))]


def executions(home: Path) -> Counter[tuple[str, ...]]:
    return Counter(tuple(line.split()) for line in (home / "executions.txt").read_text().splitlines())


def lives(children: Template, home: Path, backend: str, name: str, first: int) -> Iterator[Child]:
    """One process after another on one home, each killed at a random point, and at last one that ends."""
    yield live(children, "first_life", home, backend, name, first, BATCH, most=BATCH * LANES * STEPS)
    for _ in range(random.choice((0, 1, 2))):
        yield live(children, "next_life", home, backend, name, most=BATCH)
    yield live(children, "next_life", home, backend, name, most=None)


# --- two coroutines under gather, three tasks each -----------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", ["lanes", "durable lanes"])
def test_a_resumed_flow_returns_the_same_and_repeats_nothing(
    children: Template, tmp_path: Path, backend: str, name: str
) -> None:
    found = repeated = 0
    for first in range(0, SEEDS, BATCH):
        home = tmp_path / f"home-{first}"
        told: dict[int, list[int]] = {}
        before: dict[tuple[str, ...], int] = {}
        for child in lives(children, home, backend, name, first):
            told |= dict(child.words("value"))
            check_home(home, {})
            counts = executions(home)
            assert {call: counts[call] for call in before} == before, "what was on disk was executed again"
            before |= {call: counts[call] for call in map(call_of, values(home, TASK))}
            found += len(before) - len(values(home, FLOW)) * LANES * STEPS
        repeated += sum(counts.values()) - len(before)
        assert max(counts.values(), default=0) <= 4, "once in each life, at most"
        recorded = values(home, FLOW)
        # A run that was killed before its first record never was; all others ended, and right.
        assert set(map(tuple, recorded)) <= {tuple(value_of_lanes(seed)) for seed in range(first, first + BATCH)}
        assert len(before) == len(recorded) * LANES * STEPS
        assert all(value == value_of_lanes(seed) for seed, value in told.items())
    print(f"{found} times a task was found completed; {repeated} executions were repeated because of kills")
    assert found > 0
    assert repeated > 0, "the kills did not hit anything: this test shows nothing"


def call_of(value: dict[str, int]) -> tuple[str, ...]:
    return str(value["seed"]), str(value["lane"]), str(value["number"])


# --- equal calls, and arguments that cannot be compared ----------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_equal_calls_that_are_told_apart_keep_each_its_value(children: Template, tmp_path: Path, backend: str) -> None:
    again = 0
    for first in range(0, SEEDS, BATCH):
        home = tmp_path / f"home-{first}"
        got: dict[tuple[int, int, int], str] = {}
        for child in lives(children, home, backend, "drawing", first):
            for seed, place, number, token in child.words("got"):
                again += (seed, place, number) in got
                assert got.setdefault((seed, place, number), token) == token, "a position got another one's value"
            for seed, value in child.words("value"):
                assert value == [[got[seed, place, number] for number in range(ROUNDS)] for place in range(POSITIONS)]
        assert len(set(got.values())) == len(got)
        # A token whose record did not come to disk is drawn again: no position may ever have got the old one.
        assert set(got.values()) <= {token for _, token in executions(home)}
    assert again > 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_argument_that_cannot_be_compared_never_gets_another_ones_value(
    children: Template, tmp_path: Path, backend: str
) -> None:
    expected = [[f"tenant {tenant} {page}" for page in range(ROUNDS)] for tenant in range(POSITIONS)]
    ended = 0
    for first in range(0, SEEDS, BATCH):
        home = tmp_path / f"home-{first}"
        for child in lives(children, home, backend, "of-tenants", first):
            ended += len(child.words("value"))
            assert all(value == expected for _, value in child.words("value"))
        assert all(value == expected for value in values(home, FLOW))
    assert ended > 0
