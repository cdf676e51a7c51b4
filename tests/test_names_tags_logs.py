"""What people see of a run: its name, its tags, what it logged and printed."""

from __future__ import annotations

import builtins
import io
import logging
import sys
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncflow import FlowRun, LogRecord, Runtime, TaskRun, flow, get_client, get_run_logger, runtime, tags, task
from asyncflow.exceptions import AsyncflowError, OptionError
from asyncflow.logs import MissingRunError
from tests.conftest import RunPython


async def newest() -> FlowRun:
    return (await get_client().read_flow_runs(limit=1))[0]


async def newest_task() -> TaskRun:
    return (await get_client().read_task_runs(limit=1))[0]


async def logs() -> list[LogRecord]:
    """The lines of the newest flow run."""
    return await get_client().read_logs((await newest()).id)


async def messages() -> list[str]:
    return [line.message for line in await logs()]


# --- names ------------------------------------------------------------------------------------


async def test_a_template_names_the_run() -> None:
    @flow(flow_run_name="load-{day}-{n:03}")
    async def load(day: str, n: int = 7) -> str | None:
        await part({"key": "k"})
        return runtime.flow_run.name

    @task(task_run_name="part of {about[key]}")
    async def part(about: dict[str, str]) -> None: ...

    assert await load("monday") == "load-monday-007"
    assert (await newest()).name == "load-monday-007"
    assert (await newest_task()).name == "part of k"


async def test_a_template_sees_coerced_values() -> None:
    @flow(flow_run_name="{day:%A}")
    async def load(day: datetime) -> None: ...

    await load("2024-01-01T00:00:00")  # type: ignore[call-overload]
    assert (await newest()).name == "Monday"


async def test_a_function_names_the_run() -> None:
    @flow(flow_run_name=lambda: f"by {runtime.flow_run.flow_name}")
    async def one() -> None: ...

    @flow(flow_run_name=lambda parameters: f"with {sorted(parameters)}")
    async def two(b: int, a: int) -> None: ...

    await one()
    assert (await newest()).name == "by one"
    await two(1, 2)
    assert (await newest()).name == "with ['a', 'b']"


async def test_without_a_name_a_flow_run_gets_words_and_a_task_run_its_tasks_name() -> None:
    @flow
    async def main() -> str | None:
        return await part()

    @task
    async def part() -> str | None:
        return runtime.task_run.name

    name = await main()
    run = await newest_task()
    assert name == run.name == f"part-{run.id.hex[-3:]}"
    first, second = (await newest()).name.split("-")
    assert first.isalpha()
    assert second.isalpha()


@pytest.mark.parametrize("template", ["{nothing}", "{}", "{day.nothing}", "{day[x]}", "{day:d}", "{day", "{rest:x}"])
async def test_a_template_that_does_not_fit_fails_the_run_and_says_what_there_is(template: str) -> None:
    ran = False

    @flow(flow_run_name=template)
    async def load(day: str, *rest: str) -> None:
        nonlocal ran
        ran = True

    with pytest.raises(OptionError, match=r"flow_run_name=.*a template over the parameters \(day, rest\)"):
        await load("monday")
    assert not ran
    run = await newest()
    assert run.state.is_failed()
    assert run.run_count == 0
    assert run.name


async def test_a_name_that_is_no_text_fails_the_run() -> None:
    @task(task_run_name=lambda: 3)  # type: ignore[arg-type]
    async def part() -> None: ...

    with pytest.raises(OptionError, match="task_run_name=3: expected a function that returns text"):
        await part()
    assert (await newest_task()).state.is_failed()


async def test_a_naming_function_that_raises_fails_the_run_with_its_error() -> None:
    @task(task_run_name=lambda: str(1 // 0))
    async def part() -> None: ...

    with pytest.raises(ZeroDivisionError):
        await part()
    assert (await newest_task()).state.is_failed()


@pytest.mark.parametrize("name", [3, b"x", ["a"]])
def test_a_run_name_that_cannot_be_one_is_refused_at_declaration(name: Any) -> None:
    with pytest.raises(OptionError, match="run_name"):
        flow(flow_run_name=name)(lambda: None)


async def test_names_with_odd_characters_come_back_as_they_were() -> None:
    @flow(flow_run_name="{text}")
    async def main(text: str) -> None: ...

    for text in ("ü ☃ 𝄞", "a'b\"c;--", "{x}", ""):
        await main(text)
        name = (await newest()).name
        assert name == text or (not text and "-" in name)
        assert len(await get_client().read_flow_runs(name=name)) == 1


# --- tags ----------------------------------------------------------------------------------------


async def test_tags_of_the_block_and_of_the_task_add_up() -> None:
    @task(tags=["own", "own"])
    async def part() -> list[str]:
        return runtime.task_run.tags

    @flow
    async def main() -> tuple[list[str], list[str]]:
        with tags("inner"):
            return runtime.flow_run.tags, await part()

    with tags("a", "b") as outer, tags("b", "c") as both:
        assert (outer, both) == (frozenset("ab"), frozenset("abc"))
        assert await main() == (["a", "b", "c"], ["a", "b", "c", "inner", "own"])
    assert (await newest()).tags == ("a", "b", "c")
    assert (await newest_task()).tags == ("a", "b", "c", "inner", "own")
    assert await main() == ([], ["inner", "own"])


async def test_tags_reach_worker_threads_and_task_groups() -> None:
    found: list[list[str]] = []

    @task
    def part() -> None:
        found.append(runtime.task_run.tags)

    async def other() -> None:
        found.append([])

    with tags("x"):
        async with anyio.create_task_group() as group:
            group.start_soon(part.acall)
            group.start_soon(part.acall)
    assert found == [["x"], ["x"]]


async def test_tags_of_runs_side_by_side_do_not_mix() -> None:
    first_in, second_in = anyio.Event(), anyio.Event()
    found: dict[str, list[str]] = {}

    @task
    async def part(name: str) -> None:
        found[name] = runtime.task_run.tags

    async def first() -> None:
        with tags("first"):
            first_in.set()
            await second_in.wait()
            await part("first")

    async def second() -> None:
        await first_in.wait()
        with tags("second"):
            second_in.set()
            await anyio.lowlevel.checkpoint()
            await part("second")

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        group.start_soon(second)
    assert found == {"first": ["first"], "second": ["second"]}


def test_one_text_as_tags_is_refused() -> None:
    with pytest.raises(OptionError, match=r"tags=\['abc'\]"):
        task(tags="abc")(lambda: None)


# --- logs ------------------------------------------------------------------------------------------


async def test_what_a_run_logs_is_kept_with_the_run_it_belongs_to() -> None:
    @task
    async def part() -> None:
        get_run_logger().warning("in the task: %s", 2)

    @flow
    async def main() -> None:
        get_run_logger().info("in the flow: %(a)s", {"a": 1})
        await part()

    before = datetime.now(UTC) - timedelta(milliseconds=1)
    await main()
    run, task_run = await newest(), await newest_task()
    lines = await logs()
    assert [(line.message, line.level, line.name) for line in lines] == [
        ("in the flow: 1", logging.INFO, "asyncflow.flow_runs"),
        ("in the task: 2", logging.WARNING, "asyncflow.task_runs"),
    ]
    assert [(line.flow_run_id, line.task_run_id) for line in lines] == [(run.id, None), (run.id, task_run.id)]
    assert before <= lines[0].timestamp <= lines[1].timestamp <= datetime.now(UTC)
    assert await get_client().read_logs(task_run.id) == lines[1:]


async def test_the_logger_outside_of_a_run_says_what_to_do() -> None:
    with pytest.raises(MissingRunError, match=r"logging\.getLogger\(__name__\)"):
        get_run_logger()
    assert issubclass(MissingRunError, AsyncflowError)


async def test_debug_is_kept_only_where_the_setting_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    @flow
    async def main() -> None:
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(get_run_logger(), level)(level)
        get_run_logger().log(5, "trace")

    await main()
    assert await messages() == ["info", "warning", "error", "critical"]
    monkeypatch.setenv("ASYNCFLOW_LOG_LEVEL", "debug")
    async with Runtime(tmp_path / "debug"):
        await main()
        assert await messages() == ["debug", "info", "warning", "error", "critical"]
    async with Runtime(tmp_path / "error", log_level="ERROR"):
        await main()
        assert await messages() == ["error", "critical"]


async def test_lines_are_read_by_level_and_time() -> None:
    @flow
    async def main() -> None:
        for number in range(5):
            get_run_logger().info("info %d", number)
            get_run_logger().error("error %d", number)

    await main()
    run_id = (await newest()).id
    client = get_client()
    everything = await client.read_logs(run_id)
    assert len(everything) == 10
    for level in ("error", "ERROR", logging.ERROR, logging.WARNING):
        assert [line.message for line in await client.read_logs(run_id, level=level)] == [
            f"error {number}" for number in range(5)
        ]
    assert await client.read_logs(run_id, limit=3) == everything[:3]
    assert await client.read_logs(run_id, limit=0) == []
    assert await client.read_logs(run_id, after=everything[-1].timestamp) == []
    later = await client.read_logs(run_id, after=everything[4].timestamp)
    assert later == [line for line in everything if line.timestamp > everything[4].timestamp]
    with pytest.raises(OptionError, match="level="):
        await client.read_logs(run_id, level="loud")
    with pytest.raises(OptionError, match="time zone"):
        await client.read_logs(run_id, after=datetime(2024, 1, 1))  # noqa: DTZ001


async def test_several_lines_and_any_text_are_one_record() -> None:
    texts = ["one\ntwo\r\n", "", "ü ☃ 𝄞", "\x00", "half \ud800 a pair", "100 %", "%s", "{}"]

    @flow
    async def main() -> None:
        for text in texts:
            get_run_logger().info(text)

    await main()
    assert await messages() == [text.replace("\ud800", "\\ud800") for text in texts]


async def test_a_very_long_line_is_cut() -> None:
    @flow
    async def main() -> None:
        get_run_logger().info("x" * 1_000_000)

    await main()
    (message,) = await messages()
    assert 1_000 < len(message) <= 70_000


async def test_an_exception_is_logged_with_its_traceback() -> None:
    @flow
    async def main() -> None:
        logger = get_run_logger()
        try:
            raise ValueError("the reason")
        except ValueError as error:
            logger.exception("by exception()")
            logger.error("by True", exc_info=True)
            given = error
        logger.warning("by the object", exc_info=given)
        logger.error("without any", exc_info=True)

    await main()
    first, second, third, last = await messages()
    for text in (first, second, third):
        assert "Traceback (most recent call last)" in text
        assert text.endswith("ValueError: the reason")
    assert first.startswith("by exception()\n")
    assert last.startswith("without any")


async def test_a_stack_is_logged_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    @flow
    async def main() -> None:
        get_run_logger().warning("here", stack_info=True)

    await main()
    assert "Stack (most recent call last)" in (caplog.records[-1].stack_info or "")
    assert "in main" in (await messages())[0]


async def test_a_wrong_log_call_does_not_fail_the_run() -> None:
    class Nasty:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @flow
    async def main() -> int:
        logger = get_run_logger()
        logger.info("%d", "not a number")
        logger.info("too many", 1, 2)
        logger.info(Nasty())
        logger.info("%s", Nasty())
        logger.info("fine")
        return 1

    assert await main() == 1
    lines = await messages()
    assert lines[-1] == "fine"
    assert "%d" in lines[0]
    assert len(lines) == 5


def test_a_wrong_log_call_that_somebody_hears_is_shown_as_logging_shows_it(run_python: RunPython) -> None:
    done = run_python(
        """
from asyncflow import flow, get_run_logger

@flow
def main():
    get_run_logger().warning("%d", "not a number")

main()
"""
    )
    assert "--- Logging error ---" in done.stderr


async def test_records_go_the_ordinary_way_with_the_run_in_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncflow")

    @task
    async def part() -> None:
        get_run_logger().info("hello", extra={"mine": 1})

    @flow
    async def main() -> None:
        await part()
        get_run_logger().info("flow")

    await main()
    record = next(each for each in caplog.records if each.getMessage() == "hello")
    run, task_run = await newest(), await newest_task()
    assert record.name == "asyncflow.task_runs"
    found: Any = record
    assert (found.mine, found.flow_run_id, found.task_run_id) == (1, str(run.id), str(task_run.id))
    assert found.run_name == task_run.name
    assert (record.funcName, record.filename) == ("part", "test_names_tags_logs.py")
    of_flow: Any = next(each for each in caplog.records if each.getMessage() == "flow")
    assert (of_flow.flow_run_id, of_flow.task_run_id, of_flow.run_name) == (str(run.id), None, run.name)


async def test_the_callers_stacklevel_counts(caplog: pytest.LogCaptureFixture) -> None:
    def helper() -> None:
        get_run_logger().warning("x", stacklevel=2)

    @flow
    async def main() -> None:
        helper()

    await main()
    assert caplog.records[-1].funcName == "main"


async def test_a_line_is_kept_whatever_the_programs_levels_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asyncflow")

    @flow
    async def main() -> None:
        get_run_logger().info("kept")

    await main()
    assert await messages() == ["kept"]
    assert not [each for each in caplog.records if each.getMessage() == "kept"]


def test_the_programs_logging_is_left_alone(run_python: RunPython) -> None:
    done = run_python(
        """
import logging
root, names = logging.getLogger(), set(logging.root.manager.loggerDict)
def about_all():
    return root.level, list(root.handlers), logging.lastResort, logging.getLoggerClass(), logging.raiseExceptions

before = about_all()
from asyncflow import flow, task, get_run_logger

@task(log_prints=True)
def part():
    print("printed")
    get_run_logger().info("quiet")

@flow
def main():
    part()
    get_run_logger().warning("loud")

main()
assert before == about_all()
for name in logging.root.manager.loggerDict:
    if name.startswith("asyncflow"):
        logger = logging.getLogger(name)
        assert (logger.handlers, logger.level, logger.propagate, logger.disabled) == ([], 0, True, False), name
"""
    )
    assert done.stdout == ""
    assert done.stderr == "loud\n"  # by logging's own last resort


async def test_logs_from_a_worker_thread_belong_to_its_run() -> None:
    @task
    def part(n: int) -> None:
        get_run_logger().info("part %d", n)

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for n in range(10):
                group.start_soon(part.acall, n)

    await main()
    assert sorted(await messages()) == [f"part {n}" for n in range(10)]
    for run in await get_client().read_task_runs(flow_run_id=(await newest()).id):
        assert len(await get_client().read_logs(run.id)) == 1


# --- log_prints ------------------------------------------------------------------------------------


async def test_prints_become_log_lines_of_their_run(capsys: pytest.CaptureFixture[str]) -> None:
    @task
    async def part() -> None:
        print("task", 1, sep="-", end="!\n")
        print("to stderr", file=sys.stderr)

    @task(log_prints=False)
    async def loud() -> None:
        print("really printed")

    @flow(log_prints=True)
    async def main() -> None:
        print("flow", {"a": 1}, None)
        print()
        await part()
        await loud()
        print("a\nb", flush=True)

    await main()
    assert await messages() == ["flow {'a': 1} None", "", "task-1", "to stderr", "a\nb"]
    run_ids = [line.task_run_id for line in await logs()]
    assert [each is None for each in run_ids] == [True, True, False, False, True]
    assert capsys.readouterr() == ("really printed\n", "")


async def test_prints_without_the_option_and_outside_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    @flow
    async def quiet() -> None:
        print("from a flow without it")

    @flow(log_prints=True)
    async def main() -> None:
        print("logged")

    print("before")
    await main()
    await quiet()
    print("after", end=".")
    assert capsys.readouterr().out == "before\nfrom a flow without it\nafter."
    assert await messages() == []


async def test_prints_to_a_file_go_there() -> None:
    file = io.StringIO()

    @flow(log_prints=True)
    async def main() -> None:
        print("in the file", file=file)

    await main()
    assert file.getvalue() == "in the file\n"
    assert await messages() == []


async def test_a_wrong_print_raises_as_ever() -> None:
    @flow(log_prints=True)
    async def main() -> None:
        print("x", sep=3)  # type: ignore[call-overload]

    with pytest.raises(TypeError, match="sep"):
        await main()


async def test_the_line_of_a_print_is_the_line_that_printed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncflow")

    @flow(log_prints=True)
    async def main() -> None:
        print("here")

    await main()
    record = next(each for each in caplog.records if each.getMessage() == "here")
    assert record.funcName == "main"


async def test_prints_of_overlapping_runs_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    first_began, second_began, first_ended = anyio.Event(), anyio.Event(), anyio.Event()

    @flow(log_prints=True, flow_run_name="first")
    async def first() -> None:
        print("first 1")
        first_began.set()
        await second_began.wait()
        print("first 2")

    @flow(log_prints=True, flow_run_name="second")
    async def second() -> None:
        await first_began.wait()
        print("second 1")
        second_began.set()
        await first_ended.wait()
        print("second 2")

    async def first_then_tell() -> None:
        await first()
        print("between")
        first_ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(first_then_tell)
        group.start_soon(second)
    print("outside")
    for run in await get_client().read_flow_runs():
        lines = [line.message for line in await get_client().read_logs(run.id)]
        assert lines == [f"{run.name} 1", f"{run.name} 2"]
    assert capsys.readouterr().out == "between\noutside\n"


async def test_prints_of_a_worker_thread_belong_to_its_run() -> None:
    @task
    def part(n: int) -> None:
        print("part", n)

    @flow(log_prints=True)
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for n in range(10):
                group.start_soon(part.acall, n)

    await main()
    assert sorted(await messages()) == [f"part {n}" for n in range(10)]


def test_print_replaced_by_somebody_else_still_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some tools wrap `print`: over ours, and under the next declaration's."""
    flow(log_prints=True)(lambda: None)
    inner = builtins.print
    monkeypatch.setattr(builtins, "print", lambda *values, **options: inner("wrapped:", *values, **options))

    @flow(log_prints=True)
    def main() -> None:
        print("logged")

    print("outside")
    main()
    assert capsys.readouterr().out == "wrapped: outside\n"
    assert anyio.run(messages) == ["wrapped: logged"]


def test_a_handler_that_prints_is_not_logged_again(run_python: RunPython) -> None:
    done = run_python(
        """
import logging
from asyncflow import flow

class Printer(logging.Handler):
    def emit(self, record):
        print("heard:", record.getMessage())

logging.basicConfig(level=logging.INFO, handlers=[Printer()])

@flow(log_prints=True)
def main():
    print("hello")

main()
"""
    )
    assert done.stdout == "heard: hello\n"


def test_redirected_output_of_a_run_without_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    flow(log_prints=True)(lambda: None)
    text = io.StringIO()

    @flow
    def main() -> None:
        with redirect_stdout(text):
            print("redirected")

    main()
    assert text.getvalue() == "redirected\n"
