"""Importing, starting, and counting instructions: each sample is a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.registry import PROCESS, Sample, Scale, row

PLAIN = """
import time, asyncio
from asyncflow import flow
@flow
async def first(number):
    return number
asyncio.run(first(1))
print(time.monotonic())
"""
PYDANTIC = """
import time, asyncio
from pydantic import BaseModel
from asyncflow import flow
class Order(BaseModel):
    number: int
@flow
async def first(order: Order) -> Order:
    return order
asyncio.run(first({"number": 1}))
print(time.monotonic())
"""
TRIO = PLAIN.replace("asyncio.run(first(1))", "trio.run(first, 1)").replace("asyncio", "trio", 1)


def python(code: str, *, command: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> tuple[str, str, float]:
    """Run a snippet in a fresh process and folder; gives its output, its errors and the monotonic time it began at."""
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "ASYNCFLOW_HOME": str(Path(folder) / "home"), **(env or {})}
        # Compiled once: what is measured is a program that is started for the second time.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        begin = time.monotonic()
        done = subprocess.run(
            [*command, sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
    return done.stdout, done.stderr, begin


def seconds_of(code: str) -> float:
    """From before the process is started until it has ended."""
    begin = python(code)[2]
    return time.monotonic() - begin


@row("import asyncflow over bare Python", unit="ms", budget=50, backends=PROCESS, repetitions=25)
def import_time(scale: Scale) -> Sample:
    """asyncio, trio, pydantic, aiofiles and sqlite3 are left to first use."""
    bare = seconds_of("pass")
    return Sample(seconds_of("import asyncflow") - bare, f"bare {bare * 1e3:.0f} ms")


def first_flow(code: str) -> Sample:
    """From before the process is started to the end of its first flow run, on disk."""
    output, _, begin = python(code)
    return Sample(float(output) - begin)


@row("process start to first flow run completed: plain", unit="ms", budget=160, backends=PROCESS, repetitions=15)
def start_plain(scale: Scale) -> Sample:
    """Empty folder, asyncio."""
    return first_flow(PLAIN)


@row("... with a pydantic model", unit="ms", budget=230, backends=PROCESS, repetitions=15)
def start_pydantic(scale: Scale) -> Sample:
    """Its import is most of it."""
    return first_flow(PYDANTIC)


@row("... on trio", unit="ms", budget=230, backends=PROCESS, repetitions=15)
def start_trio(scale: Scale) -> Sample:
    """Its import is most of it."""
    return first_flow(TRIO)


COUNTED = """
import asyncio, sys
from benchmarks import bodies
import anyio
async def bare(count):
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(bodies.empty)
asyncio.run({call}({count}))
"""


def instructions(call: str, count: int) -> int:
    """All instructions of a process that makes `count` of them."""
    code = COUNTED.format(call=call, count=count)
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    found = re.search(r"Collected : (\d+)", python(code, command=valgrind, env={"PYTHONHASHSEED": "0"})[1])
    if found is None:
        raise RuntimeError("callgrind gave no count")
    return int(found[1])


@row("instructions per sequential task run / bare child", unit="Ir", backends=PROCESS, repetitions=1, optional=True)
def callgrind(scale: Scale) -> Sample:
    """Two sizes of each, so that start and end of the process cancel out. Needs valgrind."""
    if shutil.which("valgrind") is None:
        raise RuntimeError("valgrind is not installed")
    few, many = 1_000, scale.of(6_000, 3_000)
    run, bare = (
        (instructions(call, many) - instructions(call, few)) / (many - few)
        for call in ("bodies.tasks_in_sequence", "bare")
    )
    return Sample(run, f"{run / bare:.3f} x bare ({bare:,.0f}); budget 1.1 x")
