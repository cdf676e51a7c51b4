"""The pytest plugin, in projects of its own: with pytest alone, pytest-asyncio, anyio's plugin and pytest-trio."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

RunPytest = Callable[..., str]

FLOWS = """
import anyio
from asyncflow import emit_event, flow, get_run_logger, task


@task(retries=3, retry_delay_seconds=3600)
async def flaky(tries):
    tries.append(1)
    if len(tries) < 4:
        raise ValueError("not yet")
    return len(tries)


@flow(validate_parameters=False)
async def hello(name="you"):
    get_run_logger().info("hello %s", name)
    emit_event("greeted", f"person/{name}")
    return f"hello {name}"


@flow(validate_parameters=False)
async def month():
    await anyio.sleep(30 * 86_400)
    return await flaky([])


@flow
def plain(number: int) -> int:
    return 2 * number
"""

LOOP_SCOPE = {"asyncio_default_fixture_loop_scope": "function"}  # else pytest-asyncio warns, until its default changes

# The same tests under every runner; `MARK` is what it wants to see.
EVERYWHERE = """
import anyio
import pytest
from asyncflow import get_client
from asyncflow.testing import cancel_everywhere
from flows import hello, month, plain



MARK
async def test_one(asyncflow_client, asyncflow_logs, asyncflow_events):
    assert await hello("Ada") == "hello Ada"
    (run,) = await asyncflow_client.read_flow_runs()
    assert run.state.is_completed()
    assert asyncflow_logs.messages == ["hello Ada"] and asyncflow_logs.text == "hello Ada"
    assert "greeted" in asyncflow_events.names
    assert asyncflow_events.names[-1] == "flow-run.Completed"
    assert (await get_client().read_flow_runs())[0].id == run.id


MARK
async def test_another_one_sees_nothing_of_it(asyncflow_client, asyncflow_runtime, asyncflow_events):
    assert await asyncflow_client.read_flow_runs() == []
    assert list(asyncflow_events) == []
    assert asyncflow_runtime.services is not None


MARK
async def test_virtual_time(virtual_clock):
    began = virtual_clock.now()
    assert await month() == 4
    assert virtual_clock.now() - began == pytest.approx(30 * 86_400 + 3 * 3600, abs=1e-3)


MARK
async def test_virtual_time_without_a_flow(virtual_clock):
    began = virtual_clock.monotonic()
    await anyio.sleep(86_400)
    assert virtual_clock.monotonic() - began == pytest.approx(86_400, abs=1e-3)


MARK
async def test_submitted(asyncflow_client):
    future = hello.submit("Bob")
    assert await future == "hello Bob"


MARK
async def test_cancelled_everywhere(virtual_clock):
    report = await cancel_everywhere(month)
    assert report.points > 2


def test_sync():
    assert plain(3) == 6
"""

LEFT = """
import pytest
from flows import month


MARK
async def test_left():
    month.submit()


MARK
async def test_left_by_a_failed_one():
    month.submit()
    raise KeyError("its own")


MARK
async def test_cancelled_in_time():
    future = month.submit()
    future.cancel()
    await future.wait_async()
"""

RUNNERS: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "pytest-asyncio-strict": ("@pytest.mark.asyncio", {"asyncio_mode": "strict", **LOOP_SCOPE}, ["anyio", "trio"]),
    "pytest-asyncio-auto": ("", {"asyncio_mode": "auto", **LOOP_SCOPE}, ["anyio", "trio"]),
    "anyio": ("@pytest.mark.anyio", {}, ["asyncio", "trio"]),
    "pytest-trio": ("@pytest.mark.trio", {}, ["asyncio", "anyio"]),
    "pytest-trio-auto": ("", {"trio_mode": "true"}, ["asyncio", "anyio"]),
}
"""How a test is marked, the options of pytest.ini, and the plugins of others that are left out."""
EACH_RUNNER = pytest.mark.parametrize("runner", RUNNERS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "flows.py").write_text(FLOWS)
    return folder


@pytest.fixture
def run_pytest(project: Path) -> RunPytest:
    """`run_pytest(text, *args, runner=..., code=0)` runs a test file in a fresh process; gives what it printed."""

    def run(text: str, *args: str, runner: str = "", code: int = 0, **ini: str) -> str:
        mark, options, without = RUNNERS.get(runner, ("", {}, ["asyncio", "anyio", "trio"]))
        (project / "test_it.py").write_text(dedent(text).replace("MARK", mark))
        lines = "".join(f"{name} = {value}\n" for name, value in {**options, **ini}.items())
        (project / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{lines}")
        off = [part for each in (*without, "randomly", "cacheprovider") for part in ("-p", f"no:{each}")]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNCFLOW_", "PYTEST_"))}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *off, *args],
            cwd=project,
            env=env,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        if done.returncode != code:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    return run


@pytest.mark.parametrize("runner", RUNNERS)
def test_under_every_runner(run_pytest: RunPytest, project: Path, runner: str) -> None:
    told = run_pytest(EVERYWHERE + LEFT, runner=runner, code=1)
    times = 2 if runner == "anyio" else 1  # it runs each async test on both backends
    # Of LEFT, one test passes and fails at its end, one fails twice, one passes; test_sync is not async.
    assert re.search(rf"\b{times} failed, {8 * times + 1} passed, {2 * times} errors", told), told
    assert len(re.findall(r"^[E |]+KeyError: 'its own'", told, re.MULTILINE)) == times, (
        "its own failure is told as well"
    )
    messages = re.findall(
        r"^the test ended before a run that it had started:\n  flow run '[\w-]+' of 'month'\n", told, re.MULTILINE
    )
    assert len(messages) == 2 * times, told
    assert not (project / ".asyncflow").exists(), "something was written"


def test_with_pytest_alone(run_pytest: RunPytest, project: Path) -> None:
    told = run_pytest(
        """
        import os
        import sys

        import pytest

        def test_nothing_is_imported_for_a_test_without_flows():
            assert not [name for name in sys.modules if name.partition(".")[0] == "asyncflow"]
            assert "_asyncflow_pytest" in sys.modules

        def test_an_import_in_a_test():
            from flows import plain
            assert plain(1) == 2

        def test_another_runtime(asyncflow_events, asyncflow_runtime):
            from flows import plain
            assert len(asyncflow_events) == 0
            plain(1)
            assert asyncflow_events.names[-1] == asyncflow_events[-1].name == "flow-run.Completed"
            assert asyncflow_runtime.services.store.count_outermost() == 1

        def test_a_runtime_entered_by_hand_comes_first(asyncflow_runtime):
            from asyncflow import Runtime
            from asyncflow.stores.memory import MemoryStore
            from flows import plain
            with Runtime(store=MemoryStore()):
                plain(1)
            plain(2)
            plain(3)
            assert asyncflow_runtime.services.store.count_outermost() == 2

        @pytest.fixture(scope="module")
        def shared():
            from flows import plain
            yield plain(1)
            plain(9)

        @pytest.fixture
        def made(virtual_clock):
            return virtual_clock.now()

        def test_fixtures_that_call_flows(shared, asyncflow_runtime):
            assert shared == 2

        def test_a_fixture_on_virtual_time(shared, made, virtual_clock):
            assert virtual_clock.now() == made

        @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
        def test_a_forked_child_has_its_own(asyncflow_runtime):
            from flows import plain
            plain(1)
            child = os.fork()
            if not child:
                try:
                    os._exit(0 if plain(2) == 4 else 1)
                finally:
                    os._exit(2)
            assert os.waitpid(child, 0)[1] == 0
            assert asyncflow_runtime.services.store.count_outermost() == 1
        """
    )
    assert " passed" in told
    assert not (project / ".asyncflow").exists(), "something was written"


def test_a_thousand_tests(run_pytest: RunPytest) -> None:
    """They take about a second; what is held is that none of them pays for the ones before it."""
    told = run_pytest(
        """
        import pytest
        from flows import plain

        @pytest.mark.parametrize("number", range(1000))
        def test_plain(number, asyncflow_runtime):
            assert plain(number) == 2 * number
            assert asyncflow_runtime.services.store.count_outermost() == 1
        """,
        "-n",
        "2",
    )
    match = re.search(r"1000 passed in ([\d.]+)s", told)
    assert match is not None
    assert float(match[1]) < 40


def test_opting_out_and_in(run_pytest: RunPytest, project: Path) -> None:
    text = """
        import pytest
        from flows import plain

        @pytest.mark.asyncflow_runtime("default")
        def test_on_disk():
            plain(1)

        @pytest.mark.asyncflow_runtime("memory")
        def test_in_memory(asyncflow_runtime):
            plain(1)
            assert asyncflow_runtime.services.store.count_outermost() == 1
        """
    run_pytest(text, "--strict-markers", "-k", "memory", asyncflow_runtime="default")
    assert not (project / ".asyncflow").exists()
    run_pytest(text, "--strict-markers")
    assert (project / ".asyncflow" / "asyncflow.db").exists()


def test_a_kind_that_is_none(run_pytest: RunPytest) -> None:
    run_pytest("def test_it(): pass", code=4, asyncflow_runtime="disk")
    told = run_pytest(
        """
        import pytest

        @pytest.mark.asyncflow_runtime
        def test_marked():
            pass

        @pytest.mark.asyncflow_runtime("default")
        def test_fixture(asyncflow_runtime):
            pass

        @pytest.mark.asyncflow_runtime("default")
        def test_clock(virtual_clock):
            pass
        """,
        code=1,
    )
    assert "must be one of 'memory', 'default'" in told
    assert "this test has no runtime of its own" in told
    assert "virtual_clock is for tests that have a runtime of their own" in told
