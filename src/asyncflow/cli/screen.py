"""A few lines at the bottom of a terminal that are drawn in place, and all that is printed, above them.

What is printed waits for the next drawing. rich would draw at once, on whatever thread prints: two at a
time garble the lines, and each takes milliseconds, on the event loop's thread.
"""

from __future__ import annotations

import io
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

__all__ = ["Screen"]


class _Lines(io.TextIOBase):
    """Takes the place of a standard stream: whole lines wait in `lines` until they are drawn."""

    def __init__(self, stream: TextIO, lines: deque[Text]) -> None:
        self._stream = stream
        self._lines = lines
        self._lock = threading.Lock()
        self._rest = ""

    def write(self, text: str) -> int:
        with self._lock:
            *whole, self._rest = (self._rest + text).split("\n")
            self._lines.extend(map(Text.from_ansi, whole))
        return len(text)

    def finish(self) -> None:
        """Let go of a last line without an end."""
        if self._rest:
            self.write("\n")

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class Screen:
    """Used by one thread at a time, apart from `say`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, auto_refresh=False, vertical_overflow="crop", redirect_stdout=False, redirect_stderr=False
        )
        self._above: deque[Text] = deque()
        self._streams: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)
        self._writers = [_Lines(stream, self._above) for stream in self._streams]

    @property
    def height(self) -> int:
        """How many lines the terminal has now."""
        return self._console.height

    @property
    def width(self) -> int:
        """How many columns it has now."""
        return self._console.width

    @property
    def has_more(self) -> bool:
        """Whether something waits to be printed above."""
        return bool(self._above)

    def start(self) -> None:
        """Begin drawing: what is printed comes here from now on."""
        sys.stdout, sys.stderr = cast("list[TextIO]", self._writers)
        self._live.start()

    def say(self, line: Text) -> None:
        """Have a line printed above with the next drawing. From any thread."""
        self._above.append(line)

    def draw(self, lines: Sequence[Text]) -> None:
        """Print what was said, and draw `lines` below it; none leave those that stand there."""
        above: list[Text] = []
        while self._above:
            above.append(self._above.popleft())
        if above:
            self._console.print(Text("\n").join(above), soft_wrap=True)
        if lines:
            self._live.update(Group(*lines), refresh=True)

    def let_go(self) -> None:
        """What is printed goes to the terminal again; called before the last drawing."""
        sys.stdout, sys.stderr = self._streams
        for writer in self._writers:
            writer.finish()

    def stop(self) -> None:
        """Leave standing what was drawn."""
        self._live.stop()
