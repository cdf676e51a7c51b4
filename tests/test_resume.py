"""Running a flow run again: what it completed is found, whatever the order and the edits; the rest is run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel

from asyncflow import (
    Flow,
    NoKey,
    Runtime,
    Transaction,
    cancel_flow_run,
    flow,
    get_client,
    resume_flow_run,
    runtime,
    task,
    transaction,
)
from asyncflow.cache_policies import INPUTS
from asyncflow.exceptions import CannotResumeError, OptionError, ParameterValidationError, RunNotFoundError
from tests.conftest import RunPython


class Executions:
    """Counts how often each body ran, and makes some fail as long as it is told to."""

    def __init__(self) -> None:
        self.count: dict[Any, int] = {}
        self.broken: set[Any] = set()

    def __call__(self, what: Any) -> None:
        self.count[what] = self.count.get(what, 0) + 1
        if what in self.broken:
            raise LookupError(f"{what} is broken")


@pytest.fixture
def ran() -> Executions:
    return Executions()


async def failed_id(call: Callable[[], Awaitable[Any]]) -> UUID:
    """The id of the outermost flow run that `call` makes and that fails."""
    with pytest.raises(LookupError, match="is broken"):
        await call()
    failed = await get_client().read_flow_runs(state="FAILED")
    return next(run.id for run in failed if run.parent_flow_run_id is None)


async def test_what_completed_is_not_run_again(ran: Executions) -> None:
    @task
    async def step(number: int) -> int:
        ran(number)
        return number * 10

    @flow
    async def steps(count: int) -> list[int]:
        return [await step(number) for number in range(count)]

    ran.broken = {2}
    run_id = await failed_id(lambda: steps(4))
    ran.broken = set()

    assert await resume_flow_run(run_id) == [0, 10, 20, 30]
    assert ran.count == {0: 1, 1: 1, 2: 2, 3: 1}
    run = await get_client().read_flow_run(run_id)
    assert (run.state.type, run.run_count, run.parameters) == ("COMPLETED", 2, {"count": 4})
    assert [state.name for state in await get_client().read_states(run_id)] == [
        "Pending", "Running", "Failed", "Resuming", "Retrying", "Completed",
    ]  # fmt: skip
    tasks = await get_client().read_task_runs(flow_run_id=run_id)
    assert sorted(each.run_count for each in tasks) == [1, 1, 1, 2]  # four records: the one that had failed went on


async def test_a_run_can_be_resumed_again_and_again(ran: Executions) -> None:
    @task
    async def step(number: int) -> int:
        ran(number)
        return number

    @flow
    async def steps() -> int:
        return sum([await step(number) for number in range(5)])

    ran.broken = {0, 1, 2, 3, 4}
    run_id = await failed_id(steps)
    for number in range(4):
        ran.broken.discard(number)
        with pytest.raises(LookupError):
            await resume_flow_run(run_id)
    ran.broken = set()
    assert await resume_flow_run(run_id) == 10
    assert ran.count == {0: 2, 1: 2, 2: 2, 3: 2, 4: 2}
    assert (await get_client().read_flow_run(run_id)).run_count == 6


class Item(BaseModel):
    day: date
    tags: set[str]


@dataclass(frozen=True)
class Pair:
    left: int
    right: tuple[str, bytes]


async def test_values_come_back_as_the_annotation_says(ran: Executions) -> None:
    @task
    async def model() -> list[Item]:
        ran("model")
        return [Item(day=date(2024, 2, 29), tags={"a", "b"})]

    @task
    async def pair() -> Pair:
        ran("pair")
        return Pair(2**70, ("x", b"\xff"))

    @task
    async def plain():  # type: ignore[no-untyped-def]
        ran("plain")
        return ("not", "annotated")

    seen: list[Any] = []

    @flow
    async def typed() -> None:
        seen.append((await model(), await pair(), await plain()))
        ran("end")

    ran.broken = {"end"}
    run_id = await failed_id(typed)
    ran.broken = set()
    await resume_flow_run(run_id)
    first, second = seen
    assert second[:2] == first[:2]
    assert first[2] == ("not", "annotated")
    assert second[2] == ["not", "annotated"]  # plain JSON
    assert ran.count == {"model": 1, "pair": 1, "plain": 1, "end": 2}


async def test_a_value_of_another_type_than_promised_now_is_made_again(
    ran: Executions, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name="number")
    async def before() -> str:
        ran("before")
        return "7"

    @task(name="number")
    async def after() -> int:
        ran("after")
        return 7

    versions = [before, after]

    @flow
    async def edited() -> Any:
        value = await versions.pop(0)()
        ran("end")
        return value

    ran.broken = {"end"}
    run_id = await failed_id(edited)
    ran.broken = set()
    assert await resume_flow_run(run_id) == 7
    assert ran.count == {"before": 1, "after": 1, "end": 2}
    assert "'number' cannot be used, so it runs again: Input should be a valid integer, got '7'" in caplog.text


@pytest.mark.parametrize("seed", range(5))
async def test_the_order_under_gather_does_not_matter(ran: Executions, seed: int) -> None:
    shuffled = random.Random(seed)

    @task
    async def step(branch: str, number: int) -> str:
        await anyio.sleep(shuffled.random() / 500)
        ran((branch, number))
        return f"{branch}{number}"

    async def branch(name: str) -> list[str]:
        return [await step(name, number) for number in range(3)]

    @flow
    async def both() -> list[list[str]]:
        results: dict[str, list[str]] = {}

        async def keep(name: str) -> None:
            results[name] = await branch(name)

        async with anyio.create_task_group() as group:
            for name in shuffled.sample("ab", 2):
                group.start_soon(keep, name)
        ran("end")
        return [results[name] for name in "ab"]

    ran.broken = {"end"}
    run_id = await failed_id(both)
    ran.broken = set()
    assert await resume_flow_run(run_id) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert {count for what, count in ran.count.items() if what != "end"} == {1}


async def test_submitted_mapped_and_waiting_ones_too(ran: Executions) -> None:
    @task
    async def double(number: int) -> int:
        ran(("double", number))
        return 2 * number

    @task
    def add(numbers: list[int], extra: int) -> int:
        ran("add")
        return sum(numbers) + extra

    @flow
    async def fan() -> int:
        doubled = double.map(range(20))
        first = double.submit(100)
        total = add.submit(doubled, first)  # waits for both, and its inputs are their values
        value = await total
        ran("end")
        return value

    ran.broken = {"end"}
    run_id = await failed_id(fan)
    ran.broken = set()
    assert await resume_flow_run(run_id) == 380 + 200
    once: dict[Any, int] = {("double", number): 1 for number in [*range(20), 100]}
    assert ran.count == {**once, "add": 1, "end": 2}
    assert len(await get_client().read_task_runs(flow_run_id=run_id)) == 22


async def test_nested_flows_are_found_whole_or_entered_again(ran: Executions) -> None:
    @task
    async def step(name: str, number: int) -> int:
        ran((name, number))
        return number

    @flow
    async def part(name: str) -> int:
        ran(name)
        return sum([await step(name, number) for number in range(3)])

    @flow
    async def whole() -> int:
        return await part("first") + await part("second")

    ran.broken = {("second", 2)}
    run_id = await failed_id(whole)
    before = {run.id for run in await get_client().read_flow_runs()}
    ran.broken = set()
    assert await resume_flow_run(run_id) == 6
    assert ran.count == {
        "first": 1, ("first", 0): 1, ("first", 1): 1, ("first", 2): 1,
        "second": 2, ("second", 0): 1, ("second", 1): 1, ("second", 2): 2,
    }  # fmt: skip
    assert {run.id for run in await get_client().read_flow_runs()} == before
    nested = await get_client().read_flow_runs(parent=run_id)
    assert sorted(run.run_count for run in nested) == [1, 2]
    for each in nested:  # the task run that stands for it says the same
        assert each.parent_task_run_id is not None
        stand_in = await get_client().read_task_run(each.parent_task_run_id)
        assert (stand_in.state.type, stand_in.run_count) == (each.state.type, each.run_count)


async def test_a_value_over_64_kib_comes_from_its_file(ran: Executions) -> None:
    @task
    async def large() -> bytes:
        ran("large")
        return bytes(range(256)) * 1000

    @flow
    async def main() -> int:
        value = await large()
        ran("end")
        return len(value)

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await resume_flow_run(run_id) == 256_000
    assert ran.count["large"] == 1


async def test_a_value_whose_file_is_gone_is_made_again(ran: Executions, home: Path) -> None:
    @task
    async def large() -> str:
        ran("large")
        return "x" * 100_000

    @flow
    async def main() -> int:
        value = await large()
        ran("end")
        return len(value)

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    [file] = [path for path in (home / "results" / str(run_id)).iterdir() if len(path.stem) == 36]
    file.unlink()
    assert await resume_flow_run(run_id) == 100_000
    assert ran.count["large"] == 2


# --- edits between the two lives ------------------------------------------------------------------


@task
async def letter(name: str) -> str:
    current(name)
    return name.upper()


current: Executions = Executions()


def version(*names: str) -> Flow[[], Any]:
    @flow(name="edited")
    async def edited() -> str:
        found = [await letter(name) for name in names]
        current("end")
        return "".join(found)

    return edited


@pytest.mark.parametrize(
    ("after", "run_again"),
    [
        pytest.param("abcd", "", id="unchanged"),
        pytest.param("xabcd", "x", id="inserted-first"),
        pytest.param("abxcd", "x", id="inserted"),
        pytest.param("acd", "", id="deleted"),
        pytest.param("dcba", "", id="reordered"),
        pytest.param("abyd", "y", id="changed-inputs"),
        pytest.param("aabcd", "a", id="one-call-more"),
    ],
)
async def test_edits_of_the_code(after: str, run_again: str) -> None:
    global current
    current = Executions()
    current.broken = {"end"}
    first = version(*"abcd")
    run_id = await failed_id(first)
    current = Executions()
    assert await resume_flow_run(run_id, flow=version(*after)) == after.upper()
    assert current.count == {**dict.fromkeys(run_again, 1), "end": 1}


async def test_a_renamed_task_keeps_its_records_by_its_name(ran: Executions) -> None:
    @task(name="step")
    async def old_name() -> int:
        ran("old")
        return 1

    @task(name="step")
    async def new_name() -> int:
        ran("new")
        return 2

    tasks = [old_name, new_name]

    @flow
    async def main() -> int:
        value = await tasks.pop(0)()
        ran("end")
        return value

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await resume_flow_run(run_id) == 1
    assert ran.count == {"old": 1, "end": 2}


# --- what tells calls apart -----------------------------------------------------------------------


class Client:
    """An argument that cannot be digested."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


async def test_an_argument_that_cannot_be_digested_is_never_answered(ran: Executions) -> None:
    @task
    async def fetch(client: Client) -> str:
        ran(client.tenant)
        return f"data of {client.tenant}"

    clients = [["a", "b", "c"], ["c", "a", "b"]]

    @flow
    async def main() -> list[str]:
        found = [await fetch(Client(tenant)) for tenant in clients.pop(0)]
        ran("end")
        return found

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await resume_flow_run(run_id) == ["data of c", "data of a", "data of b"]
    assert ran.count == {"a": 2, "b": 2, "c": 2, "end": 2}


async def test_an_argument_annotated_nokey_does_not_count(ran: Executions) -> None:
    @task
    async def fetch(client: NoKey[Client], page: int) -> str:
        ran(page)
        return f"{client.tenant} {page}"

    @flow
    async def main() -> list[str]:
        found = [await fetch(Client("it"), page) for page in range(3)]
        ran("end")
        return found

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await resume_flow_run(run_id) == ["it 0", "it 1", "it 2"]
    assert ran.count == {0: 1, 1: 1, 2: 1, "end": 2}


async def test_run_key_tells_equal_calls_apart(ran: Executions) -> None:
    @task
    async def take(queue: str) -> str:
        ran(queue)
        return f"{queue}{ran.count[queue]}"

    orders = [["x", "y", "z"], ["z", "x", "y"]]

    @flow
    async def main() -> dict[str, str]:
        found = {key: await take("q", run_key=key) for key in orders.pop(0)}
        ran("end")
        return found

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await resume_flow_run(run_id) == {"z": "q3", "x": "q1", "y": "q2"}
    assert ran.count["q"] == 3


async def test_equal_calls_are_answered_in_the_order_they_were_made(ran: Executions) -> None:
    @task
    async def poll() -> int:
        ran("poll")
        return ran.count["poll"]

    @flow
    async def main() -> list[int]:
        found = [await poll() for _ in range(4)]
        ran("end")
        return found

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await resume_flow_run(run_id) == [1, 2, 3, 4]


async def test_self_is_an_argument(ran: Executions) -> None:
    @dataclass(frozen=True)
    class Shop:
        name: str

        @task
        async def stock(self) -> str:
            ran(self.name)
            return self.name

    orders = [["a", "b"], ["b", "a"]]

    @flow
    async def main() -> list[str]:
        found = [await Shop(name).stock() for name in orders.pop(0)]
        ran("end")
        return found

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await resume_flow_run(run_id) == ["b", "a"]
    assert ran.count == {"a": 1, "b": 1, "end": 2}


async def test_run_key_has_to_be_text() -> None:
    @task
    async def one() -> int:
        return 1

    with pytest.raises(OptionError, match="run_key"):
        await one(run_key=3)  # type: ignore[call-overload]


async def test_equal_calls_of_several_tasks_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def ask() -> None:
        await anyio.sleep(0)

    @task
    async def other(number: int) -> None:
        await anyio.sleep(0)

    async def call(fn: Callable[[], Awaitable[None]]) -> None:
        await fn()

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(call, ask)
                group.start_soon(other, number)
        for _ in range(3):  # one after the other, and submitted ones, are told apart by their order
            await other(1)
            other.submit(1)

    await main()
    [warning] = [record.getMessage() for record in caplog.records if "equal arguments" in record.getMessage()]
    assert "'ask'" in warning
    assert "run_key" in warning


# --- attempts -------------------------------------------------------------------------------------


async def test_attempts_of_a_task_that_failed_for_good_begin_anew(ran: Executions) -> None:
    @task(retries=2)
    async def step() -> int:
        ran("step")
        return 1

    @flow
    async def main() -> int:
        return await step()

    ran.broken = {"step"}
    run_id = await failed_id(main)
    assert ran.count["step"] == 3
    with pytest.raises(LookupError):
        await resume_flow_run(run_id)
    assert ran.count["step"] == 6
    [record] = await get_client().read_task_runs(flow_run_id=run_id)
    assert record.run_count == 6


async def test_retries_left_over_continue_after_a_cancel(ran: Executions) -> None:
    started = anyio.Event()
    ids: list[Any] = []

    @task(retries=2)
    async def step() -> int:
        ran("step")
        if ran.count["step"] == 2:
            ids.append(runtime.flow_run.id)
            started.set()
            await anyio.sleep(30)
        if ran.count["step"] < 5:
            raise LookupError("step is broken")
        return 1

    @flow
    async def main() -> int:
        return await step()

    async with anyio.create_task_group() as group:

        async def run() -> None:
            with pytest.raises(Exception, match="cancelled"):
                await main()

        group.start_soon(run)
        await started.wait()
        await cancel_flow_run(ids[0])
    with pytest.raises(LookupError):  # the third attempt of three
        await resume_flow_run(ids[0])
    assert ran.count["step"] == 3


async def test_a_flow_that_is_retried_reuses_what_its_tasks_completed(ran: Executions) -> None:
    @task
    async def step(number: int) -> int:
        ran(number)
        return number

    @task(reuse_on_flow_retry=False)
    async def fresh() -> None:
        ran("fresh")

    @task(refresh_cache=True)
    async def refreshed() -> None:
        ran("refreshed")

    @flow
    async def part() -> None:
        await step(100)
        ran("part")

    @flow(retries=2)
    async def main() -> int:
        await fresh()
        await refreshed()
        total = sum([await step(number) for number in range(3)])
        await part()
        ran(f"attempt {runtime.flow_run.run_count}")
        return total

    class FirstTime(set[Any]):
        """What breaks the first time only."""

        def __contains__(self, what: object) -> bool:
            return what in ("attempt 1", 2, "part") and ran.count[what] < 2

    ran.broken = FirstTime()
    assert await main() == 3
    assert ran.count == {
        "fresh": 3, "refreshed": 3, 0: 1, 1: 1, 2: 2, 100: 1, "part": 2, "attempt 3": 1,
    }  # fmt: skip


# --- parameters -----------------------------------------------------------------------------------


async def test_parameters_come_back_typed(ran: Executions) -> None:
    seen: list[Any] = []

    @flow
    async def main(day: date, item: Item, data: bytes, *rest: int, extra: Pair | None = None, **more: float) -> None:
        seen.append((day, item, data, rest, extra, more))
        ran("end")

    ran.broken = {"end"}
    item = Item(day=date(2024, 1, 1), tags={"x"})
    run_id = await failed_id(
        lambda: main(date(2024, 5, 6), item, b"\x00\xff", 1, 2, extra=Pair(1, ("y", b"z")), ratio=0.5)
    )
    ran.broken = set()
    await resume_flow_run(run_id)
    assert seen[1] == seen[0]
    await_again = await get_client().read_flow_run(run_id)
    assert await_again.parameters["rest"] == [1, 2]


async def test_a_parameter_that_is_not_json_has_to_be_given(ran: Executions) -> None:
    @flow(validate_parameters=False)
    async def main(client: Client, number: int) -> str:
        ran("end")
        return f"{client.tenant} {number}"

    ran.broken = {"end"}
    run_id = await failed_id(lambda: main(Client("a"), 3))
    ran.broken = set()
    with pytest.raises(CannotResumeError, match=r"does not hold the value of 'client'.*\{\"client\": \.\.\.\}"):
        await resume_flow_run(run_id)
    with pytest.raises(CannotResumeError, match="no parameter 'server'"):
        await resume_flow_run(run_id, parameters={"server": 1})
    assert (await get_client().read_flow_run(run_id)).state.is_failed()  # nothing has changed
    assert await resume_flow_run(run_id, parameters={"client": Client("b")}) == "b 3"


async def test_parameters_that_are_refused_leave_the_record_as_it_is(ran: Executions) -> None:
    @flow(name="edited parameters")
    async def first(number: int, old: int, *rest: int, **more: int) -> int:
        ran("end")
        return number + old + sum(rest) + more["z"]

    @flow(name="edited parameters")
    async def second(number: date) -> date:
        return number

    ran.broken = {"end"}
    run_id = await failed_id(lambda: first(1, 2, 3, z=4))
    ran.broken = set()
    before = await get_client().read_flow_run(run_id)
    with pytest.raises(ParameterValidationError, match="number"):
        await resume_flow_run(run_id, flow=second)
    with pytest.raises(ParameterValidationError, match="old"):
        await resume_flow_run(run_id, flow=first, parameters={"old": "typo"})
    assert await get_client().read_flow_run(run_id) == before
    assert await resume_flow_run(run_id, flow=first) == 10


# --- what cannot be resumed -----------------------------------------------------------------------


async def test_refusals(ran: Executions) -> None:
    @task
    async def step() -> None:
        ran("step")

    @flow
    async def part() -> None:
        await step()

    @flow
    async def whole() -> None:
        await part()

    @flow
    async def fine() -> int:
        return 1

    ran.broken = {"step"}
    run_id = await failed_id(whole)
    [nested] = await get_client().read_flow_runs(parent=run_id)
    [inner] = await get_client().read_task_runs(flow_run_id=nested.id)
    for part_id in (nested.id, inner.id):
        with pytest.raises(CannotResumeError, match=f"part of another run. Resume that one: {run_id}"):
            await resume_flow_run(part_id)
    with pytest.raises(CannotResumeError, match="not of the flow 'fine'"):
        await resume_flow_run(run_id, flow=fine)
    await fine()
    [done] = await get_client().read_flow_runs(flow_name="fine")
    with pytest.raises(CannotResumeError, match="it is Completed"):
        await resume_flow_run(done.id)
    with pytest.raises(RunNotFoundError):
        await resume_flow_run("no id")
    with pytest.raises(RunNotFoundError):
        await resume_flow_run(UUID(int=1))


async def test_a_run_that_goes_on_is_left_alone() -> None:
    started, end = anyio.Event(), anyio.Event()

    @flow
    async def main() -> None:
        started.set()
        await end.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(main)
        await started.wait()
        for _ in range(100):
            if found := await get_client().read_flow_runs(state="RUNNING"):
                break
            await anyio.sleep(0.01)
        with pytest.raises(CannotResumeError, match="and goes on"):
            await resume_flow_run(found[0].id)
        end.set()
    assert (await get_client().read_flow_run(found[0].id)).state.is_completed()


async def test_of_several_flows_of_a_name_the_one_that_ran_is_taken(ran: Executions) -> None:
    @flow(name="namesake")
    async def one() -> int:
        ran("end")
        return 1

    @flow(name="namesake")
    async def two() -> int:
        return 2

    ran.broken = {"end"}
    run_id = await failed_id(one)
    with pytest.raises(LookupError):
        await resume_flow_run(run_id)
    assert await resume_flow_run(run_id, flow=two) == 2


async def test_a_flow_that_is_not_declared_here_has_to_be_given(ran: Executions) -> None:
    async def body() -> int:
        ran("end")
        return 1

    ran.broken = {"end"}
    gone = flow(body, name="gone")
    run_id = await failed_id(gone)
    del gone
    gc.collect()
    with pytest.raises(CannotResumeError, match=r"no flow named 'gone' \(it was .*test_resume.py:.*body\)"):
        await resume_flow_run(run_id)
    ran.broken = set()
    assert await resume_flow_run(run_id, flow=flow(body, name="gone")) == 1


async def test_one_of_two_that_resume_at_once_gets_it(ran: Executions) -> None:
    @flow
    async def main() -> int:
        ran("end")
        await anyio.sleep(0.01)
        return 1

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    outcomes: list[Any] = []

    async def resume() -> None:
        try:
            outcomes.append(await resume_flow_run(run_id))
        except CannotResumeError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(resume)
    assert outcomes.count(1) == 1
    assert ran.count == {"end": 2}


async def test_return_state(ran: Executions) -> None:
    @flow
    async def main() -> int:
        ran("end")
        return 1

    ran.broken = {"end"}
    run_id = await failed_id(main)
    assert (await resume_flow_run(run_id, return_state=True)).is_failed()
    ran.broken = set()
    state = await resume_flow_run(run_id, return_state=True)
    assert (state.is_completed(), state.result()) == (True, 1)


async def test_resuming_inside_a_run_starts_an_outermost_one(ran: Executions) -> None:
    @flow
    async def main() -> Any:
        ran("end")
        return runtime.flow_run.id

    @flow
    async def around() -> Any:
        value = await resume_flow_run(run_id)
        assert runtime.flow_run.flow_name == "around"
        return value

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    assert await around() == run_id


def test_a_sync_flow_is_resumed_from_a_script(ran: Executions) -> None:
    @task
    def step(number: int) -> int:
        ran(number)
        return number

    @flow
    def main() -> int:
        total = sum(step(number) for number in range(3))
        futures = step.map(range(10, 13))
        total += sum(future.result() for future in futures)
        ran("end")
        return total

    ran.broken = {"end"}
    with pytest.raises(LookupError):
        main()
    ran.broken = set()

    async def resume() -> int:
        [run] = await get_client().read_flow_runs()
        value: int = await resume_flow_run(run.id)
        return value

    assert asyncio.run(resume()) == 3 + 33
    assert ran.count == {0: 1, 1: 1, 2: 1, 10: 1, 11: 1, 12: 1, "end": 2}


async def test_without_persistence_everything_runs_again(ran: Executions, tmp_path: Path) -> None:
    @task
    async def step() -> int:
        ran("step")
        return 1

    @flow
    async def main() -> int:
        value = await step()
        ran("end")
        return value

    ran.broken = {"end"}
    async with Runtime(tmp_path / "other", persist_results_by_default=False):
        run_id = await failed_id(main)
        ran.broken = set()
        assert await resume_flow_run(run_id) == 1
    assert ran.count == {"step": 2, "end": 2}


# --- after the process died -----------------------------------------------------------------------

DYING = """
import os, signal, sys
import anyio
from asyncflow import flow, task, Runtime

HERE = sys.argv[1]

@task
async def step(number: int) -> int:
    with open(HERE + "/executed", "a") as file:
        file.write(f"{number}\\n")
    if number == 3 and sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return number

@flow(resume="auto", durability="task")  # what came before the kill is on disk
async def steps() -> int:
    return sum([await step(number) for number in range(5)])

async def main() -> None:
    async with Runtime():
        if sys.argv[2] == "die":
            await steps()

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_of_a_killed_process_goes_on_by_itself(
    run_python: RunPython, tmp_path: Path, home: Path, backend: str
) -> None:
    program = tmp_path / "dying.py"
    program.write_text(DYING)
    died = run_python(program, str(tmp_path), "die", backend, check=False)
    assert died.returncode == -signal.SIGKILL
    run_python(program, str(tmp_path), "go on", backend)
    assert (tmp_path / "executed").read_text().split() == ["0", "1", "2", "3", "3", "4"]
    with sqlite3.connect(home / "asyncflow.db") as connection:
        [run] = connection.execute("SELECT state_type, run_count, result FROM flow_runs").fetchall()
        states = connection.execute("SELECT name FROM states WHERE run_kind = 'flow run'").fetchall()
    connection.close()
    assert run == ("COMPLETED", 2, "10")
    assert [name for (name,) in states] == [
        "Pending", "Running", "Interrupted", "Resuming", "Retrying", "Completed",
    ]  # fmt: skip


def test_a_run_of_a_killed_process_is_resumed_by_its_id(run_python: RunPython, tmp_path: Path, home: Path) -> None:
    program = tmp_path / "dying.py"
    program.write_text(DYING.replace('resume="auto", ', ""))
    run_python(program, str(tmp_path), "die", "asyncio", check=False)
    with sqlite3.connect(home / "asyncflow.db") as connection:
        [(run_id, state)] = connection.execute("SELECT id, state_type FROM flow_runs").fetchall()
    connection.close()
    assert state == "RUNNING"  # nobody has looked yet
    done = run_python(
        "import sys, anyio; sys.argv = ['', sys.argv[1], 'go on']\n"
        "from dying import steps\n"
        "from asyncflow import resume_flow_run\n"
        f"print(anyio.run(resume_flow_run, {run_id!r}))",
        str(tmp_path),
    )
    assert done.stdout == "10\n"
    assert (tmp_path / "executed").read_text().split() == ["0", "1", "2", "3", "3", "4"]


async def test_a_resume_that_is_cancelled_at_any_moment_can_be_resumed_again(ran: Executions) -> None:
    @flow
    async def main(day: str) -> str:
        await anyio.sleep(0.001)
        ran("end")
        return day

    ran.broken = {"end"}
    run_id = await failed_id(lambda: main("monday"))

    async def resume() -> None:
        with pytest.raises(LookupError):
            await resume_flow_run(run_id)

    for turns in range(1, 30):
        async with anyio.create_task_group() as group:
            group.start_soon(resume)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        while not (now := await get_client().read_flow_run(run_id)).state.is_final():
            await anyio.sleep(0.001)  # the thread that claims it may still be at it
        assert now.parameters == {"day": "monday"}, turns
    ran.broken = set()
    assert await resume_flow_run(run_id) == "monday"


# --- beside the cache, transactions and generators ------------------------------------------------


async def test_a_value_that_came_from_the_cache_is_found_too(ran: Executions) -> None:
    @task(cache_policy=INPUTS)
    async def price(item: str) -> int:
        ran(item)
        return ran.count[item]

    @flow
    async def warm() -> int:
        return await price("tea")

    @flow
    async def order() -> int:
        found = await price("tea")
        ran("end")
        return found

    await warm()
    ran.broken = {"end"}
    run_id = await failed_id(order)
    ran.broken = set()
    await price.with_options(refresh_cache=True)("tea")  # now it is another one
    assert await resume_flow_run(run_id) == 1
    assert ran.count == {"tea": 2, "end": 2}
    [record] = await get_client().read_task_runs(flow_run_id=run_id)
    assert record.state.name == "Cached"


@pytest.mark.parametrize("ends", ["committed", "rolled back"])
async def test_hooks_of_a_transaction_are_called_once_in_all_lives(ran: Executions, ends: str) -> None:
    called: list[str] = []

    @task
    async def take(number: int) -> int:
        ran(number)
        return number

    @take.on_commit
    async def confirm(_: Transaction) -> None:
        called.append("confirm")

    @take.on_rollback
    def give_back(_: Transaction) -> None:
        called.append("give back")

    @flow
    async def order() -> None:
        async with transaction():
            await take(1)
            if ends == "rolled back":
                ran("inside")
        ran("end")

    ran.broken = {"inside", "end"}
    run_id = await failed_id(order)
    ran.broken = set()
    await resume_flow_run(run_id)
    if ends == "committed":
        assert called == ["confirm"]
        assert ran.count[1] == 1
    else:  # what was undone is done again
        assert called == ["give back", "confirm"]
        assert ran.count[1] == 2


async def test_a_generator_runs_again_and_finds_what_it_called(ran: Executions) -> None:
    @task
    async def charge(number: int) -> int:
        ran(number)
        return number

    @flow
    async def charges(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield await charge(number)

    @flow
    async def day() -> int:
        total = sum([each async for each in charges(3)])
        ran("end")
        return total

    ran.broken = {"end"}
    run_id = await failed_id(day)
    ran.broken = set()
    assert await resume_flow_run(run_id) == 3
    assert ran.count == {0: 1, 1: 1, 2: 1, "end": 2}
    [nested] = await get_client().read_flow_runs(parent=run_id)
    assert (nested.state.type, nested.run_count) == ("COMPLETED", 2)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio would not let go of a task that ignores it
async def test_a_run_that_was_just_given_up_can_be_resumed(tmp_path: Path) -> None:
    is_deaf = True
    ids: list[Any] = []

    @flow
    async def deaf() -> int:
        ids.append(runtime.flow_run.id)
        while is_deaf:
            with contextlib.suppress(asyncio.CancelledError):  # what a body must not do
                await asyncio.sleep(0.01)
        return 1

    async with Runtime(tmp_path / "other", grace_seconds=0.05):
        running = asyncio.ensure_future(deaf())
        while not ids:
            await asyncio.sleep(0)
        assert (await cancel_flow_run(ids[0])).is_crashed()
        is_deaf = False
        assert await resume_flow_run(ids[0]) == 1
        await asyncio.wait([running])


def test_a_run_that_goes_on_by_itself_and_fails_is_told_of(run_python: RunPython, tmp_path: Path) -> None:
    program = tmp_path / "failing.py"
    fails = '    if sys.argv[2] != "die":\n        raise ValueError(number)\n    return number\n'
    program.write_text(DYING.replace("    return number\n", fails))
    run_python(program, str(tmp_path), "die", "asyncio", check=False)
    told = run_python(program, str(tmp_path), "go on", "asyncio").stderr
    assert "nobody looked at their futures" in told
    assert "ValueError: 3" in told


TAKEN_BACK = """
import os, signal, sys
import anyio
from asyncflow import Runtime, flow, get_client, resume_flow_run, task, transaction

LIFE = int(sys.argv[2])

def log(what: str) -> None:
    with open(sys.argv[1] + "/log", "a") as file:
        file.write(f"{LIFE}:{what} ")

@task
async def take(number: int) -> int:
    log(f"take{number}")
    return number

@take.on_rollback
def give_back(txn) -> None:
    log("back")

@take.on_commit
def confirm(txn) -> None:
    log("confirm")

@flow
async def part(number: int) -> int:
    return await take(number)

@flow(durability="task")  # what came before the kill is on disk
async def whole() -> None:
    async with transaction():
        await take(1)
        await part(2)
        await take(3)
        if LIFE == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if LIFE == 2:
            raise LookupError
    if LIFE == 3:
        raise LookupError

async def main() -> None:
    async with Runtime():
        runs = await get_client().read_flow_runs(flow_name="whole")
        try:
            await (resume_flow_run(runs[0].id) if runs else whole())
        except LookupError:
            pass

anyio.run(main)
"""


def test_a_transaction_goes_through_four_lives(run_python: RunPython, tmp_path: Path) -> None:
    program = tmp_path / "lives.py"
    program.write_text(TAKEN_BACK)
    for life in range(1, 5):
        run_python(program, str(tmp_path), str(life), check=False)
    assert (tmp_path / "log").read_text().split() == [
        "1:take1", "1:take2", "1:take3",  # killed
        "2:back", "2:back", "2:back",  # nothing is done again; then it fails, and all is undone, the nested one's too
        "3:take1", "3:take2", "3:take3", "3:confirm", "3:confirm", "3:confirm",  # committed; the flow fails later
    ]  # fmt: skip  # in the fourth there is nothing left to do


async def test_what_hooks_call_is_done_each_time_and_is_nobody_else_s(ran: Executions) -> None:
    """Neither is it found in the record of an earlier attempt, nor is its record taken by an equal call of the body."""

    @task
    async def ticket(kind: str) -> int:
        ran(kind)
        return ran.count[kind]

    @task
    async def act() -> None:
        ran("act")

    @act.on_rollback
    async def undo(_: Transaction) -> None:
        async with transaction():  # also in one of its own
            await ticket("undo")

    async def announce(*_: Any) -> None:
        await ticket("x")

    seen: list[int] = []

    @flow(retries=2, on_running=[announce])
    async def main() -> None:
        seen.append(await ticket("x"))
        async with transaction():
            await act()
            if ran.count["act"] < 3:
                raise LookupError

    await main()
    assert seen == [2, 2, 2]
    assert ran.count == {"x": 4, "act": 3, "undo": 2}


async def test_what_was_committed_stays_so_whatever_becomes_of_a_later_life(ran: Executions) -> None:
    called: list[str] = []

    @task
    async def charge(number: int) -> int:
        ran(number)
        return number

    charge.on_commit(lambda _: called.append("mail"))
    charge.on_rollback(lambda _: called.append("refund"))

    @flow
    async def order() -> None:
        async with transaction():
            await charge(1)
            ran("inside")
        ran("end")

    ran.broken = {"end"}
    run_id = await failed_id(order)
    for broken in ({"inside"}, set[Any]()):
        ran.broken = broken
        with contextlib.suppress(LookupError):
            await resume_flow_run(run_id)
    assert (await get_client().read_flow_run(run_id)).state.is_completed()
    assert (ran.count[1], called) == (1, ["mail"])


async def test_submitted_equal_calls_come_in_the_order_they_began(ran: Executions) -> None:
    seen: list[list[int]] = []

    @task(persist_result=False)
    async def page() -> int:
        await anyio.sleep(0.01)
        return 1

    @task
    async def token(page: int) -> int:
        ran("token")
        return ran.count["token"]

    @flow
    async def main() -> None:
        waits, at_once = token.submit(page.submit()), token.submit(1)
        seen.append([await waits, await at_once])
        ran("end")

    ran.broken = {"end"}
    run_id = await failed_id(main)
    ran.broken = set()
    await resume_flow_run(run_id)
    assert seen == [[2, 1], [2, 1]]


async def test_equal_calls_of_a_cached_task_are_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    @task(cache_policy=INPUTS)
    async def population(country: str) -> int:
        await anyio.sleep(0.001)
        return 8

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(population, "CH")

    await main()
    assert "equal arguments" not in caplog.text
