"""Sending values to flow runs while they go on, and receiving them: in order, once, and again in a second life."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel

from asyncflow import (
    Runtime,
    cancel_flow_run,
    flow,
    get_client,
    receive_input,
    resume_flow_run,
    runtime,
    send_input,
    suspend_flow_run,
    task,
)
from asyncflow.exceptions import (
    CannotSendInputError,
    InputTimeoutError,
    InputTooLargeError,
    InputValidationError,
    NoFlowRunError,
    NotJSONError,
    OptionError,
    RunNotFoundError,
)
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing import VirtualClock
from tests.conftest import Backend, uvloop_loop

pytestmark = pytest.mark.anyio

LONG = 60


class Order(BaseModel):
    """Something that is sent."""

    item: str
    count: int = 1


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, home: Path) -> Runtime:
    return Runtime(home, store=MemoryStore() if request.param == "memory" else None)


async def test_what_is_sent_is_received_in_order_and_with_its_type(opened: Runtime) -> None:
    @flow(persist_result=False)
    async def shop() -> list[Any]:
        orders = [await receive_input(Order) for _ in range(3)]
        return [*orders, await receive_input(int, key="number"), await receive_input(Any, key="anything")]

    async with opened:
        future = shop.submit()
        await send_input([None, {"x": 1}], future.flow_run_id, key="anything")
        await send_input(7, future.flow_run_id, key="number")
        for count in range(3):
            await send_input({"item": "tea", "count": str(count)}, str(future.flow_run_id))
        assert await future == [
            *(Order(item="tea", count=count) for count in range(3)), 7, [None, {"x": 1}],
        ]  # fmt: skip


async def test_in_one_process_it_comes_at_once(opened: Runtime) -> None:
    took: list[float] = []

    @flow
    async def listens() -> None:
        for _ in range(10):
            sent = await receive_input(float)
            took.append(time.monotonic() - sent)

    async with opened:
        future = listens.submit()
        for received in range(10):
            while not future.run.waits:
                await anyio.sleep(0.001)
            await send_input(time.monotonic(), future.flow_run_id)
            while len(took) == received:
                await anyio.sleep(0.001)
        await future
    assert sorted(took)[5] < 0.5  # a second would be the look at what nobody rang for


async def test_each_value_goes_to_one_body(opened: Runtime) -> None:
    @task
    async def worker() -> list[int]:
        received: list[int] = []
        while (number := await receive_input(int)) >= 0:
            received.append(number)
        return received

    @flow
    async def pool() -> list[list[int]]:
        return [await future for future in [worker.submit() for _ in range(3)]]

    async with opened:
        future = pool.submit()
        for number in range(20):
            await send_input(number, future.flow_run_id)
        for _ in range(3):
            await send_input(-1, future.flow_run_id)
        shares = await future
        assert sorted(number for share in shares for number in share) == list(range(20))
        assert all(share == sorted(share) for share in shares)


async def test_sync_bodies_send_and_receive(opened: Runtime) -> None:
    @task
    def ask(who: str) -> str:
        send_input("how are you?", who).result()
        return receive_input(str, key="answer").result()

    @flow
    def answers(asker: str) -> None:
        question = receive_input(str).result()
        send_input(f"{question} fine", asker, key="answer").result()

    @flow
    async def talk() -> str:
        other = answers.submit(str(runtime.flow_run.id))
        said = await ask.acall(str(other.flow_run_id))
        await other
        return said

    async with opened:
        assert await talk() == "how are you? fine"


def test_a_script_receives_what_a_thread_sends(home: Path) -> None:
    ids: list[UUID] = []
    begun = threading.Event()

    @flow
    def listens() -> int:
        assert runtime.flow_run.id is not None
        ids.append(runtime.flow_run.id)
        begun.set()
        return receive_input(int, timeout=LONG).result()

    def send() -> None:
        begun.wait(LONG)
        send_input(5, ids[0]).result()

    with Runtime(home):
        thread = threading.Thread(target=send)
        thread.start()
        assert listens() == 5
        thread.join()


async def test_what_does_not_fit_is_received_by_the_error(opened: Runtime) -> None:
    @flow
    async def listens() -> list[str]:
        with pytest.raises(InputValidationError) as caught:
            await receive_input(Order, key="order")
        return [str(caught.value), (await receive_input(Order, key="order")).item]

    async with opened:
        future = listens.submit()
        await send_input({"item": 3}, future.flow_run_id, key="order")
        await send_input({"item": "tea"}, future.flow_run_id, key="order")
        message, item = await future
        assert "the input 'order' of run" in message
        assert "item: Input should be a valid string, got 3" in message
        assert item == "tea"


@pytest.fixture
def clock(anyio_backend: Backend, quiet_process: None) -> Iterator[VirtualClock]:
    """Virtual time, in which a day is nothing."""
    if anyio_backend[1].get("loop_factory") is uvloop_loop:
        pytest.skip("uvloop keeps its own time")
    with VirtualClock(io_seconds=0.05) as clock, Runtime(store=MemoryStore(), clock=clock):
        yield clock


async def test_a_wait_has_its_time_and_can_be_cancelled(clock: VirtualClock) -> None:
    @flow
    async def listens() -> str:
        with pytest.raises(InputTimeoutError, match="received no input 'word' within 86400 seconds"):
            await receive_input(str, key="word", timeout=timedelta(days=1))
        with pytest.raises(InputTimeoutError):
            await receive_input(str, key="word", timeout=0)
        return await receive_input(str, key="word", timeout=None)

    async def run() -> None:
        state = await listens(return_state=True)
        assert state.is_cancelled()

    before = clock.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.sleep(100_000)
        assert clock.monotonic() - before >= 86_400
        [waiting] = await get_client().read_flow_runs()
        await cancel_flow_run(waiting.id)


async def test_a_timeout_of_nothing_takes_what_is_there(opened: Runtime) -> None:
    @flow
    async def listens() -> int:
        await send_input(3, str(runtime.flow_run.id))
        return await receive_input(int, timeout=0)

    async with opened:
        assert await listens() == 3


async def test_what_cannot_be_sent(opened: Runtime) -> None:
    @flow
    async def body() -> None: ...

    @task
    async def leaf() -> None:
        with pytest.raises(NoFlowRunError):
            await receive_input(int)

    async with opened:
        state = await body(return_state=True)
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        with pytest.raises(CannotSendInputError, match="it has completed"):
            await send_input(1, run_id)
        with pytest.raises(RunNotFoundError):
            await send_input(1, uuid4())
        with pytest.raises(NotJSONError):
            await send_input(object(), run_id)
        with pytest.raises(OptionError, match="key=''"):
            send_input(1, run_id, key="")
        with pytest.raises(NoFlowRunError, match=r"receive_input\(\.\.\.\) was called outside of any flow run"):
            await receive_input(int)
        await leaf()


async def test_an_input_is_no_larger_than_parameters(home: Path) -> None:
    @flow
    async def listens() -> str:
        return await receive_input(str)

    async with Runtime(home, parameters_limit=50):
        future = listens.submit()
        with pytest.raises(InputTooLargeError, match="52 bytes as JSON, over the limit of 50"):
            await send_input("x" * 50, future.flow_run_id)
        await send_input("x" * 48, future.flow_run_id)
        assert len(await future) == 48


async def test_a_second_life_receives_the_same_again(opened: Runtime) -> None:
    """Also where a task that received something has completed and is not run again."""
    is_broken = True
    lives: list[list[int]] = []

    @task
    async def completes() -> int:
        return await receive_input(int)

    @task
    async def fails() -> int:
        value = await receive_input(int)
        if is_broken:
            raise ConnectionError
        return value

    @flow
    async def listens() -> list[int]:
        life = [await receive_input(int), await completes(), await receive_input(int)]
        lives.append(life)
        return [*life, await fails(), await receive_input(int)]

    async with opened:
        future = listens.submit()
        for number in range(5):
            await send_input(number, future.flow_run_id)
        with pytest.raises(ConnectionError):
            await future
        is_broken = False
        assert await resume_flow_run(future.flow_run_id) == [0, 1, 2, 3, 4]
        assert lives == [[0, 1, 2], [0, 1, 2]]


async def test_a_retried_attempt_receives_the_same_again(opened: Runtime) -> None:
    tried: list[int] = []

    @task(retries=2)
    async def stubborn() -> int:
        value = await receive_input(int)
        tried.append(value)
        if len(tried) < 3:
            raise ConnectionError
        return value

    @flow
    async def listens() -> list[int]:
        return [await stubborn(), await receive_input(int)]

    async with opened:
        future = listens.submit()
        await send_input(1, future.flow_run_id)
        await send_input(2, future.flow_run_id)
        assert await future == [1, 2]
        assert tried == [1, 1, 1]


async def test_what_is_sent_to_a_suspended_run_waits_for_it(opened: Runtime) -> None:
    @flow
    async def listens() -> int:
        await suspend_flow_run()
        return await receive_input(int)

    async with opened:
        state = await listens(return_state=True)
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        await send_input(6, run_id)
        assert await resume_flow_run(run_id) == 6


async def test_many_inputs(opened: Runtime) -> None:
    @flow
    async def adds() -> int:
        return sum([await receive_input(int) for _ in range(300)])

    async with opened:
        future = adds.submit()
        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(send_input, number, future.flow_run_id)
        assert await future == sum(range(300))
