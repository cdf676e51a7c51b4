"""`python -m benchmarks.deployments [--runs 200] [--cancels 50] [--idle 30] [--backend asyncio|trio] [--json FILE]`.

How long it takes from `run_deployment` in one process until the run is Running in another, from its end until its
caller goes on, and from `cancel_flow_run` until it is Cancelled there; and what a server costs that has nothing to do.
The exit status is 1 when one of the figures is over its budget.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from asyncflow import Deployment, Runtime, cancel_flow_run, flow, get_client, run_deployment, serve
from asyncflow.schedules import Cron
from asyncflow.triggers import EventTrigger

__all__ = ["cancel_latencies", "idle_share", "run_latencies", "server"]

PROJECT = Path(__file__).parent.parent
BUDGETS = {"to Running, median": 20.0, "to Cancelled, median": 1000.0, "idle CPU": 0.5}
"""In ms, and in per cent."""
DEPLOYMENTS = 20
SETTLED = 2.0
"""Seconds after its start until a server is idle."""
_NANO = 1e-9
_PATIENCE = 60.0


# --- what is served -------------------------------------------------------------------------------


@flow
async def quick() -> list[int]:
    """Tells when its body began and ended, on a clock that all processes share."""
    began = time.monotonic_ns()
    return [began, time.monotonic_ns()]


@flow
async def long() -> None:
    await anyio.sleep_forever()


def deployments() -> list[Deployment]:
    """Those that are measured, and others that have schedules and triggers and nothing to do."""
    schedules, triggers = [Cron("0 0 29 2 *")], [EventTrigger("never")]
    names = [f"idle{number}" for number in range(DEPLOYMENTS - 2)]
    idle = [quick.to_deployment(name, schedules=schedules, triggers=triggers) for name in names]
    return [quick.to_deployment("now"), long.to_deployment("now"), *idle]


async def serve_and_tell(idle: float | None) -> None:
    """Serve until the process is killed; with `idle`, so many seconds, and print the share of a core that took."""
    async with Runtime(), anyio.create_task_group() as group:
        group.start_soon(partial(serve, *deployments()))
        client = get_client()
        while len(await client.read_deployments()) < DEPLOYMENTS:  # noqa: ASYNC110  # there is nothing to wait for
            await anyio.sleep(0.01)
        if idle is None:
            print("ready", flush=True)
            return
        await anyio.sleep(SETTLED)
        cpu, began = time.process_time(), time.monotonic()
        await anyio.sleep(idle)
        print((time.process_time() - cpu) / (time.monotonic() - began), flush=True)
        group.cancel_scope.cancel()


@contextmanager
def server(home: Path, backend: str = "asyncio", idle: float | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that serves; its first line is there when it does, or has measured itself."""
    words = [sys.executable, "-m", "benchmarks.deployments", "--serve", "--backend", backend]
    process = subprocess.Popen(
        [*words, *(() if idle is None else ("--idle", str(idle)))],
        cwd=PROJECT,
        env={**os.environ, "ASYNCFLOW_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- what is measured -----------------------------------------------------------------------------


async def run_latencies(count: int) -> tuple[list[float], list[float]]:
    """Seconds from asking to the begin of the body, and from its end to the caller, of so many runs one after another.

    A body begins when it is on disk that its run is Running.
    """
    begins: list[float] = []
    wakes: list[float] = []
    client = get_client()
    for number in range(count + 1):
        asked = time.monotonic_ns()
        run = await run_deployment("quick/now", timeout=_PATIENCE)
        back = time.monotonic_ns()
        began, ended = await client.read_result(run.id)
        if number:  # the first one is for warming up
            begins.append((began - asked) * _NANO)
            wakes.append((back - ended) * _NANO)
    return begins, wakes


async def cancel_latencies(count: int) -> list[float]:
    """Seconds from `cancel_flow_run` to the final state, of runs that go on in the other process."""
    times: list[float] = []
    client = get_client()
    for number in range(count + 1):
        run = await client.create_flow_run_from_deployment("long/now")
        while not (await client.read_flow_run(run.id)).state.is_running():  # noqa: ASYNC110  # likewise
            await anyio.sleep(0.002)
        asked = time.monotonic()
        state = await cancel_flow_run(run.id)
        if number:
            times.append(time.monotonic() - asked)
        assert state.is_cancelled()
    return times


def idle_share(home: Path, seconds: float, backend: str = "asyncio") -> float:
    """The share of a core that a server takes that has nothing to do."""
    with server(home, backend, idle=seconds) as process:
        assert process.stdout is not None
        return float(process.stdout.readline())


async def _measure(home: Path, runs: int, cancels: int) -> tuple[list[float], list[float], list[float]]:
    async with Runtime(home):
        return *await run_latencies(runs), await cancel_latencies(cancels)


# --- the table ------------------------------------------------------------------------------------


def _figures(home: Path, asked: argparse.Namespace) -> dict[str, float]:
    with server(home, asked.backend) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begins, wakes, cancels = anyio.run(_measure, home, asked.runs, asked.cancels, backend=asked.backend)
    return {
        **_told("to Running", begins),
        **_told("from its end to its caller", wakes),
        **_told("to Cancelled", cancels),
        "idle CPU": idle_share(home, 30 if asked.idle is None else asked.idle, asked.backend) * 100,
    }


def _told(what: str, seconds: Sequence[float]) -> dict[str, float]:
    p99 = sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * 0.99))]
    return {f"{what}, median": statistics.median(seconds) * 1e3, f"{what}, p99": p99 * 1e3}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deployments", description="Deployments' latencies.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--cancels", type=int, default=50)
    parser.add_argument("--idle", type=float, help="seconds that an idle server is watched for (30)")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        anyio.run(serve_and_tell, asked.idle, backend=asked.backend)
        return 0
    with TemporaryDirectory() as folder:
        figures = _figures(Path(folder) / "home", asked)
    over = {name for name, budget in BUDGETS.items() if figures[name] > budget}
    for name, value in figures.items():
        budget = f"  (budget {BUDGETS[name]:g}{', OVER' if name in over else ''})" if name in BUDGETS else ""
        print(f"{name:35}{value:9.2f} {'%' if name == 'idle CPU' else 'ms'}{budget}")
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2))
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
