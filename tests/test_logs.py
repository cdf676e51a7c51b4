"""What is kept of a run's log lines beside their text, following them, and what happens when there are too many."""

from __future__ import annotations

import io
import json
import logging
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import pytest

from asyncflow import Client, LogRecord, Runtime, flow, get_client, get_run_logger, task
from asyncflow._rows import LogRow
from asyncflow.doctor import examine
from asyncflow.exceptions import OptionError, RunNotFoundError
from asyncflow.ids import new_id
from asyncflow.run_logger import RunLogger
from asyncflow.stores._log_queue import DROPPED, MOST_CHARACTERS, MOST_LINES, LogQueue
from tests.conftest import RunPython


async def logs() -> list[LogRecord]:
    """The lines of the newest outermost flow run."""
    run = (await get_client().read_flow_runs(limit=1))[0]
    return await get_client().read_logs(run.id, limit=1_000_000)


@pytest.fixture
def held(home: Path) -> Iterator[sqlite3.Connection]:
    """A database whose disk is slow: as long as this connection holds it, nothing is written."""
    with Runtime(home):
        pass
    with closing(sqlite3.connect(home / "asyncflow.db", isolation_level=None, check_same_thread=False)) as database:
        yield database


class Odd:
    """An object whose own code must not be called."""

    def __repr__(self) -> str:
        raise AssertionError

    def __iter__(self) -> Iterator[int]:
        raise AssertionError

    def __len__(self) -> int:
        raise AssertionError


# --- extra ---------------------------------------------------------------------------------------


async def test_extra_is_kept_as_json() -> None:
    given = {"user": 7, "names": ["a", "ü"], "deep": {"x": {"y": None}}, "ratio": 0.5, "big": 2**70, "at": (1, 2)}

    @flow
    async def main() -> None:
        get_run_logger().info("with", extra=given)
        get_run_logger().info("without")

    await main()
    first, second = await logs()
    assert first.extra == {**given, "at": [1, 2]}
    assert second.extra == {}


async def test_of_extra_that_is_not_json_a_preview_is_kept() -> None:
    extra: dict[Any, Any] = {
        "object": Odd(),
        "mixed": {"fine": 1, "lock": threading.Lock(), "list": [1, {2.5: Odd()}]},
        "nan": float("nan"),
        "half": "\ud800",
        "error": ValueError("x"),
        5: "a number as name",
        "ha\ud800lf": 1,
    }
    ring: list[Any] = []
    ring.append(ring)

    @flow
    async def main() -> None:
        get_run_logger().info("odd", extra=extra)
        get_run_logger().info("ring", extra={"ring": ring, "fine": 1})

    await main()
    odd, of_ring = await logs()
    assert odd.extra == {
        "object": "<tests.test_logs.Odd>",
        "mixed": {"fine": 1, "lock": "<_thread.lock>", "list": [1, {"2.5": "<tests.test_logs.Odd>"}]},
        "nan": "nan",
        "half": "'\\ud800'",
        "error": "<ValueError>",
        "5": "a number as name",
        "ha\\ud800lf": 1,
    }
    assert of_ring.extra["fine"] == 1


async def test_extra_is_bounded() -> None:
    @flow
    async def main() -> None:
        get_run_logger().info("long", extra={"text": "x" * 1_000_000, "items": list(range(100_000)), "after": 1})
        get_run_logger().info("many", extra={f"name {n}": n for n in range(100_000)})
        get_run_logger().info("names", extra={"n" * 1_000_000: 1})
        get_run_logger().info("all", extra={f"part {n}": "x" * 10_000 for n in range(1000)})

    await main()
    long, many, names, every = await logs()
    assert long.extra["after"] == 1
    assert len(long.extra["text"]) <= 200
    assert len(long.extra["items"]) <= 200
    assert many.extra["name 0"] == 0
    assert f"{100_000 - len(many.extra) + 1} more" in many.extra["..."]
    assert every.extra["part 0"] == "x" * 10_000
    assert every.extra["part 1"].startswith("'xxx")
    for record in (long, many, names, every):
        assert len(json.dumps(record.extra)) < 20_000


async def test_extra_named_like_an_attribute_of_every_record(caplog: pytest.LogCaptureFixture) -> None:
    """`logging` raises for these: a log line with data from outside would end the flow."""
    extra = {"message": "m", "name": "n", "args": "a", "asctime": "t", "flow_run_id": "mine", "fine": 1}

    @flow
    async def main() -> None:
        get_run_logger().warning("told", extra=extra)

    await main()
    (line,) = await logs()
    assert line.extra == extra
    record: Any = caplog.records[-1]
    assert (record.name, record.getMessage(), record.fine) == ("asyncflow.flow_runs", "told", 1)
    assert record.flow_run_id == str(line.flow_run_id)


async def test_extra_is_in_the_view_for_people(home: Path) -> None:
    @flow
    async def main() -> None:
        get_run_logger().info("told", extra={"order": 7})

    await main()

    def read() -> Any:
        with closing(sqlite3.connect(home / "asyncflow.db")) as database:
            return database.execute("SELECT json_extract(extra, '$.order') FROM logs").fetchall()

    assert await anyio.to_thread.run_sync(read) == [(7,)]


# --- records ----------------------------------------------------------------------------------------


async def test_records_tell_which_run_of_what_they_are_from(caplog: pytest.LogCaptureFixture) -> None:
    @task(task_run_name="the part")
    async def part() -> None:
        get_run_logger().warning("part")

    @flow(name="inside", flow_run_name="the inner")
    async def inner() -> None:
        get_run_logger().warning("inner")
        await part()

    @flow(name="outside", flow_run_name="the outer")
    async def outer() -> None:
        await inner()

    await outer()
    await part()
    inside, below, alone = (
        {k: v for k, v in vars(each).items() if "run" in k or "_name" in k} for each in caplog.records
    )
    (run,) = await get_client().read_flow_runs(flow_name="inside")
    task_runs = await get_client().read_task_runs(name="the part")
    assert inside == {
        "run_name": "the inner",
        "flow_name": "inside",
        "flow_run_id": str(run.id),
        "flow_run_name": "the inner",
        "task_name": None,
        "task_run_id": None,
        "task_run_name": None,
    }
    of_task = {"run_name": "the part", "task_name": "part", "task_run_name": "the part"}
    assert below == {**inside, **of_task, "task_run_id": str(task_runs[1].id)}
    assert alone == {**dict.fromkeys(inside), **of_task, "task_run_id": str(task_runs[0].id)}


async def test_filters_of_the_loggers_count_for_what_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """They are where a program drops records, or takes something out of them."""

    class Redacting(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.msg, record.args = record.getMessage().replace("4111", "****"), None
            return "noise" not in record.msg

    @flow
    async def main() -> None:
        get_run_logger().info("card %s", "4111")
        get_run_logger().error("card %s", "4111")
        get_run_logger().error("noise")

    redacting, logger = Redacting(), logging.getLogger("asyncflow.flow_runs")
    logger.addFilter(redacting)
    try:
        await main()
    finally:
        logger.removeFilter(redacting)
    assert [line.message for line in await logs()] == ["card ****"] * 2
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == ["card ****"]


async def test_a_logger_that_a_configuration_disabled_is_kept_all_the_same() -> None:
    """`dictConfig` disables the loggers that exist, unless it is told not to."""

    @flow
    async def main() -> None:
        get_run_logger().error("told")

    logger = logging.getLogger("asyncflow.flow_runs")
    logger.disabled = True
    try:
        await main()
    finally:
        logger.disabled = False
    assert [line.message for line in await logs()] == ["told"]


async def test_handlers_format_exceptions_as_they_do() -> None:
    class Short(logging.Formatter):
        def formatException(self, ei: Any) -> str:
            return f"short: {ei[0].__name__}"

    @flow
    async def main() -> None:
        try:
            raise KeyError("k")
        except KeyError:
            get_run_logger().exception("told")

    text = io.StringIO()
    handler, logger = logging.StreamHandler(text), logging.getLogger("asyncflow.flow_runs")
    handler.setFormatter(Short())
    logger.addHandler(handler)
    try:
        await main()
    finally:
        logger.removeHandler(handler)
    assert text.getvalue() == "told\nshort: KeyError\n"
    assert (await logs())[0].message.endswith("\nKeyError: 'k'")


async def test_an_exception_that_has_no_text_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asyncflow")  # nobody hears it: `caplog` raises what goes wrong in it

    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @flow
    async def main() -> int:
        get_run_logger().error("told", exc_info=Nasty())
        get_run_logger().error("%s", Nasty())
        return 1

    assert await main() == 1
    first, second = await logs()
    assert first.message.startswith("told\n")
    assert "its arguments do not fit: RuntimeError: no text" in second.message


async def test_whether_a_level_is_kept_can_be_asked() -> None:
    answers: list[bool] = []

    @flow
    async def main() -> None:
        logger = get_run_logger()
        answers.extend(logger.isEnabledFor(level) for level in (logging.DEBUG, logging.INFO, logging.ERROR))
        logging.LoggerAdapter(logger, {"mine": 1}).info("through another adapter")

    await main()
    assert answers == [False, True, True]
    assert [line.extra for line in await logs()] == [{"mine": 1}]


async def test_a_text_that_is_too_long_says_where_it_was_cut() -> None:
    def fail(depth: int) -> None:
        if not depth:
            raise ValueError("the reason")
        fail(depth - 1)

    @flow
    async def main() -> None:
        get_run_logger().info("a" * 65_536)
        get_run_logger().info("a" * 60_000 + "b" * 60_000)
        try:
            raise ValueError("long " * 50_000 + "the reason")
        except ValueError:
            get_run_logger().exception("told")

    await main()
    whole, cut, with_traceback = [line.message for line in await logs()]
    assert whole == "a" * 65_536
    assert "\n" not in cut
    assert " ... 54,464 characters left out ... " in cut
    assert cut.startswith("a" * 49_152 + " ... ")
    assert cut.endswith(" ... " + "b" * 16_384)
    assert with_traceback.startswith("told\nTraceback")
    assert with_traceback.endswith("the reason")
    assert len(with_traceback) < 66_000


async def test_a_logger_that_outlives_its_runtime_fails_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loggers: list[RunLogger] = []

    @flow
    async def main() -> None:
        loggers.append(get_run_logger())

    async with Runtime(tmp_path / "other"):
        await main()
    loggers[0].warning("late")
    assert caplog.messages == ["late"]


def test_a_forked_child_may_log(run_python: RunPython) -> None:
    done = run_python(
        """
import os, sys
from asyncflow import flow, get_run_logger

@flow
def main():
    logger = get_run_logger()
    pid = os.fork()
    if not pid:
        logger.warning("in the child")
        sys.stderr.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

main()
"""
    )
    assert done.stderr == "in the child\n"


def test_a_log_call_does_no_input_or_output(run_python: RunPython) -> None:
    done = run_python(
        """
import logging, sys, threading
from asyncflow import flow, get_run_logger

seen = []
here = threading.get_ident()

def hook(event, args):
    if watching and threading.get_ident() == here:
        seen.append(event)

@flow
def main():
    global watching
    logger = get_run_logger()
    logger.info("the first one imports what it needs", extra={"object": logger})
    watching = True
    for n in range(1000):
        logger.info("line %d", n, extra={"n": n, "object": logger})
        logger.debug("not kept")
    watching = False

watching = False
sys.addaudithook(hook)
main()
print(sorted(event for event in set(seen) if event.startswith(("open", "os.", "import", "socket.", "sqlite3."))))
"""
    )
    assert done.stdout == "[]\n"


# --- following --------------------------------------------------------------------------------------


async def test_a_run_is_followed_until_it_ends() -> None:
    step = anyio.Event()
    seen: list[str] = []

    @task
    async def part(n: int) -> None:
        get_run_logger().warning("part %d", n)

    @flow
    async def main() -> None:
        get_run_logger().info("begun")
        await step.wait()
        for n in range(3):
            await part(n)
        get_run_logger().info("done")

    async with Runtime(), anyio.create_task_group() as group:
        future = main.submit()

        async def follow() -> None:
            async for record in get_client().follow_logs(future.flow_run_id):
                seen.append(record.message)
                step.set()

        group.start_soon(follow)
        await future
    assert seen == ["begun", "part 0", "part 1", "part 2", "done"]


async def test_a_run_that_has_ended_is_followed_to_its_end() -> None:
    @task
    async def part() -> None:
        get_run_logger().warning("part", extra={"n": 1})

    @flow
    async def main() -> None:
        for n in range(2500):
            get_run_logger().info("%d", n)
        await part()

    await main()
    client = get_client()
    (run,) = await client.read_flow_runs()
    (task_run,) = await client.read_task_runs()
    everything = [record async for record in client.follow_logs(run.id)]
    assert [record.message for record in everything] == [*map(str, range(2500)), "part"]
    assert [record async for record in client.follow_logs(run.id, level="warning")] == everything[-1:]
    assert [record async for record in client.follow_logs(str(task_run.id))] == everything[-1:]
    assert everything[-1].extra == {"n": 1}


async def test_following_what_is_no_run() -> None:
    client = get_client()
    unknown = client.follow_logs(new_id().hex())
    with pytest.raises(RunNotFoundError):
        await anext(unknown)
    with pytest.raises(RunNotFoundError):
        client.follow_logs("nonsense")
    with pytest.raises(OptionError, match="level="):
        client.follow_logs(new_id().hex(), level="loud")


async def test_many_follow_a_busy_run_and_none_misses_a_line_or_gets_one_twice() -> None:
    lines, seen = 3000, dict[int, list[str]]()

    @flow
    async def main() -> None:
        for n in range(lines):
            get_run_logger().info("%d", n)
            if n % 50 == 0:
                await anyio.sleep(0.001)

    async with Runtime(), anyio.create_task_group() as group:
        future = main.submit()

        async def follow(reader: int) -> None:
            seen[reader] = []
            async for record in get_client().follow_logs(future.flow_run_id):
                seen[reader].append(record.message)
                if reader == 0 and len(seen[reader]) % 500 == 0:
                    await anyio.sleep(0.01)  # a slow one

        for reader in range(4):
            group.start_soon(follow, reader)
        await future
    assert list(seen.values()) == [[str(n) for n in range(lines)]] * 4


async def test_who_stops_following_leaves_nothing_behind() -> None:
    goes_on = anyio.Event()

    @flow
    async def main() -> None:
        get_run_logger().info("begun")
        await goes_on.wait()
        get_run_logger().info("done")

    async with Runtime() as runtime:
        services = runtime.services
        assert services is not None
        store: Any = services.store
        future = main.submit()
        stream = get_client().follow_logs(future.flow_run_id)
        assert (await anext(stream)).message == "begun"
        with anyio.move_on_after(0.05):
            await anext(stream)
            pytest.fail("there is no more")
        assert store._writer.watchers._wakes == ()
        goes_on.set()
        await future
        assert [record.message async for record in stream] == ["done"]  # it goes on where it was


async def test_following_ends_with_the_runtime() -> None:
    seen: list[str] = []

    @flow
    async def main() -> None:
        get_run_logger().info("begun")
        await anyio.sleep_forever()

    async def follow(client: Client, run_id: UUID) -> None:
        async for record in client.follow_logs(run_id):
            seen.append(record.message)  # noqa: PERF401  # each is looked at as soon as it is there

    async with anyio.create_task_group() as group, Runtime(drain_seconds=0.1) as runtime:
        future = main.submit()
        group.start_soon(follow, get_client(runtime), future.flow_run_id)
        while not seen:
            await anyio.sleep(0.01)
    assert seen == ["begun"]


async def test_a_run_of_another_process_is_followed(run_python: RunPython, tmp_path: Path) -> None:
    ready, step = tmp_path / "ready", tmp_path / "step"
    code = f"""
import pathlib, time
from asyncflow import flow, get_run_logger, runtime

@flow
def main():
    get_run_logger().info("begun")
    pathlib.Path({str(ready)!r}).write_text(str(runtime.flow_run.id))
    while not pathlib.Path({str(step)!r}).exists():
        time.sleep(0.01)
    for n in range(100):
        get_run_logger().info("%d", n)

main()
"""
    seen: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, run_python, code)
        while not (ready.exists() and ready.read_text()):
            await anyio.sleep(0.01)
        async for record in get_client().follow_logs(ready.read_text()):
            seen.append(record.message)
            step.touch()
    assert seen == ["begun", *map(str, range(100))]


# --- too many -----------------------------------------------------------------------------------------

FLOOD = """
import resource, sys
from contextlib import closing
import sqlite3
import anyio
from asyncflow import Runtime, flow, get_client, get_run_logger

LINES = int(sys.argv[1])

@flow
async def flood():
    logger = get_run_logger()
    for n in range(LINES):
        logger.info("line %d of a flow that has no end of things to tell", n)
        if n % 100 == 0:
            await anyio.sleep(0)

async def main():
    ticks = 0
    async with Runtime() as runtime:
        async def tick():
            nonlocal ticks
            while True:
                await anyio.sleep(0.001)
                ticks += 1
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            await flood()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            group.cancel_scope.cancel()
        dropped = get_client().dropped_logs
    with closing(sqlite3.connect(runtime.home / "asyncflow.db")) as database:
        kept, = database.execute("SELECT count(*) FROM log WHERE logger <> 'asyncflow.dropped'").fetchone()
        told, = database.execute(
            "SELECT total(json_extract(extra, '$.dropped')) FROM log WHERE logger = 'asyncflow.dropped'"
        ).fetchone()
    print(kept, dropped, int(told), (after - before) // 1024, ticks)

anyio.run(main)
"""


@pytest.mark.timeout(180)
def test_a_million_lines_of_one_body(run_python: RunPython) -> None:
    lines = 1_000_000
    done = run_python(FLOOD, str(lines), timeout=170)
    kept, dropped, told, grown, ticks = done.stdout.split()
    assert int(kept) + int(dropped) == lines
    assert int(told) == int(dropped) > 0
    assert int(kept) >= MOST_LINES
    assert int(grown) < 150, "MiB"
    assert int(ticks) > 100, "the loop turned all the time"
    assert done.stderr.count("were dropped, because they came faster than the disk took them") == 1


def row(text: str = "", run_id: bytes | None = None, extra: str | None = None) -> LogRow:
    return LogRow(run_id or b"1" * 16, None, 7, 20, "x", text, extra)


def test_lines_that_are_dropped_are_counted_exactly_whoever_puts_them() -> None:
    queue, each, taken = LogQueue(), 20_000, list[LogRow]()
    done = threading.Event()

    def put(run_id: bytes) -> None:
        for n in range(each):
            queue.put(row(str(n), run_id))

    def take() -> None:
        while not done.wait(0.001):
            taken.extend(queue.take())

    taker = threading.Thread(target=take)
    writers = [threading.Thread(target=put, args=(bytes([n % 3]) * 16,)) for n in range(6)]
    for thread in (taker, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    taker.join()
    taken.extend(queue.take())
    lines = [line for line in taken if line.logger != DROPPED]
    gaps = [line for line in taken if line.logger == DROPPED]
    assert len(lines) + queue.dropped == 6 * each
    assert sum(json.loads(line.extra or "")["dropped"] for line in gaps) == queue.dropped
    assert not queue


def test_where_lines_are_missing_a_line_says_how_many() -> None:
    queue = LogQueue()
    assert queue.warning() is None
    for _ in range(MOST_LINES):
        queue.put(row())
    first, second = new_id(), new_id()
    for run_id in (first, second, second):
        queue.put(row(run_id=run_id))
    queue.put(LogRow(None, second, 8, 20, "x", "of a task outside of any flow"))
    assert queue.dropped == 4
    told = queue.warning()
    assert told is not None
    assert "were dropped" in told
    assert queue.warning() is None
    *lines, one, two, three = queue.take()
    assert len(lines) == MOST_LINES
    text = "missing here: they came faster than the disk took them"
    assert one == LogRow(first, None, 7, 30, DROPPED, f"1 log line is {text}", '{"dropped": 1}')
    assert two == LogRow(second, None, 7, 30, DROPPED, f"2 log lines are {text}", '{"dropped": 2}')
    assert three == LogRow(None, second, 8, 30, DROPPED, f"1 log line is {text}", '{"dropped": 1}')
    queue.put(row("there is room again"))
    assert [line.message for line in queue.take()] == ["there is room again"]
    assert queue.dropped == 4


def test_a_queue_that_is_empty_has_room_whatever_it_thinks_it_holds() -> None:
    """Two threads at once may leave the count of characters too high, and nobody takes what is not there."""
    queue = LogQueue()
    queue._characters = MOST_CHARACTERS
    queue.put(row("told"))
    assert [line.message for line in queue.take()] == ["told"]
    assert queue.dropped == 0


def test_long_lines_fill_the_queue_sooner() -> None:
    queue, long = LogQueue(), 64 * 1024
    for _ in range(2 * MOST_CHARACTERS // long):
        queue.put(row("x" * (long // 2), extra="y" * (long // 2)))
    assert queue.dropped == MOST_CHARACTERS // long
    assert len(queue.take()) == MOST_CHARACTERS // long + 1
    queue.put(row("x" * long))
    assert len(queue.take()) == 1


def test_a_disk_that_is_behind(home: Path, held: sqlite3.Connection, caplog: pytest.LogCaptureFixture) -> None:
    """Only the end of the run waits for it. What was lost is told: in the log, once as a warning, by the doctor."""
    lines = 2 * MOST_LINES + 1000

    @flow
    def main() -> None:
        logger = get_run_logger()
        held.execute("BEGIN IMMEDIATE")
        for n in range(lines):
            logger.info("%d", n)
        held.execute("ROLLBACK")
        logger.info("the last one")

    with Runtime() as runtime:
        main()
        dropped = get_client().dropped_logs
        assert get_client(runtime).dropped_logs == dropped > 0
        main()
    assert get_client(runtime).dropped_logs == 0
    told = [line for line in caplog.messages if "were dropped, because they came faster" in line]
    assert len(told) == 1
    report = examine(home)
    assert report.is_sound
    assert report.facts["dropped_log_lines"] >= dropped
    assert any(finding.kind == "dropped-logs" for finding in report.findings)
    kept = held.execute("SELECT count(*) FROM log WHERE logger <> ?", [DROPPED]).fetchone()[0]
    assert kept + report.facts["dropped_log_lines"] == 2 * (lines + 1)


# --- docs/logging.md -----------------------------------------------------------------------------------


def page_block(containing: str) -> str:
    """The Python block of the page that holds the text."""
    text = (Path(__file__).parent.parent / "docs" / "logging.md").read_text()
    (block,) = [each for each in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if containing in each]
    return str(block)


def test_the_page_says_what_its_configuration_prints(run_python: RunPython) -> None:
    text = (Path(__file__).parent.parent / "docs" / "logging.md").read_text()
    (printed,) = re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S)
    assert run_python(page_block("dictConfig")).stdout == printed


def test_the_page_tells_records_of_other_loggers_from_which_run_they_are(run_python: RunPython) -> None:
    assert run_python(page_block("WithRun")).stdout == "[monday] connected\n[-] bye\n"


def test_the_page_writes_records_as_json(run_python: RunPython) -> None:
    told = json.loads(run_python(page_block("JSONLines")).stdout)
    assert {"message": "charged", "order": 7, "cents": 1200, "flow_run_name": "monday"}.items() <= told.items()


def test_the_page_follows_a_run(run_python: RunPython) -> None:
    assert run_python(page_block("follow_logs")).stdout == "at 0\nat 1\nat 2\n"
