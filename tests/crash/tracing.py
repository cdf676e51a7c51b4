"""strace: counting a child's system calls, and killing it or failing them at the n-th."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.crash.harness import Child


def why_no_strace() -> str | None:
    """Why system calls cannot be interfered with here; None when they can."""
    if sys.platform != "linux":
        return "strace is Linux's"
    if (strace := shutil.which("strace")) is None:
        return "strace is not installed"
    probe = [strace, "-qq", "-e", "trace=getpid", "-e", "inject=getpid:error=EIO:when=1..2", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace cannot trace here: {tried.stderr.strip()}"


class Injection:
    """strace, while it interferes with a child."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def stop(self) -> None:
        """Let go of the child, if it lives."""
        self._process.terminate()
        self._process.wait()

    @property
    def happened(self) -> bool:
        """Whether there was anything to interfere with; known when it was stopped."""
        return "(INJECTED)" in self._log.read_text(errors="replace")


@contextmanager
def injected(child: Child, log: Path, call: str, what: str, *, every_thread: bool = False) -> Iterator[Injection]:
    """Interfere with the system call `call` of the child's thread of interest, or of every thread."""
    which = ["-f", "-p", str(child.pid)] if every_thread else ["-p", str(child.thread)]
    with _attached(["-o", str(log), "-e", f"trace={call}", "-e", f"inject={call}:{what}", *which], log) as injection:
        yield injection


@contextmanager
def traced(child: Child, log: Path, *calls: str) -> Iterator[Injection]:
    """Log these system calls of the child's thread of interest, with the paths of the files they are on."""
    with _attached(["-y", "-o", str(log), "-e", f"trace={','.join(calls)}", "-p", str(child.thread)], log) as injection:
        yield injection


@contextmanager
def _attached(arguments: list[str], log: Path) -> Iterator[Injection]:
    with subprocess.Popen(["strace", *arguments], stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        assert "attached" in attached, attached
        injection = Injection(strace, log)
        try:
            yield injection
        finally:
            injection.stop()
