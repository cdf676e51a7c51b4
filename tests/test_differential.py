"""The host's cancellation passes through untouched: the same program, with and without asyncflow.

A program is a random tree of bodies that time out, are cancelled, clean up, swallow, fail and run
side by side. It runs twice on a loop whose clock jumps to the next timer, so that deadlines of
several levels, ends of bodies and native cancels fall on the same instant: once as plain functions
and once as flows and tasks. What the caller sees must be the same: the outcome, `task.cancelling()`,
what the next await raises, what each body went through, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import selectors
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import anyio
import pytest
import trio
import trio.testing

from asyncflow import Runtime, flow, task
from asyncflow.stores.memory import MemoryStore

Body: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]
Node: TypeAlias = tuple[Any, ...]
"""A kind of body, its argument, and the nodes below it."""

STEP = 100_003
PROGRAMS = 120
"""Programs per test: a seed of its own each, which a failure names."""
INSTANTS = (0.01, 0.02, 0.03)
"""Few, so that much happens at the same time."""


RESOLUTION = 1e-4
"""Seconds within which a loop takes two timers for the same instant."""
ODD = 0.0037
"""Apart from the instants: whoever awaits a future goes on a turn later than whoever awaits a function."""
BUSY = 300
"""Turns of a loop after which its clock moves although something is ready."""


class Slow(Exception):
    """What a body of a program raises."""


# --- the two worlds ---------------------------------------------------------------------------


@dataclass
class World:
    """Where a program runs: its bodies as they are, or decorated."""

    is_decorated: bool
    is_trio: bool = False
    seen: list[str] = field(default_factory=list[str])
    """What the bodies went through, in order."""

    def now(self) -> float:
        return round(trio.current_time() if self.is_trio else asyncio.get_running_loop().time(), 4)

    def note(self, name: str, what: str) -> None:
        self.seen.append(f"{name} {what} at {self.now():g}")

    def wrapped(self, body: Body, number: int, seconds: float | None = None, retries: int = 0) -> Body:
        """The body as a flow or a task, or its twin."""
        if self.is_decorated:
            declare: Any = flow if number % 2 else task
            ours: Body = declare(body, timeout_seconds=seconds, retries=retries, persist_result=False)
            return ours
        if retries:
            return self._tried_again(body, retries)
        return body if seconds is None else self._timed(body, seconds)

    def _timed(self, body: Body, seconds: float) -> Body:
        async def timed() -> Any:
            if self.is_trio:
                with anyio.fail_after(seconds):
                    return await body()
            async with asyncio.timeout(seconds):
                return await body()

        return timed

    def _tried_again(self, body: Body, retries: int) -> Body:
        async def tried() -> Any:
            before = self.cancelling()
            for left in reversed(range(retries + 1)):
                try:
                    return await body()
                except Exception as error:
                    # As before CPython 3.13 a failed TaskGroup may leave its own request behind.
                    stale = sys.version_info < (3, 13) and isinstance(error, BaseExceptionGroup)
                    if not left or (self.cancelling() > before and not stale):
                        raise
                    await anyio.sleep(0)
            raise AssertionError

        return tried

    def cancelling(self) -> int:
        host = None if self.is_trio else asyncio.current_task()
        return 0 if host is None else host.cancelling()


# --- programs ---------------------------------------------------------------------------------

LEAVES = ("sleep", "raise", "clean", "clean_shielded", "swallow", "answer", "submitter")
SIDE_BY_SIDE = ("gather", "TaskGroup", "anyio_group")
ONE_BY_ONE = ("seq", "move_on_after", "fail_after", "caught", "own_timeout", "tried", "finally")
ANYWHERE = (*ONE_BY_ONE, "anyio_group")
# CPython 3.11's `wait_for` runs a task of its own, which it leaves behind when it is cancelled twice.
ASYNCIO_ONLY = ("timeout", "gather", "TaskGroup", *(("wait_for",) if sys.version_info >= (3, 12) else ()))


def programs(seed: int, *, kinds: tuple[str, ...], is_tied: bool = True) -> Node:
    rng = random.Random(seed)

    def instant() -> float:
        return rng.choice(INSTANTS) if is_tied else rng.uniform(INSTANTS[0], INSTANTS[-1])

    def node(depth: int) -> Node:
        if depth == 0 or rng.random() < 0.15:
            return (rng.choice(LEAVES), instant())
        kind = rng.choice(kinds)
        width = rng.choice((1, 2, 2, 3)) if kind in ("seq", *SIDE_BY_SIDE) else 1
        return (kind, instant(), *(node(depth - 1) for _ in range(width)))

    program = node(rng.choice((2, 3, 4)))
    return program if is_comparable(program) else programs(seed + STEP, kinds=kinds, is_tied=is_tied)


def is_comparable(program: Node) -> bool:
    """Whether asyncflow and plain functions are to be the same in it."""
    if has(program, "own_timeout") and has(program, "clean_shielded"):
        return False  # ours is held back while a body is in an anyio shield, and `asyncio.timeout` is not
    # The end of a run that cancels what it submitted takes turns of the loop, which others beside it can see.
    return not (has(program, *SIDE_BY_SIDE) and has(program, "submitter"))


def has(program: Node, *kinds: str) -> bool:
    return program[0] in kinds or any(has(each, *kinds) for each in program[2:])


class Made:
    """A program's bodies, made for one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.count = 0

    def body(self, program: Node) -> Body:
        self.count += 1
        number, (kind, seconds, *below) = self.count, program
        inner = [self.body(each) for each in below]
        name = f"{kind}-{number}"

        async def body() -> Any:
            self.world.note(name, "began")
            try:
                value = await getattr(self, f"_{kind}")(name, seconds, inner)
            except BaseException as error:
                self.world.note(name, f"ended with {kind_of(error)}")
                raise
            self.world.note(name, f"gave {value}")
            return value

        return self.world.wrapped(
            body, number, seconds if kind == "own_timeout" else None, retries=1 if kind == "tried" else 0
        )

    # leaves

    async def _sleep(self, _name: str, seconds: float, _inner: list[Body]) -> str:
        await anyio.sleep(seconds)
        return "slept"

    async def _raise(self, _name: str, seconds: float, _inner: list[Body]) -> str:
        await anyio.sleep(seconds)
        raise Slow

    async def _clean(self, name: str, seconds: float, _inner: list[Body]) -> str:
        try:
            await anyio.sleep(1)
        finally:
            with contextlib.suppress(trio.Cancelled):  # a level: its clean-up has no time there
                await anyio.sleep(seconds)
                self.world.note(name, "cleaned up")
        return "slept"

    async def _clean_shielded(self, name: str, seconds: float, _inner: list[Body]) -> str:
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(seconds)
            self.world.note(name, "cleaned up")
        return "slept"

    async def _swallow(self, _name: str, seconds: float, _inner: list[Body]) -> str:
        try:
            await anyio.sleep(seconds)
        except asyncio.CancelledError:
            return "swallowed"
        return "slept"

    async def _answer(self, _name: str, seconds: float, _inner: list[Body]) -> str:
        try:
            await anyio.sleep(seconds)
        except (asyncio.CancelledError, trio.Cancelled) as error:
            raise Slow from error
        return "slept"

    async def _submitter(self, _name: str, seconds: float, _inner: list[Body]) -> str:
        async def work() -> str:
            await anyio.sleep(seconds + ODD)
            return "slept"

        if self.world.is_decorated:
            declare: Any = task
            futures = [declare(work, persist_result=False).submit() for _ in range(2)]
            return str((await futures[1], await futures[0])[0])
        return await work()

    # inner nodes

    async def _seq(self, _name: str, _seconds: float, inner: list[Body]) -> list[Any]:
        return [await each() for each in inner]

    async def _timeout(self, _name: str, seconds: float, inner: list[Body]) -> Any:
        async with asyncio.timeout(seconds):
            return await inner[0]()

    async def _wait_for(self, _name: str, seconds: float, inner: list[Body]) -> Any:
        return await asyncio.wait_for(inner[0](), seconds)

    async def _move_on_after(self, _name: str, seconds: float, inner: list[Body]) -> Any:
        with anyio.move_on_after(seconds):
            return await inner[0]()
        return "moved on"

    async def _fail_after(self, _name: str, seconds: float, inner: list[Body]) -> Any:
        with anyio.fail_after(seconds):
            return await inner[0]()

    async def _own_timeout(self, _name: str, _seconds: float, inner: list[Body]) -> Any:
        return await inner[0]()

    async def _tried(self, _name: str, _seconds: float, inner: list[Body]) -> Any:
        return await inner[0]()

    async def _caught(self, _name: str, seconds: float, inner: list[Body]) -> Any:
        try:
            return await inner[0]()
        except Exception as error:
            await anyio.sleep(seconds)
            return f"caught {kind_of(error)}"

    async def _finally(self, name: str, _seconds: float, inner: list[Body]) -> Any:
        try:
            return await inner[0]()
        finally:
            self.world.note(name, "finally")

    async def _gather(self, _name: str, _seconds: float, inner: list[Body]) -> Any:
        # What a broken gather leaves running is cancelled by asyncflow and by nobody else: here its user does that.
        tasks = [asyncio.ensure_future(each()) for each in inner]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _TaskGroup(self, _name: str, _seconds: float, inner: list[Body]) -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ensured(each)) for each in inner]
        return [each.result() for each in tasks]

    async def _anyio_group(self, _name: str, _seconds: float, inner: list[Body]) -> Any:
        async with anyio.create_task_group() as group:
            for each in inner:
                group.start_soon(each)
        return "joined"


async def ensured(body: Body) -> Any:
    return await body()


def kind_of(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({', '.join(sorted(kind_of(each) for each in error.exceptions))})"
    return type(error).__name__


# --- running one ------------------------------------------------------------------------------


@dataclass
class Observed:
    """What a caller sees of a program."""

    outcome: str = ""
    cancelling: int = 0
    stray: str = "nothing"
    seen: list[str] = field(default_factory=list[str])
    reports: list[str] = field(default_factory=list[str])
    left: int = 0


async def observe(world: World, program: Node, observed: Observed) -> None:
    try:
        observed.outcome = f"gave {await Made(world).body(program)()}"
    except BaseException as error:
        observed.outcome = f"raised {kind_of(error)}"
        if isinstance(error, trio.Cancelled):
            raise
    finally:
        observed.cancelling = world.cancelling()
        observed.seen = sorted(world.seen)  # side by side, who is first in an instant may differ
    try:
        for _ in range(3):
            await anyio.sleep(0)
    except BaseException as error:
        observed.stray = kind_of(error)
        raise


class JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, moves its loop's clock on."""

    loop: JumpingLoop
    turns: int = 0
    """Since its clock moved: an anyio scope that is cancelled keeps a loop busy until its tasks have ended."""

    def select(self, timeout: float | None = None) -> Any:
        self.turns += 1
        if timeout == 0 and self.turns > BUSY and (timers := vars(self.loop)["_scheduled"]):
            timeout = max(timers[0].when() - self.loop.moment, 0)
        if timeout:
            self.loop.moment += timeout
            self.turns = 0
        return super().select(timeout if timeout is None else 0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only where everybody waits."""

    def __init__(self) -> None:
        self.moment = 0.0
        selector = JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self._made = itertools.count()
        self._clock_resolution = RESOLUTION

    def call_at(  # type: ignore[override]  # the supertype's is written with type variables for `args`
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        # A heap is not stable: of two timers for one instant, the one that was made first is to come first.
        return super().call_at(when + next(self._made) * RESOLUTION / 1e4, callback, *args, context=context)

    def time(self) -> float:
        return self.moment


def eager_jumping_loop() -> JumpingLoop:
    loop = JumpingLoop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


Attack: TypeAlias = Callable[["asyncio.Task[None]"], object]


def cancel_at(*moments: float) -> Attack:
    def attack(victim: asyncio.Task[None]) -> None:
        for moment in moments:
            victim.get_loop().call_at(moment, victim.cancel)

    return attack


ATTACKS: dict[str, Attack] = {
    "nobody": cancel_at(),
    "a cancel": cancel_at(0.02),
    "a cancel while it cleans up": cancel_at(0.01, 0.02),
    "two cancels at once": cancel_at(0.01, 0.01),
    "a cancel before it begins": asyncio.Task.cancel,
}


def run_asyncio(program: Node, attack: Attack, make: Callable[[], JumpingLoop], *, is_decorated: bool) -> Observed:
    observed = Observed()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: observed.reports.append(context["message"]))
        world = World(is_decorated)
        victim: asyncio.Task[None] = asyncio.Task(observe(world, program, observed), loop=loop)
        attack(victim)
        await asyncio.wait([victim])
        if not victim.cancelled():
            victim.exception()
        observed.left = len(asyncio.all_tasks()) - 1

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())
    return observed


def run_trio(program: Node, moment: float | None, *, is_decorated: bool) -> Observed:
    observed = Observed()

    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.CancelScope(deadline=float("inf") if moment is None else trio.current_time() + moment):
            await observe(World(is_decorated, is_trio=True), program, observed)
        await trio.testing.wait_all_tasks_blocked()
        observed.left = trio.lowlevel.current_statistics().tasks_living - before

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return observed


@contextlib.contextmanager
def recording() -> Iterator[MemoryStore]:
    store = MemoryStore()
    with Runtime(store=store):
        yield store


LOOPS = [pytest.param(JumpingLoop, id="asyncio")]
if sys.version_info >= (3, 12):
    LOOPS.append(pytest.param(eager_jumping_loop, id="asyncio-eager"))
TRIES = 12
"""Of a program that went differently: a run gives way to others every 5 ms of real time, which shifts a turn."""


def difference(run: Callable[[bool], Observed]) -> tuple[Observed, Observed] | None:
    for _ in range(TRIES):
        plain, ours = run(False), run(True)
        if plain == ours:
            return None
    return plain, ours


@pytest.mark.parametrize("attacked_by", ATTACKS)
@pytest.mark.parametrize("make", LOOPS)
def test_a_caller_on_asyncio_sees_what_plain_functions_show(make: Callable[[], JumpingLoop], attacked_by: str) -> None:
    if make is eager_jumping_loop and attacked_by == "a cancel before it begins":
        pytest.skip("an eager task begins at once")
    different: list[Any] = []
    with recording():
        for seed in range(PROGRAMS):
            program = programs(seed, kinds=ANYWHERE + ASYNCIO_ONLY)
            found = difference(lambda ours: run_asyncio(program, ATTACKS[attacked_by], make, is_decorated=ours))  # noqa: B023
            if found:
                different.append((seed, program, *found))
    assert different == []


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "side by side"])
@pytest.mark.parametrize("moment", [None, 0.01, 0.02])
def test_a_caller_on_trio_sees_what_plain_functions_show(moment: float | None, is_tied: bool) -> None:
    # What trio's tasks do in one instant it puts in a random order: either one task, or no two at once. (And a nursery
    # that is cancelled when a child has failed raises both: that is no reason for the twin to try again.)
    kinds = ONE_BY_ONE if is_tied else tuple(kind for kind in ANYWHERE if kind != "tried")
    different: list[Any] = []
    with recording():
        for seed in range(PROGRAMS // 2):
            program = programs(seed, kinds=kinds, is_tied=is_tied)
            found = difference(lambda ours: run_trio(program, moment, is_decorated=ours))  # noqa: B023
            if found:
                different.append((seed, program, *found))
    assert different == []
