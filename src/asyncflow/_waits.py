"""Records of what live runs wait for, and how they read as text. Frozen, and made when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

__all__ = [
    "AwaitTree", "CodePlace", "CycleStep", "LiveRun", "LiveWait", "PlaceHolder", "WaitKind", "plain_line", "time_spent",
]  # fmt: skip

WaitKind = Literal[
    "await", "cache", "children", "consumer", "delay", "disk", "hook", "item", "key", "limit", "rate_limit", "run",
    "running", "thread", "turn",
]  # fmt: skip

_LONGEST = 200
_MOST_HOLDERS = 3


@dataclass(frozen=True, slots=True)
class CodePlace:
    """A line of code that a frame is at."""

    file: str
    line: int
    function: str
    """Its qualified name."""

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class PlaceHolder:
    """Who holds places of a limit that others wait for."""

    run_id: UUID | None
    """None for code outside of any run."""
    name: str
    count: int
    """How many places."""
    at: CodePlace | None
    """The innermost line of the user's code that it is at."""

    def __str__(self) -> str:
        who = self.name if self.count == 1 else f"{self.name} ({self.count} places)"
        return who if self.at is None else f"{who} at {self.at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWait:
    """One thing that a run waits for, or the code that it executes."""

    kind: WaitKind
    what: str = ""
    """In words: `limit 'db' (2/2)`. Empty where the place in the code says all there is."""
    name: str | None = None
    """Of the limit, the cached value or the transaction: its name or key."""
    run_ids: tuple[UUID, ...] = ()
    """The runs that it waits for."""
    holders: tuple[PlaceHolder, ...] = ()
    until: datetime | None = None
    """When a delay is over."""
    thread: str | None = None
    """The thread that its body executes in, where that is not its loop's."""
    at: CodePlace | None = None
    """The innermost line of the user's code."""
    inside: CodePlace | None = None
    """The innermost line in a library that the user's code called, but for the event loop's own; None without any."""

    def __str__(self) -> str:
        where = "" if self.at is None else f" at {self.at}"
        if self.at is None and self.inside is not None and not self.what:
            where = f" at {self.inside}"
        thread = "" if self.thread is None else f" in thread {self.thread}"
        if self.kind == "running":
            return f"runs{thread}{where}"
        if not self.what:
            inside = "" if self.inside is None or self.at is None else f", inside {self.inside.function}"
            return f"waits{thread}{where}{inside}"
        until = "" if self.until is None else f" until {self.until.astimezone():%H:%M:%S}"
        return f"waits for {plain_line(self.what)}{until}{thread}{where}{self._held_by()}"

    def _held_by(self) -> str:
        if not self.holders:
            return ""
        told = [plain_line(str(each)) for each in self.holders[:_MOST_HOLDERS]]
        more = len(self.holders) - len(told)
        return f", held by {_and(told if not more else [*told, f'{more:,} more'])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """A run of this process that has not ended."""

    id: UUID
    kind: Literal["flow", "task"]
    function: str
    """The name of the flow or task."""
    name: str
    state: str
    """The name of its newest state."""
    since: datetime
    """When it came to that state; aware UTC."""
    parent_id: UUID | None
    """The run whose body called it; None for an outermost one."""
    depth: int
    """0 for an outermost run."""
    waits: tuple[LiveWait, ...]
    """The first is its body's own; others are what tasks of the body wait for beside it."""


@dataclass(frozen=True, slots=True)
class CycleStep:
    """A run in a circle of waits."""

    run_id: UUID
    name: str
    what: str
    """What it waits for and the next run of the circle holds; empty where it waits for that run itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitTree:
    """The live runs of a process and what each waits for. As text, with `str()`: a line for each."""

    pid: int
    taken: datetime
    """Aware UTC."""
    runs: tuple[LiveRun, ...]
    """Each is followed by those that it called."""
    cycles: tuple[tuple[CycleStep, ...], ...] = ()
    """Runs that wait in a circle, so that none of them can go on: each for the next, the last for the first."""

    def __str__(self) -> str:
        if not self.runs:
            return "no live runs"
        caught = {step.run_id for cycle in self.cycles for step in cycle}
        lines = [self._line(run, is_caught=run.id in caught) for run in self.runs]
        return "\n".join([*lines, *map(_cycle_line, self.cycles)])

    def _line(self, run: LiveRun, *, is_caught: bool) -> str:
        age = time_spent((self.taken - run.since).total_seconds())
        waits = "; ".join(map(str, run.waits))
        mark = "  [in a cycle]" if is_caught else ""
        name = run.name if run.name.startswith(run.function) else f"{run.function} {run.name}"
        return f"{'  ' * run.depth}{plain_line(name)}  {run.kind}  {plain_line(run.state)} {age}  {waits}{mark}"


def _cycle_line(cycle: Sequence[CycleStep]) -> str:
    steps: list[str] = []
    for step, then in zip(cycle, (*cycle[1:], *cycle[:1]), strict=True):
        what = f"{plain_line(step.what)}, held by " if step.what else ""
        steps.append(f"{plain_line(step.name)} waits for {what}{plain_line(then.name)}")
    return f"cycle: {'; '.join(steps)}"


# --- words -----------------------------------------------------------------------------------


def plain_line(text: str) -> str:
    """`text` on one line, not too long, without what could control a terminal: names are given by users."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(each if each.isprintable() else "\ufffd" for each in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def time_spent(seconds: float) -> str:
    """A length of time in a few characters: `20 ms`, `1.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    steps: Iterable[tuple[float, Callable[[float], str]]] = (
        (0.9995, lambda s: f"{max(s, 0) * 1000:.0f} ms"),
        (9.95, lambda s: f"{s:.1f} s"),
        (59.5, lambda s: f"{s:.0f} s"),
        (3599.5, lambda s: "{} min {:02} s".format(*divmod(round(s), 60))),
    )
    for limit, told in steps:
        if seconds < limit:
            return told(seconds)
    return "{} h {:02} min".format(*divmod(round(seconds / 60), 60))


def _short(file: str) -> str:
    """The name of the file, with its folder's where it says nothing alone. (A relative path would need the disk.)"""
    path = Path(file)
    return "/".join(path.parts[-2:]) if path.name in ("__init__.py", "__main__.py") else path.name


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
