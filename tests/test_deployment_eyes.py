"""What somebody who used deployments for the first time stumbled over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncflow import Runtime, flow, get_client, pause_flow_run, resume_flow_run, serve
from asyncflow.exceptions import CannotResumeError, OptionError
from tests.command_line import CommandLine, Serving

LONG = 20.0
"""Seconds that nothing here takes, however busy the machine is."""
SLEEPER = """
import anyio
from asyncflow import flow

@flow
async def sleeper() -> None:
    await anyio.sleep(1000)
"""


@pytest.fixture
def servers() -> Iterator[list[Serving]]:
    begun: list[Serving] = []
    yield begun
    for each in begun:
        each.kill()


async def test_a_flow_that_is_served_as_it_is_is_told_what_to_do() -> None:
    @flow
    async def alone() -> None: ...

    wrong: Any = alone
    with pytest.raises(OptionError, match="to_deployment"):
        await serve(wrong)


async def test_an_input_that_comes_when_the_run_has_completed_is_told_where_the_value_is() -> None:
    @flow
    async def asks() -> str:
        return await pause_flow_run(wait_for_input=str)

    async with Runtime():
        run = asks.submit()
        with anyio.fail_after(LONG):
            while not run.state.is_paused():
                assert not run.state.is_final(), run.state
                await anyio.sleep(0.001)
            await resume_flow_run(run.flow_run_id, run_input="first")
            assert await run == "first"
        with pytest.raises(CannotResumeError, match="read_result"):
            await resume_flow_run(run.flow_run_id, run_input="second")
        assert await get_client().read_result(run.flow_run_id) == "first"


def test_a_run_that_goes_on_is_not_shown_from_its_beginning_again(
    tmp_path: Path, home: Path, servers: list[Serving]
) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    asyncflow = CommandLine(tmp_path, home)
    server = Serving(asyncflow, "sleeper.py")
    servers.append(server)
    server.wait_for("Serving")
    run_id = asyncflow.ok("deployments", "run", "sleeper/sleeper").out.strip()
    server.wait_for(f"Running +sleeper/sleeper .*{run_id}")
    asyncflow.ok("runs", "suspend", run_id)
    server.wait_for("Suspended")
    asyncflow.ok("runs", "resume", run_id)
    server.wait_for(f"Retrying +sleeper/sleeper .*{run_id}")
    server.stop(signal.SIGINT, signal.SIGINT)
    told = [line.split()[1] for line in server.text.splitlines()]
    assert told[:4] == ["Serving", "Running", "Suspended", "Retrying"], server.text
