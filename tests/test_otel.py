"""OpenTelemetry: a span per run, in the right place, and not a word from `opentelemetry.context`.

With the real SDK. Its tracer provider is the process's, once and for all; here each test has its own, put where
`opentelemetry.trace` looks for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler, LogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from asyncflow import (
    Runtime,
    as_completed,
    detached,
    flow,
    get_client,
    get_run_logger,
    resume_flow_run,
    runtime,
    states,
    tags,
    task,
)
from asyncflow.cache_policies import INPUTS
from asyncflow.exceptions import CrashedRunError, OptionError, RunCancelledError, RunInterruptedError
from asyncflow.stores.memory import MemoryStore
from tests.conftest import RunPython

Attributes = dict[str, Any]


def opened(name: str) -> AbstractContextManager[trace.Span]:
    """A span of the user's, current inside of the block."""
    return trace.get_tracer("tests").start_as_current_span(name)


class Traced:
    """What was exported in a test."""

    def __init__(self, exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
        self._exporter = exporter
        self.provider = provider

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def parent(self, name: str) -> str | None:
        return self.parent_of(self.one(name))

    def parent_of(self, span: ReadableSpan) -> str | None:
        """The name of the span that this one is below; checks that the two are of one trace."""
        if span.parent is None:
            return None
        (parent,) = [each for each in self.all if id_of(each) == span.parent.span_id]
        assert parent.context is not None
        assert span.context is not None
        assert parent.context.trace_id == span.context.trace_id
        return parent.name


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    number: int = span.context.span_id
    return number


def told(span: ReadableSpan) -> Attributes:
    """The attributes, by the last parts of their names."""
    assert span.attributes is not None
    return {name.removeprefix("asyncflow."): value for name, value in span.attributes.items()}


def events(span: ReadableSpan) -> list[tuple[str, Attributes]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Traced]:
    """A tracer provider that keeps what it is given; OpenTelemetry must have nothing to complain of."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield Traced(exporter, provider)
    complaints = [record for record in caplog.get_records("call") if record.name.startswith("opentelemetry")]
    assert complaints == []
    provider.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left_current() -> Iterator[None]:
    yield
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.fixture
async def memory() -> AsyncIterator[Runtime]:
    async with Runtime(store=MemoryStore()) as runtime:
        yield runtime


@task
async def leaf(number: int = 0) -> int:
    return number


# --- what a span tells -----------------------------------------------------------------------


async def test_each_run_is_a_span_below_that_of_its_parent(traced: Traced) -> None:
    @flow
    async def nested() -> int:
        return await leaf(2)

    @flow
    async def main() -> int:
        return await leaf(1) + await nested()

    with opened("request"):
        assert await main() == 3
    assert traced.names == ["leaf", "leaf", "nested", "main", "request"]
    assert traced.parent("main") == "request"
    assert traced.parent("nested") == "main"
    assert [traced.parent_of(span) for span in traced.named("leaf")] == ["main", "nested"]


async def test_a_span_tells_of_its_run_as_the_record_does(traced: Traced) -> None:
    @task(tags={"db"}, task_run_name="the-task")
    async def work(secret: str) -> str:
        return f"{secret}!"

    @flow(flow_run_name="the-flow")
    async def main(secret: str) -> int:
        with tags("night"):
            return len(await work(secret))

    assert await main("hunter2") == 8
    client = get_client()
    (flow_run,), (task_run,) = await client.read_flow_runs(), await client.read_task_runs()
    assert told(traced.one("main")) == {
        "run.id": str(flow_run.id),
        "run.name": "the-flow",
        "run.kind": "flow",
        "flow.name": "main",
        "run.state": "COMPLETED",
        "run.state_name": "Completed",
        "run.attempts": 1,
    }
    assert told(traced.one("work")) == {
        "run.id": str(task_run.id),
        "run.name": "the-task",
        "run.kind": "task",
        "task.name": "work",
        "flow_run.id": str(flow_run.id),
        "run.tags": ("db", "night"),
        "run.state": "COMPLETED",
        "run.state_name": "Completed",
        "run.attempts": 1,
    }
    span = traced.one("work")
    assert task_run.start_time is not None
    assert task_run.end_time is not None
    assert span.start_time == round(task_run.start_time.timestamp() * 1_000_000) * 1000
    assert span.end_time == round(task_run.end_time.timestamp() * 1_000_000) * 1000
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    assert "hunter2" not in "".join(each.to_json() for each in traced.all)


async def test_a_failure_is_an_error_with_its_type_and_message(traced: Traced) -> None:
    @task
    async def failing() -> None:
        raise LookupError("out of paper")

    @flow
    async def main() -> None:
        await failing()

    with pytest.raises(LookupError):
        await main()
    for name in ("failing", "main"):
        span = traced.one(name)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "LookupError: out of paper"
        assert told(span)["run.state"] == "FAILED"
        assert told(span)["error.type"] == "LookupError"
        ((event, about),) = events(span)
        assert event == "exception"
        assert (about["exception.type"], about["exception.message"]) == ("LookupError", "out of paper")
        assert 'raise LookupError("out of paper")' in about["exception.stacktrace"]


async def test_what_tears_a_body_apart_is_an_error(traced: Traced) -> None:
    @flow
    async def main() -> None:
        raise SystemExit("enough")

    with pytest.raises(SystemExit):
        await main()
    assert traced.one("main").status.status_code is StatusCode.ERROR
    assert told(traced.one("main"))["run.state"] == "CRASHED"


async def test_a_state_that_was_returned_counts(traced: Traced) -> None:
    @flow
    async def given_up() -> object:
        return states.Failed(message="on purpose")

    @flow
    async def skipped() -> object:
        return states.Completed(name="Skipped", message="nothing to do")

    assert (await given_up(return_state=True)).is_failed()
    await skipped()
    assert traced.one("given-up").status.status_code is StatusCode.ERROR
    assert "on purpose" in str(traced.one("given-up").status.description)
    assert told(traced.one("skipped"))["run.state_name"] == "Skipped"


async def test_retries_are_events_of_one_span(traced: Traced) -> None:
    @task(retries=2)
    async def flaky() -> int:
        if runtime.task_run.run_count < 3:
            raise ValueError(f"attempt {runtime.task_run.run_count}")
        with opened("inside"):
            return 7

    assert await flaky() == 7
    span = traced.one("flaky")
    assert events(span) == [
        ("asyncflow.retry", {"asyncflow.run.attempt": 1, "asyncflow.reason": "ValueError: attempt 1"}),
        ("asyncflow.retry", {"asyncflow.run.attempt": 2, "asyncflow.reason": "ValueError: attempt 2"}),
    ]
    assert told(span)["run.attempts"] == 3
    assert span.status.status_code is StatusCode.UNSET
    assert traced.parent("inside") == "flaky"
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.events[0].timestamp <= span.events[1].timestamp <= span.end_time


async def test_a_cancelled_run_is_no_error(traced: Traced) -> None:
    started = anyio.Event()

    @task
    async def waiting() -> None:
        started.set()
        await anyio.sleep_forever()

    @flow
    async def main() -> None:
        future = waiting.submit()
        await started.wait()
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future

    await main()
    span = traced.one("waiting")
    assert span.status.status_code is StatusCode.UNSET
    assert told(span)["run.state"] == "CANCELLED"
    ((event, about),) = events(span)
    assert event == "asyncflow.cancelled"
    assert "cancelled" in about["asyncflow.reason"]


async def test_a_timeout_is_an_error(traced: Traced) -> None:
    @task(timeout_seconds=0.01)
    async def slow() -> None:
        await anyio.sleep_forever()

    with pytest.raises(TimeoutError):
        await slow()
    span = traced.one("slow")
    assert span.status.status_code is StatusCode.ERROR
    assert told(span)["run.state_name"] == "TimedOut"
    assert told(span)["error.type"] == "TimeoutError"


async def test_a_run_that_was_given_up_is_an_error(traced: Traced) -> None:
    started, released = anyio.Event(), anyio.Event()

    @task
    async def deaf() -> None:
        started.set()
        while not released.is_set():
            with suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
                await released.wait()
        inside("after all")

    @flow
    async def main() -> None:
        future = deaf.submit()
        await started.wait()
        future.cancel()
        with pytest.raises(CrashedRunError):
            await future
        released.set()

    async with Runtime(store=MemoryStore(), grace_seconds=0.05):
        await main()
        with anyio.fail_after(10):
            while "after all" not in traced.names:
                await anyio.sleep(0.001)
    span = traced.one("deaf")
    assert span.status.status_code is StatusCode.ERROR
    assert "ignored cancellation" in str(span.status.description)
    assert told(span)["run.state"] == "CRASHED"
    assert (traced.parent("deaf"), traced.parent("after all")) == ("main", "deaf")


async def test_an_interrupted_run_is_no_error(traced: Traced, tmp_path: Path) -> None:
    started = anyio.Event()

    @flow
    async def main() -> None:
        started.set()
        await anyio.sleep_forever()

    async with Runtime(tmp_path / "stopped", drain_seconds=0):
        future = main.submit()
        await started.wait()
    with pytest.raises(RunInterruptedError):
        await future
    span = traced.one("main")
    assert span.status.status_code is StatusCode.UNSET
    assert (told(span)["run.state"], told(span)["run.state_name"]) == ("PAUSED", "Interrupted")
    assert [event for event, _ in events(span)] == ["asyncflow.interrupted"]


# --- what is current -------------------------------------------------------------------------


def inside(name: str) -> None:
    with opened(name):
        pass


@task
async def async_body(name: str) -> None:
    await anyio.lowlevel.checkpoint()
    inside(name)


@task
def sync_body(name: str) -> None:
    inside(name)


async def test_the_users_spans_are_below_their_run(traced: Traced, memory: Runtime) -> None:
    @flow
    async def main() -> None:
        inside("in main")
        await async_body("awaited")
        await sync_body.acall("in a thread")
        await async_body.submit("submitted")
        await sync_body.submit("submitted to a thread")
        async with anyio.create_task_group() as group:
            group.start_soon(async_body, "in a task group")
        await async_body.map(["mapped"])
        inside("in main again")

    await main()
    assert traced.parent("in main") == traced.parent("in main again") == "main"
    for name in ("awaited", "submitted", "in a task group", "mapped"):
        assert traced.parent(name) == "async_body"
    for name in ("in a thread", "submitted to a thread"):
        assert traced.parent(name) == "sync_body"
    assert {traced.parent_of(span) for span in traced.named("async_body")} == {"main"}
    assert {traced.parent_of(span) for span in traced.named("sync_body")} == {"main"}


async def test_the_users_spans_are_below_gathered_runs(traced: Traced, anyio_backend: tuple[str, object]) -> None:
    if anyio_backend[0] != "asyncio":
        pytest.skip("asyncio.gather")

    @flow
    async def main() -> None:
        await asyncio.gather(*(async_body(f"part {number}") for number in range(20)))

    await main()
    bodies = {id_of(span) for span in traced.named("async_body")}
    parents = [span.parent.span_id for span in traced.all if span.name.startswith("part") and span.parent]
    assert set(parents) == bodies
    assert len(parents) == len(bodies) == 20


def test_plain_sync_code_is_traced_as_well(traced: Traced) -> None:
    @flow
    def main() -> None:
        inside("in main")
        sync_body("called")
        sync_body.submit("submitted").result()
        async_body.submit("on the library's loop").result()

    main()
    assert traced.parent("in main") == "main"
    assert traced.parent("called") == traced.parent("submitted") == "sync_body"
    assert traced.parent("on the library's loop") == "async_body"
    assert {traced.parent_of(span) for span in traced.named("sync_body")} == {"main"}


async def test_runs_are_below_the_users_span_that_is_open_in_the_body(traced: Traced, memory: Runtime) -> None:
    @flow
    async def main() -> None:
        with opened("batch"):
            await leaf(1)
            future = leaf.submit(2)
        await future
        await leaf(3)

    await main()
    assert [traced.parent_of(span) for span in traced.named("leaf")] == ["batch", "batch", "main"]
    assert traced.parent("batch") == "main"


async def test_a_run_is_below_its_parent_whatever_is_current(traced: Traced) -> None:
    """A body that puts another trace, or none, into its context."""
    from opentelemetry import context

    @flow
    async def main() -> None:
        elsewhere = trace.get_tracer("tests").start_span("elsewhere", Context())
        for other in (Context(), trace.set_span_in_context(elsewhere, Context()), trace.set_span_in_context(elsewhere)):
            token = context.attach(other)
            await leaf()
            context.detach(token)

    await main()
    assert [traced.parent_of(span) for span in traced.named("leaf")] == ["main"] * 3


async def test_what_a_hook_calls_is_below_the_run(traced: Traced) -> None:
    async def hook(*_: object) -> None:
        await leaf()

    async def last_hook(*_: object) -> None:
        with detached():
            await leaf()

    @task(on_running=[hook], on_completion=[last_hook])
    async def work() -> None:
        inside("in work")

    @flow
    async def main() -> None:
        await work()

    await main()
    assert [traced.parent_of(span) for span in traced.named("leaf")] == ["work", "main"]
    assert (traced.parent("in work"), traced.parent("work")) == ("work", "main")


async def test_a_detached_run_is_below_what_is_current(traced: Traced) -> None:
    @flow
    async def main() -> None:
        with detached():
            await leaf()

    await main()
    assert traced.parent("leaf") == "main"


async def test_after_a_run_the_callers_span_is_current(traced: Traced) -> None:
    @task
    async def failing() -> None:
        raise ValueError

    with opened("request") as span:
        await leaf()
        assert trace.get_current_span() is span
        with pytest.raises(ValueError):  # noqa: PT011
            await failing()
        assert trace.get_current_span() is span
        with anyio.move_on_after(0.01):
            await async_sleeper()
        assert trace.get_current_span() is span


@task
async def async_sleeper() -> None:
    await anyio.sleep_forever()


# --- generators ------------------------------------------------------------------------------


@flow
async def counting(to: int) -> AsyncIterator[int]:
    for number in range(to):
        with opened("item"):  # the user's own, held across the yield
            yield await leaf(number)


@flow
def sync_counting(to: int) -> Iterator[int]:
    for number in range(to):
        with opened("item"):
            inside("leaf")
            yield number


def check_stream(traced: Traced, name: str, items: int) -> None:
    """One trace: the request, the stream, each item below that, and what made it below the item."""
    assert traced.parent(name) == "request"
    assert [traced.parent_of(span) for span in traced.named("item")] == [name] * items
    assert {traced.parent_of(span) for span in traced.named("leaf")} == {"item"}


@pytest.mark.parametrize("flow_name", ["counting", "sync-counting"])
@pytest.mark.parametrize("end", ["exhausted", "broken", "left", "closed", "closed in another task", "cancelled"])
async def test_a_stream_is_one_trace_however_it_ends(traced: Traced, flow_name: str, end: str) -> None:
    items = 0
    streamed: Any = counting if flow_name == "counting" else sync_counting
    with opened("request") as request:
        stream: Any = streamed.stream(3)
        with anyio.CancelScope() as scope:
            async for _ in stream:
                items += 1
                assert trace.get_current_span() is request  # never the body's
                if end == "exhausted" or items < 2:
                    continue
                if end == "left":
                    async with stream:
                        break
                elif end == "closed":
                    await stream.aclose()
                elif end == "closed in another task":
                    async with anyio.create_task_group() as group:
                        group.start_soon(stream.aclose)
                elif end == "cancelled":
                    scope.cancel()
                else:
                    break
        assert trace.get_current_span() is request
        del stream
        with anyio.fail_after(10):
            while not traced.named(flow_name):
                await anyio.sleep(0.001)
    made = len(traced.named("item"))
    assert made == 3 if end == "exhausted" else made in {2, 3} if end == "cancelled" else made == 2
    check_stream(traced, flow_name, made)
    assert told(traced.one(flow_name))["run.state"] == ("COMPLETED" if end == "exhausted" else "CANCELLED")
    assert traced.one(flow_name).status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("end", ["exhausted", "closed", "closed in another thread", "closed in another context"])
def test_a_sync_stream_is_one_trace_however_it_ends(traced: Traced, end: str) -> None:
    items = 0
    with opened("request") as request:
        stream: Any = sync_counting(3)
        for _ in stream:
            items += 1
            assert trace.get_current_span() is request
            if end == "exhausted" or items < 2:
                continue
            if end == "closed":
                stream.close()
            elif end == "closed in another thread":
                thread = threading.Thread(target=stream.close)
                thread.start()
                thread.join()
            else:
                contextvars.Context().run(stream.close)
    check_stream(traced, "sync-counting", 3 if end == "exhausted" else 2)


async def test_a_coroutine_that_is_closed_in_another_context_leaves_no_trouble(
    traced: Traced, anyio_backend: tuple[str, object]
) -> None:
    if anyio_backend[0] != "asyncio":
        pytest.skip("trio's coroutines cannot be driven by hand")
    async with Runtime(store=MemoryStore()):
        entered = list[str]()

        @task
        async def sleeper() -> None:
            entered.append("the body")
            await anyio.sleep_forever()

        context, coroutine = contextvars.copy_context(), sleeper()
        while not entered:
            context.run(coroutine.send, None)
        with opened("request") as request:
            coroutine.close()
            assert trace.get_current_span() is request
    assert told(traced.one("sleeper"))["run.state"] == "CRASHED"


# --- what was recorded before ----------------------------------------------------------------


async def test_a_run_that_does_not_run_has_no_span(traced: Traced) -> None:
    @task(cache_policy=INPUTS)
    async def cached(number: int) -> int:
        return number

    tries: list[int] = []

    @flow(retries=1)
    async def main() -> int:
        total = await leaf(1) + await cached(1) + await cached(1)
        tries.append(total)
        if len(tries) == 1:
            raise ValueError("again")
        return total

    assert await main() == 3
    assert traced.names == ["leaf", "cached", "main"]
    assert told(traced.one("main"))["run.attempts"] == 2


async def test_a_resumed_run_has_a_span_and_what_it_does_not_do_again_has_none(traced: Traced) -> None:
    tries: list[int] = []

    @flow
    async def main() -> int:
        number = await leaf(7)
        tries.append(number)
        if len(tries) == 1:
            raise ValueError("once")
        return number

    with pytest.raises(ValueError, match="once"):
        await main()
    (run,) = await get_client().read_flow_runs()
    with opened("resuming"):
        assert await resume_flow_run(run.id) == 7
    assert traced.names == ["leaf", "main", "main", "resuming"]
    first, second = traced.named("main")
    assert told(first)["run.id"] == told(second)["run.id"] == str(run.id)
    assert (traced.parent_of(first), traced.parent_of(second)) == (None, "resuming")
    assert [told(each)["run.attempts"] for each in (first, second)] == [1, 2]
    assert events(second) == []


# --- logs ------------------------------------------------------------------------------------


class KeptLogs(LogRecordProcessor):
    """Which span each message belongs to."""

    def __init__(self) -> None:
        self.span_ids: dict[str, int] = {}

    def on_emit(self, log_record: Any) -> None:
        record = log_record.log_record
        self.span_ids[str(record.body)] = record.span_id

    emit = on_emit  # its older name

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


async def test_log_records_are_of_the_span_of_their_run(traced: Traced) -> None:
    @task
    async def talking() -> None:
        get_run_logger().warning("from the run's logger")
        logging.getLogger("tests.otel").warning("from the program's")

    @task
    def in_thread() -> None:
        get_run_logger().warning("from a thread")

    @flow
    async def main() -> None:
        await talking()
        await in_thread.acall()

    kept, provider = KeptLogs(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it has moved to a package of instrumentations
        handler = LoggingHandler(logger_provider=provider)
    logging.getLogger().addHandler(handler)
    try:
        await main()
    finally:
        logging.getLogger().removeHandler(handler)
    talking_id, thread_id = id_of(traced.one("talking")), id_of(traced.one("in_thread"))
    assert kept.span_ids["from the run's logger"] == kept.span_ids["from the program's"] == talking_id
    assert kept.span_ids["from a thread"] == thread_id


# --- on and off ------------------------------------------------------------------------------


async def test_it_can_be_turned_off(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Runtime(store=MemoryStore(), otel=False):
        await leaf()
    monkeypatch.setenv("ASYNCFLOW_OTEL", "off")
    async with Runtime(store=MemoryStore()):
        await leaf()
    assert traced.names == []
    async with Runtime(store=MemoryStore(), otel=True):
        await leaf()
    assert traced.names == ["leaf"]


async def test_a_provider_may_be_configured_while_the_runtime_is_open(
    monkeypatch: pytest.MonkeyPatch, traced: Traced
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    async with Runtime(store=MemoryStore()):
        await leaf()
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", traced.provider)
        await leaf()
    assert traced.names == ["leaf"]


def test_a_program_that_does_not_trace_never_imports_it(run_python: RunPython) -> None:
    done = run_python(
        "import sys, asyncflow\n"
        "@asyncflow.flow\n"
        "def plain():\n"
        "    return 1\n"
        "plain()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    assert done.stdout == "[]\n"


def test_it_cannot_be_turned_on_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(OptionError, match=r"otel=True: expected the extra .* pip install \"asyncflow\[otel\]\""):
        Runtime(tmp_path / "home", otel=True).open()
    with Runtime(tmp_path / "home") as unasked:
        assert unasked.services is not None


async def test_spans_that_are_not_sampled(monkeypatch: pytest.MonkeyPatch, traced: Traced) -> None:
    provider = TracerProvider(sampler=sampling.ALWAYS_OFF, shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)

    @flow
    async def main() -> bool:
        await leaf()
        return trace.get_current_span().get_span_context().is_valid

    assert await main()
    provider.shutdown()


class Broken(SpanProcessor):
    def __init__(self, when: str) -> None:
        self._when = when

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._when == "start":
            raise RuntimeError("no room for a span")

    def on_end(self, span: ReadableSpan) -> None:
        if self._when == "end":
            raise RuntimeError("no room for a span")


@pytest.mark.parametrize("when", ["start", "end"])
async def test_tracing_that_raises_changes_nothing_for_a_run(
    when: str, traced: Traced, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncflow import _otel

    monkeypatch.setattr(_otel, "_said", set())
    traced.provider.add_span_processor(Broken(when))

    @flow
    async def main() -> int:
        return await leaf(1) + await leaf(2)

    assert await main() == 3
    warned = [record for record in caplog.records if "not traced" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].levelno == logging.WARNING


async def test_many_at_once_keep_their_places(traced: Traced, memory: Runtime) -> None:
    @task
    async def outer(number: int) -> int:
        return await leaf(number)

    @flow
    async def main() -> int:
        futures = [outer.submit(number) for number in range(50)]
        return sum([await future async for future in as_completed(futures)])

    assert await main() == sum(range(50))
    by_id: dict[int, ReadableSpan] = {id_of(span): span for span in traced.all}
    outers = [by_id[span.parent.span_id] for span in traced.named("leaf") if span.parent]
    assert {each.name for each in outers} == {"outer"}
    assert len({id_of(each) for each in outers}) == 50
    assert {traced.parent_of(span) for span in traced.named("outer")} == {"main"}
