"""Real web servers in processes of their own, for tests that talk to them over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

__all__ = ["PROJECT", "WebServer", "serving"]

PROJECT = Path(__file__).parent.parent
START_SECONDS = 40.0
STOP_SECONDS = 40.0
TRIES = 5
POLL = 0.02


class WebServer:
    """A server that answers on `url`; its output goes to a file."""

    def __init__(self, command: Sequence[str], port: int, output: Path, env: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "default", "-W", "ignore::DeprecationWarning", *command],
                cwd=PROJECT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PORT": str(port), **env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # so that its workers can be ended with it
            )
        self.client = httpx.Client(base_url=self.url, timeout=30, headers={"Connection": "close"})

    def starts(self) -> bool:
        """Wait until it accepts connections; whether it does."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(POLL)
            else:
                return self.process.poll() is None
        return False

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of an answer that is not an error."""
        return self.client.get(path, params=params).raise_for_status().json()

    def post(self, path: str, **params: Any) -> Any:
        """As `get`."""
        return self.client.post(path, params=params).raise_for_status().json()

    @contextmanager
    def asking(self, path: str, **params: Any) -> Iterator[socket.socket]:
        """A connection on which something was asked for, and which is closed, answered or not."""
        target = httpx.URL(self.url + path, params=params).raw_path
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            yield connection

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; gives the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; gives the exit status."""
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server does not stop:\n{self.output()}", pytrace=False)

    def output(self) -> str:
        """What it has written so far, on both streams."""
        return self._output.read_text(errors="replace")

    def close(self) -> None:
        """Kill what still runs of it."""
        self.client.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(command: Sequence[str], output: Path, env: Mapping[str, str]) -> Iterator[WebServer]:
    """A server that was started with `python COMMAND`; `{port}` in it, and the variable PORT, are a free port."""
    for _ in range(TRIES):
        port = free_port()
        server = WebServer([part.replace("{port}", str(port)) for part in command], port, output, env)
        try:
            if server.starts():
                yield server
                return
        finally:
            server.close()
        if "in use" not in server.output():  # somebody else may have been given the port meanwhile
            break
    pytest.fail(f"the server does not start:\n{output.read_text()}", pytrace=False)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
