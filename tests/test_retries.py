"""Retries: how many, when, on what condition, and that every attempt is on record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
import pytest

from asyncflow import FlowRun, State, TaskRun, exponential_backoff, flow, get_client, runtime, task
from asyncflow.exceptions import OptionError, RunCancelledError


class Flaky:
    """Fails the first `times` times it is called."""

    def __init__(self, times: int, error: Callable[[], BaseException] = lambda: ConnectionError("down")) -> None:
        self.left = times
        self.calls = 0
        self._error = error

    def __call__(self) -> int:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self._error()
        return self.calls


async def newest_task() -> TaskRun:
    return (await get_client().read_task_runs(limit=1))[0]


async def states_of(run_id: UUID) -> list[State[Any]]:
    return await get_client().read_states(run_id)


async def waits_of(run_id: UUID) -> list[float]:
    """The seconds that each AwaitingRetry was to last."""
    found = []
    for state in await states_of(run_id):
        if state.name == "AwaitingRetry":
            assert state.state_details.scheduled_time is not None
            found.append((state.state_details.scheduled_time - state.timestamp).total_seconds())
    return found


@pytest.mark.parametrize("colour", ["async", "sync"])
@pytest.mark.parametrize("kind", [flow, task])
async def test_a_run_is_tried_again_and_every_attempt_is_recorded(kind: Any, colour: str) -> None:
    flaky = Flaky(2)
    counts: list[tuple[int, int]] = []

    async def body() -> int:
        counts.append((runtime.flow_run.run_count, runtime.task_run.run_count))
        return flaky()

    def sync_body() -> int:
        counts.append((runtime.flow_run.run_count, runtime.task_run.run_count))
        return flaky()

    declared = kind(retries=2, name="flaky")(body if colour == "async" else sync_body)
    state = await declared.acall(return_state=True)
    assert state.result() == 3
    run_id = state.state_details.task_run_id or state.state_details.flow_run_id
    states = await states_of(run_id)
    assert [each.name for each in states] == [
        "Pending",
        "Running",
        "AwaitingRetry",
        "Retrying",
        "AwaitingRetry",
        "Retrying",
        "Completed",
    ]
    assert [each.type.value for each in states[2:4]] == ["SCHEDULED", "RUNNING"]
    assert states[2].message == "ConnectionError: down"
    assert states[2].state_details.scheduled_time is not None
    assert [each.timestamp for each in states] == sorted(each.timestamp for each in states)
    assert len({each.id for each in states}) == len(states)
    client = get_client()
    run: FlowRun | TaskRun = await (client.read_flow_run(run_id) if kind is flow else client.read_task_run(run_id))
    assert run.run_count == 3
    assert run.state == states[-1]
    assert run.start_time == states[1].timestamp
    assert run.end_time == states[-1].timestamp
    assert counts == ([(1, 0), (2, 0), (3, 0)] if kind is flow else [(0, 1), (0, 2), (0, 3)])


def test_a_sync_run_without_a_loop_is_tried_again() -> None:
    flaky = Flaky(2)

    @task(retries=5, retry_delay_seconds=0.001)
    def part() -> int:
        return flaky()

    @flow
    def main() -> int:
        return part()

    assert main() == 3
    assert anyio.run(newest_task).run_count == 3


async def test_the_last_exception_is_the_one_raised_and_knows_nothing_of_the_others() -> None:
    errors = [ValueError(number) for number in range(3)]
    left = list(errors)

    @task(retries=2)
    async def part() -> None:
        raise left.pop(0)

    with pytest.raises(ValueError, match="2") as caught:
        await part()
    assert caught.value is errors[2]
    assert caught.value.__context__ is None
    run = await newest_task()
    assert run.run_count == 3
    assert [each.name for each in await states_of(run.id)][-2:] == ["Retrying", "Failed"]


async def test_without_retries_there_is_one_attempt() -> None:
    flaky = Flaky(1)

    @task
    async def part() -> int:
        return flaky()

    assert (await part(return_state=True)).is_failed()
    assert flaky.calls == 1


async def test_an_interrupt_is_not_retried() -> None:
    flaky = Flaky(1, KeyboardInterrupt)

    @task(retries=5)
    async def part() -> int:
        return flaky()

    with pytest.raises(KeyboardInterrupt):
        await part()
    assert flaky.calls == 1
    assert (await newest_task()).state.is_crashed()


async def test_a_timeout_is_retried() -> None:
    calls = 0

    @task(retries=1, timeout_seconds=0.01)
    async def part() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            await anyio.sleep(60)
        return calls

    assert await part() == 2
    states = await states_of((await newest_task()).id)
    assert [each.name for each in states] == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
    assert "timeout" in (states[2].message or "")


# --- delays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (0, [0, 0, 0]),
        (0.002, [0.002] * 3),
        (timedelta(milliseconds=3), [0.003] * 3),
        ([0.001, 0.002], [0.001, 0.002, 0.002]),
        ((timedelta(milliseconds=1), 0.004, 0.002, 9), [0.001, 0.004, 0.002]),
        ([], [0, 0, 0]),
        (lambda retry: retry / 1000, [0.001, 0.002, 0.003]),
        (lambda retry: timedelta(milliseconds=retry), [0.001, 0.002, 0.003]),
        (exponential_backoff(0.001, factor=2), [0.001, 0.002, 0.004]),
    ],
    ids=["none", "number", "timedelta", "list", "mixed", "empty", "function", "function of timedelta", "exponential"],
)
async def test_the_delay_that_was_asked_for_is_waited(delay: Any, expected: list[float]) -> None:
    flaky = Flaky(3)

    @task(retries=3, retry_delay_seconds=delay)
    async def part() -> int:
        return flaky()

    assert await part() == 4
    run = await newest_task()
    assert await waits_of(run.id) == pytest.approx(expected, abs=2e-6)
    states = await states_of(run.id)
    for waiting, retrying in zip(states[2:-1:2], states[3:-1:2], strict=True):
        assert (waiting.name, retrying.name) == ("AwaitingRetry", "Retrying")
        assert waiting.state_details.scheduled_time is not None
        # The wall clock and the loop's clock are two: they may differ a little.
        assert retrying.timestamp >= waiting.state_details.scheduled_time - timedelta(milliseconds=1)
        assert retrying.state_details.scheduled_time is None


async def test_jitter_spreads_the_delays() -> None:
    flaky = Flaky(20)

    @task(retries=20, retry_delay_seconds=0.001, retry_jitter_factor=0.5)
    async def part() -> int:
        return flaky()

    await part()
    waits = await waits_of((await newest_task()).id)
    assert len(set(waits)) > 5
    assert all(0.0005 - 2e-6 <= wait <= 0.0015 + 2e-6 for wait in waits)


async def test_a_delay_can_be_cancelled() -> None:
    with anyio.CancelScope() as scope:

        def cancel_soon(*_: Any) -> bool:
            scope.cancel()
            return True

        @task(retries=1, retry_delay_seconds=3600, retry_condition_fn=cancel_soon)
        async def part() -> None:
            raise ValueError

        await part()
    assert scope.cancelled_caught
    states = await states_of((await newest_task()).id)
    assert [each.name for each in states] == ["Pending", "Running", "AwaitingRetry", "Cancelled"]


async def test_a_delay_function_that_gives_no_time_fails_the_run_and_says_so() -> None:
    @task(retries=1, retry_delay_seconds=lambda _: -1)
    async def part() -> None:
        raise ValueError("the body's")

    with pytest.raises(OptionError, match="retry_delay_seconds=-1"):
        await part()
    assert (await newest_task()).state.is_failed()


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"retries": True},
        {"retries": 1.5},
        {"retry_delay_seconds": -1},
        {"retry_delay_seconds": [1, "2"]},
        {"retry_delay_seconds": float("nan")},
        {"retry_jitter_factor": -0.1},
        {"retry_condition_fn": 3},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_at_declaration(options: Any) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        task(**options)(Flaky(0).__call__)


# --- conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_condition_may_refuse_another_attempt(colour: str) -> None:
    flaky = Flaky(9, lambda: KeyError("bad request") if flaky.calls == 2 else ConnectionError("down"))
    asked: list[tuple[Any, Any, Any]] = []

    def condition(task_: Any, run: TaskRun, state: State[Any]) -> bool:
        asked.append((task_, run, state))
        return isinstance(state.data, ConnectionError)

    async def async_condition(task_: Any, run: TaskRun, state: State[Any]) -> bool:
        await anyio.sleep(0)
        return condition(task_, run, state)

    @task(retries=9, retry_condition_fn=condition if colour == "sync" else async_condition)
    async def part() -> int:
        return flaky()

    with pytest.raises(KeyError):
        await part()
    assert flaky.calls == 2
    assert [(given, run.run_count) for given, run, _ in asked] == [(part, 1), (part, 2)]
    assert all(isinstance(run, TaskRun) for _, run, _ in asked)
    assert [state.type.value for _, _, state in asked] == ["FAILED"] * 2
    assert [state.message for _, _, state in asked] == ["ConnectionError: down", "KeyError: 'bad request'"]
    run = await newest_task()
    assert [each.name for each in await states_of(run.id)] == [
        "Pending",
        "Running",
        "AwaitingRetry",
        "Retrying",
        "Failed",
    ]


async def test_a_refused_attempt_is_told_by_the_state() -> None:
    @task(retries=1, retry_condition_fn=lambda *_: False)
    async def part() -> None:
        raise ValueError

    state = await part(return_state=True)
    assert state.state_details.retriable is False
    assert (await newest_task()).state.state_details.retriable is False


async def test_a_condition_is_not_asked_when_no_retry_is_left() -> None:
    asked: list[Any] = []

    def condition(*given: Any) -> bool:
        asked.append(given)
        return True

    @task(retries=1, retry_condition_fn=condition)
    async def part() -> None:
        raise ValueError

    await part(return_state=True)
    assert len(asked) == 1


async def test_a_condition_that_raises_refuses_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def condition(*_: Any) -> bool:
        raise ZeroDivisionError("in the condition")

    @task(retries=3, retry_condition_fn=condition)
    async def part() -> None:
        raise ValueError("the body's")

    with pytest.raises(ValueError, match="the body's") as caught:
        await part()
    assert caught.value.__context__ is None
    assert (await newest_task()).run_count == 1
    logged = [each for each in caplog.records if each.name == "asyncflow" and each.levelno == logging.ERROR]
    assert len(logged) == 1
    assert "retry_condition_fn" in logged[0].getMessage()
    assert "in the condition" in caplog.text


def test_an_async_condition_works_without_a_loop() -> None:
    flaky = Flaky(1)

    async def condition(*_: Any) -> bool:
        await anyio.sleep(0)
        return True

    @task(retries=1, retry_condition_fn=condition)
    def part() -> int:
        return flaky()

    assert part() == 2


# --- with others ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("persist", "count"), [(None, 1), (False, 2)])
async def test_a_flow_that_is_retried_runs_again_what_is_not_kept(persist: bool | None, count: int) -> None:
    flaky = Flaky(1)

    @task(persist_result=persist)
    async def part() -> None: ...

    @flow(retries=1)
    async def main() -> int:
        await part()
        return flaky()

    assert await main() == 2
    runs = await get_client().read_task_runs(flow_run_id=(await get_client().read_flow_runs())[0].id)
    assert [run.run_count for run in runs] == [count]


async def test_an_attempt_begins_when_the_children_of_the_last_one_are_gone(anyio_backend_name: str) -> None:
    open_now = 0
    seen: list[int] = []
    began = anyio.Event()
    loose: list[asyncio.Task[None]] = []

    @task
    async def child() -> None:
        nonlocal open_now
        open_now += 1
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            open_now -= 1

    async def guarded() -> None:
        with pytest.raises(RunCancelledError):
            await child()

    @flow(retries=2)
    async def main(outside: Any) -> int:
        nonlocal began
        seen.append(open_now)
        began = anyio.Event()
        if len(seen) == 3:
            return 1
        if anyio_backend_name == "asyncio":  # as a broken gather leaves it
            loose.append(asyncio.ensure_future(child()))
        else:
            outside.start_soon(guarded)
        await began.wait()
        raise ValueError("leaves a child behind")

    async with anyio.create_task_group() as group:
        assert await main(group) == 1
    assert seen == [0, 0, 0]
    assert all(each.cancelled() for each in loose)


async def test_attempts_get_the_same_arguments() -> None:
    flaky = Flaky(2)
    seen: list[Any] = []

    @flow(retries=2)
    async def main(x: int, *rest: int, **more: int) -> int:
        seen.append((x, rest, more))
        return flaky()

    await main("1", 2, a=3)  # type: ignore[call-overload]
    assert seen == [(1, (2,), {"a": 3})] * 3
