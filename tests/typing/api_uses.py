# pyright: strict
# pyright: reportUnnecessaryTypeIgnoreComment=true
"""Uses of the declarations as a type checker sees them. Never run.

mypy --strict and pyright strict must both accept this file. `assert_type` fails on a result that is
`Any` or unknown. A call that must be refused carries one ignore for each checker, and both report
an ignore that is no longer needed, so a call that stops being refused is found. pyright must run
with enableTypeIgnoreComments = false: otherwise mypy's comments hide the errors from it.

Results are compared, not declarations: for `async def` pyright infers `CoroutineType` where mypy
infers `Coroutine`.
"""

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from datetime import timedelta
from typing import Any, TypeVar, assert_type

from asyncflow import (
    Deployment,
    Flow,
    FlowRun,
    NoKey,
    Operation,
    State,
    Task,
    Transaction,
    cancel_flow_run,
    flow,
    pause_flow_run,
    receive_input,
    run_deployment,
    send_input,
    serve,
    suspend_flow_run,
    task,
    transaction,
)
from asyncflow.cache_policies import INPUTS, RUN_ID
from asyncflow.schedules import Interval

X = TypeVar("X")


@task
async def fetch(url: str, *, retries: int = 0) -> bytes:
    return url.encode() * retries


@task(name="parse", retries=3, retry_delay_seconds=timedelta(seconds=1))
def parse(page: bytes, encoding: str = "utf-8") -> list[str]:
    return page.decode(encoding).split()


@task()
async def notify() -> None: ...


@task
def total(*amounts: int, **labels: str) -> int:
    return sum(amounts) + len(labels)


@task
def same(value: X) -> X:
    return value


@task
async def same_async(value: X) -> X:
    return value


@flow
async def crawl(url: str, depth: int = 1) -> dict[str, int]:
    return {url: depth}


@flow(name="report", retries=1)
def report(day: str) -> int:
    return len(day)


async def calls_keep_the_signature() -> None:
    assert_type(await fetch("https://example.org"), bytes)
    assert_type(await fetch(url="https://example.org", retries=2), bytes)
    assert_type(parse(b"a b"), list[str])
    assert_type(parse(page=b"a b", encoding="ascii"), list[str])
    assert_type(await notify(), None)
    assert_type(total(1, 2, unit="EUR"), int)
    assert_type(same(1), int)
    assert_type(await same_async("a"), str)
    assert_type(await crawl("https://example.org", depth=2), dict[str, int])
    assert_type(report("monday"), int)

    as_function: Callable[[str], Coroutine[Any, Any, bytes]] = fetch
    as_task: Task[[str], Coroutine[Any, Any, dict[str, int]]] = task(as_function_of(crawl))
    as_flow: Flow[[str], int] = report
    del as_function, as_task, as_flow


def as_function_of(declared: Callable[[str], X]) -> Callable[[str], X]:
    return declared


async def wrong_calls_are_refused() -> None:
    await fetch()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await fetch(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await fetch("a", 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await fetch("a", retry=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    parse("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    parse(b"a", encoding=8)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    total(1, unit=2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    report(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await crawl(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def call_keywords() -> None:
    await assert_type(fetch("a", return_state=True), Coroutine[Any, Any, State[bytes]])
    assert_type(await fetch("a", retries=1, return_state=True), State[bytes])
    assert_type(parse(b"a", return_state=True), State[list[str]])
    assert_type(parse(b"a", return_state=True).result(), list[str])
    assert_type(await notify(return_state=True), State[None])
    assert_type(await crawl("a", return_state=True), State[dict[str, int]])
    assert_type(report("a", return_state=True), State[int])
    # `**labels: str` does not take True; with `**labels: Any` the result would be typed as int.
    assert_type(total(1, return_state=True), State[int])

    parse(b"a", return_state=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def acall_gives_the_value_of_either_colour() -> None:
    assert_type(await fetch.acall("a", retries=1), bytes)
    assert_type(await parse.acall(b"a"), list[str])
    assert_type(await notify.acall(), None)
    assert_type(await same.acall(1), int)
    assert_type(await same_async.acall(1), int)
    assert_type(await crawl.acall("a"), dict[str, int])
    assert_type(await report.acall("a"), int)

    assert_type(await fetch.acall("a", return_state=True), State[bytes])
    assert_type(await parse.acall(b"a", return_state=True), State[list[str]])

    await fetch.acall(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await parse.acall()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await report.acall(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


@flow
async def pages(url: str) -> AsyncIterator[bytes]:
    yield url.encode()


@flow(retries=1)
async def pages_generator(url: str) -> AsyncGenerator[bytes, None]:
    yield url.encode()


@task
def lines(text: str) -> Iterator[str]:
    yield text


@task
def lines_generator(text: str) -> Generator[str, None, int]:
    yield text
    return 1


async def generators() -> None:
    async for page in pages("a"):
        assert_type(page, bytes)
    for line in lines("a"):
        assert_type(line, str)

    async for page in pages.stream("a"):
        assert_type(page, bytes)
    async for page in pages_generator.stream("a"):
        assert_type(page, bytes)
    async for line in lines.stream("a"):
        assert_type(line, str)
    async for line in lines_generator.stream("a"):
        assert_type(line, str)

    async with pages.stream("a") as items:
        async for item in items:
            assert_type(item, bytes)
    async with lines.stream("a") as texts:
        async for text in texts:
            assert_type(text, str)

    pages.stream(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    parse.stream(b"a")  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    fetch.stream("a")  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


class Service:
    @task
    async def load(self, key: int) -> str:
        return str(key)

    @task(retries=1)
    def convert(self, text: str, *, upper: bool = False) -> bytes:
        return text.upper().encode() if upper else text.encode()

    @flow
    async def items(self, count: int) -> AsyncIterator[int]:
        yield count

    @task
    @classmethod
    async def build(cls, key: int) -> "Service":
        return cls()

    # The other order runs as well, but a checker then sees a plain class method: a call, and no
    # more (`.acall`, `.with_options`).
    @classmethod
    @flow(retries=1)
    def build_below(cls, key: int) -> "Service":
        return cls()

    @flow
    @staticmethod
    def check(key: int) -> bool:
        return bool(key)

    @staticmethod
    @task
    async def check_below(key: int) -> bool:
        return bool(key)

    @task
    @staticmethod
    def version() -> str:
        return "1"

    async def use(self) -> None:
        assert_type(await self.load(1), str)


class Derived(Service): ...


class Holder:
    """Holds a task it did not define: not a method, so nothing is bound."""

    convert: Task[[str], int]

    def use(self) -> None:
        assert_type(self.convert("a"), int)


async def methods(service: Service, derived: Derived) -> None:
    assert_type(await service.load(1), str)
    assert_type(await derived.load(1), str)
    assert_type(await Service.load(service, 1), str)
    assert_type(await service.load(1, return_state=True), State[str])
    assert_type(await service.load.acall(1), str)
    assert_type(service.convert("a", upper=True), bytes)
    assert_type(await service.convert.acall("a"), bytes)
    assert_type(await service.load.with_options(retries=1)(1), str)
    assert_type(await service.load.fn(1), str)
    async for item in service.items.stream(3):
        assert_type(item, int)

    assert_type(await Service.build(1), Service)
    assert_type(await service.build(1), Service)
    assert_type(await Derived.build.acall(1), Service)
    assert_type(Service.build_below(1), Service)

    assert_type(Service.check(1), bool)
    assert_type(service.check(1), bool)
    assert_type(await derived.check.acall(1), bool)
    assert_type(await Service.check_below(1), bool)
    assert_type(await service.check_below.acall(1), bool)
    assert_type(Service.version(), str)
    assert_type(service.version(), str)

    await service.load(service, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await service.load("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await Service.load(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await Service.build("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    service.check("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    service.version(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


class Adder:
    async def __call__(self, left: int, right: int) -> int:
        return left + right


def power(base: int, exponent: int) -> int:
    return base * exponent


async def other_callables() -> None:
    assert_type(await task(Adder())(1, 2), int)
    assert_type(await flow(retries=1)(Adder()).acall(1, 2), int)
    assert_type(task(lambda: 1)(), int)
    assert_type(task(name="one")(lambda: 1)(), int)
    assert_type(task(functools.partial(power, exponent=2))(3), int)
    assert_type(await flow(functools.partial(power, 3)).acall(2), int)
    assert_type(task(staticmethod(power))(3, 2), int)

    await task(Adder())(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    task(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def options() -> None:
    assert_type(parse.with_options(retries=1)(b"a"), list[str])
    assert_type(await fetch.with_options(name="get").acall("a"), bytes)
    assert_type(await crawl.with_options(timeout_seconds=3)("a"), dict[str, int])
    assert_type(parse.fn(b"a"), list[str])
    assert_type(await fetch.fn("a", retries=1), bytes)

    parse.with_options(retrys=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    parse.with_options(retries="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task(power, retries="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    task(retrys=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    flow(power, tag="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    parse.with_options(retries=1)("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    parse.fn("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    parse.fn = parse.fn  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def map_streams(urls: AsyncIterator[str]) -> None:
    async for page in fetch.map_stream(urls, limit=8, retries=1):
        assert_type(page, bytes)
    async for words in parse.map_stream([b"a"], limit=8, ordered=False):
        assert_type(words, list[str])
    async for state in crawl.map_stream(["a"], limit=8, return_state=True):
        assert_type(state, State[dict[str, int]])
    async with report.map_stream(["a"], limit=8) as results:
        assert_type(await anext(results), int)

    fetch.map_stream(["a"])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    fetch.map_stream(1, limit=8)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    fetch.map_stream(["a"], limit="8")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def map_streams_in_sync_code() -> None:
    for words in parse.map_stream([b"a"], limit=8):
        assert_type(words, list[str])
    for state in report.map_stream(["a"], limit=8, return_state=True):
        assert_type(state, State[int])
    with fetch.map_stream(["a"], limit=8) as results:
        assert_type(list(results), list[bytes])


class Client:
    name: str = ""


@task(cache_policy=INPUTS - "client" + RUN_ID, cache_expiration=timedelta(hours=1))
async def page_of(client: NoKey[Client], number: int) -> str:
    assert_type(client, Client)
    return client.name * number


@page_of.on_rollback
async def take_back(txn: Transaction) -> None: ...


@page_of.on_commit
def announce(txn: Transaction) -> None: ...


async def resuming() -> None:
    assert_type(await page_of(Client(), 1), str)
    assert_type(await fetch("a", run_key="first"), bytes)
    assert_type(parse(b"a", run_key="first"), list[str])
    assert_type(await parse.acall(b"a", run_key="first"), list[str])
    assert_type(await fetch.submit("a", run_key="first"), bytes)
    assert_type(await take_back(transaction()), None)
    async with transaction(key="nightly", isolation="serializable") as txn:
        assert_type(txn, Transaction)
    with transaction() as plain:
        assert_type(plain.is_committed(), bool)

    await page_of(1, 1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(power, cache_policy="inputs")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow(power, resume="always")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def pausing() -> None:
    assert_type(await pause_flow_run(wait_for_input=Client, key="client"), Client)
    assert_type(await pause_flow_run(wait_for_input=list[int], timeout=None), list[int])
    assert_type(suspend_flow_run(wait_for_input=int, timeout=timedelta(days=1)).result(), int)
    assert_type(pause_flow_run(timeout=1), Operation[None])
    assert_type(suspend_flow_run("some id"), Operation[None])
    assert_type(await cancel_flow_run("some id", reason="late"), State[Any])
    assert_type(cancel_flow_run("some id").result(), State[Any])
    assert_type(await receive_input(str, key="words", timeout=60), str)
    assert_type(receive_input(int | None).result(), Any)
    assert_type(send_input({"any": "thing"}, "some id"), Operation[None])

    pause_flow_run("some id", wait_for_input=int)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    suspend_flow_run("some id", key="k")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


@flow
async def deployed(n: int = 1) -> int:
    return n


async def deploying() -> None:
    deployment = deployed.to_deployment("x", cron="0 9 * * *", interval=timedelta(hours=1), parameters={"n": 2})
    assert_type(deployment, Deployment)
    assert_type(await serve(deployment, limit=2), None)
    assert_type(await deployed.serve(schedules=[Interval(60)], collision="cancel_new", limit=1), None)
    assert_type(await run_deployment("deployed/x", timeout=timedelta(minutes=1)), FlowRun)
    assert_type(run_deployment("deployed/x").result(), FlowRun)

    deployed.to_deployment("x", collision="wait")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    deployed.to_deployment("x", schedule=60)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
