"""The rows, by what they are about. Importing this package fills the registry."""

from benchmarks.rows import latency, loops, memory, processes, threads

__all__ = ["latency", "loops", "memory", "processes", "threads"]
