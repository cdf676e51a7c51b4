"""Measures one row in this process and prints its samples as one line of JSON."""

from __future__ import annotations

import gc
import inspect
import json
import sys
from typing import Any

import anyio

import benchmarks.rows  # noqa: F401  # fills the registry
from asyncflow import Runtime
from benchmarks.registry import Measure, Row, Sample, Scale, references, rows

QUICK_REPETITIONS = 3


async def once(measure: Measure, scale: Scale) -> Sample:
    """One sample; garbage of the one before is nobody's cost."""
    gc.collect()
    sample = measure(scale)
    return await sample if inspect.isawaitable(sample) else sample


async def measure_on_loop(row: Row, scale: Scale) -> list[tuple[Sample, float | None]]:
    """Samples of a row, each with one of its reference taken right before it, on this loop."""
    against = references[row.reference] if row.reference else None
    samples: list[tuple[Sample, float | None]] = []
    async with Runtime():
        for number in range(repetitions_of(row, scale) + 1):
            base = (await once(against, scale)).value if against else None
            sample = await once(row.measure, scale)
            if number or row.repetitions == 1:  # the first is for warming up
                samples.append((sample, base))
            if row.repetitions == 1:
                break
    return samples


def measure_in_process(row: Row, scale: Scale) -> list[tuple[Sample, float | None]]:
    """Likewise for what runs on no loop; a reference gets one for itself."""
    against = references[row.reference] if row.reference else None
    samples: list[tuple[Sample, float | None]] = []
    for number in range(repetitions_of(row, scale) + 1):
        base = anyio.run(once, against, scale).value if against else None
        gc.collect()
        sample = row.measure(scale)
        assert isinstance(sample, Sample)
        if number or row.repetitions == 1:
            samples.append((sample, base))
        if row.repetitions == 1:
            break
    return samples


def repetitions_of(row: Row, scale: Scale) -> int:
    """How many samples count."""
    return min(row.repetitions, QUICK_REPETITIONS) if scale.quick else row.repetitions


def options_of(backend: str) -> dict[str, Any]:
    """What `anyio.run` takes to run on this backend."""
    if backend == "trio":
        return {"backend": "trio"}
    return {"backend": "asyncio", "backend_options": {"use_uvloop": backend == "uvloop"}}


def main(key: str, backend: str, size: str) -> None:
    """Measure one row and print it."""
    row, scale = rows[key], Scale(quick=size == "quick", backend=backend)
    if backend == "process":
        samples = measure_in_process(row, scale)
    else:
        samples = anyio.run(measure_on_loop, row, scale, **options_of(backend))
    print(json.dumps([{"value": sample.value, "note": sample.note, "reference": base} for sample, base in samples]))


if __name__ == "__main__":
    main(*sys.argv[1:])
