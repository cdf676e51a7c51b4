"""The rows, by what they are about. Importing this package fills the registry."""

# isort: off
# This is the order of the table.
from benchmarks.rows import loops
from benchmarks.rows import threads
from benchmarks.rows import cancelling
from benchmarks.rows import latency
from benchmarks.rows import memory
from benchmarks.rows import processes

# isort: on

__all__ = ["cancelling", "latency", "loops", "memory", "processes", "threads"]
