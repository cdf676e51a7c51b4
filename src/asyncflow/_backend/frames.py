"""Where code is that waits or runs: frames of tasks and threads, looked at from outside.

Nothing is stopped, awaited or woken for it, so what is seen may have moved on while it is looked at:
everything here tolerates a coroutine that ends meanwhile. Local variables are read in frames of our
own alone; what users' variables hold is none of our business, and a look would keep it alive.
"""

from __future__ import annotations

import gc
import os
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

__all__ = [
    "coroutine_of", "file_of", "innermost_of_library", "innermost_of_user", "is_ours", "key_of", "local_of",
    "module_of", "suspended_frames", "thread_stack", "thread_stacks",
]  # fmt: skip

_PACKAGE = str(Path(__file__).parent.parent)
_NAME = "asyncflow"
_SUSPENDABLE: tuple[type[Any], ...] = (CoroutineType, GeneratorType, AsyncGeneratorType)
_DEEPEST = 20_000
"""Frames of one task that are looked at: more than any has."""
_PARTS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


# --- frames of tasks -------------------------------------------------------------------------


def coroutine_of(task: Any) -> Any:
    """The outermost coroutine of a backend's task; None for what is none, and when it has ended."""
    get_coro = getattr(task, "get_coro", None)  # asyncio's; trio's tasks have an attribute
    return getattr(task, "coro", None) if get_coro is None else get_coro()


def suspended_frames(awaited: Any) -> Iterator[FrameType]:
    """The frames of a suspended coroutine, outermost first. One that executes shows its first frame alone."""
    for _ in range(_DEEPEST):
        if awaited is None:
            return
        for frame, inner in _PARTS:
            if hasattr(awaited, frame):
                found = getattr(awaited, frame)
                if found is not None:
                    yield found
                awaited = getattr(awaited, inner)
                break
        else:
            awaited = _wrapped_by(awaited)


def _wrapped_by(awaited: Any) -> Any:
    """What an awaitable of CPython's own (of `async for`, of `__await__`) drives; None at the end of the chain."""
    if type(awaited).__module__ != "builtins":
        return None
    return next((each for each in gc.get_referents(awaited) if isinstance(each, _SUSPENDABLE)), None)


# --- frames of threads -----------------------------------------------------------------------


def thread_stacks(without: frozenset[str] = frozenset()) -> dict[int, list[FrameType]]:
    """What each thread executes now, by its number: the frames, outermost first.

    Of the calling thread without the innermost ones, of this module and of those named in `without`:
    whoever keeps the frame that it executes in keeps itself.
    """
    here = threading.get_ident()
    innermost = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # there is no other way
    stacks = {
        number: _stack(frame, without | {__name__} if number == here else ()) for number, frame in innermost.items()
    }
    innermost.clear()
    return stacks


def thread_stack(number: int) -> list[FrameType]:
    """The same of another thread; nothing for one that has ended."""
    innermost = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # as above
    stack = _stack(innermost.get(number), ())
    innermost.clear()
    return stack


def _below_signal_handler(innermost: FrameType | None) -> FrameType | None:
    """What a signal handler of the program has interrupted; outside of one, `innermost`."""
    if threading.current_thread() is not threading.main_thread() or "signal" not in sys.modules:
        return innermost
    import signal  # imported already: somebody may have set a handler

    handlers = {getattr(signal.getsignal(each), "__code__", None) for each in signal.valid_signals()} - {None}
    frame = innermost
    while frame is not None and frame.f_code not in handlers:
        frame = frame.f_back
    return innermost if frame is None else frame.f_back


def _stack(innermost: FrameType | None, without: Collection[str]) -> list[FrameType]:
    frame = innermost
    while frame is not None and module_of(frame) in without:
        frame = frame.f_back
    if without:
        frame = _below_signal_handler(frame)
    stack: list[FrameType] = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    stack.reverse()
    return stack


# --- what a frame is -------------------------------------------------------------------------


def file_of(frame: FrameType) -> str:
    """The file that its code is from."""
    return frame.f_code.co_filename


def key_of(frame: FrameType) -> str:
    """`module:qualified.name` of its function."""
    return f"{module_of(frame)}:{frame.f_code.co_qualname}"


def module_of(frame: FrameType) -> str:
    """The name of the module that its code is from."""
    return str(frame.f_globals.get("__name__"))


def local_of(frame: FrameType, name: str) -> Any:
    """A local variable of a frame of ours; None when it has none of that name."""
    return frame.f_locals.get(name)


def is_ours(frame: FrameType) -> bool:
    """Whether it is asyncflow's own."""
    return file_of(frame).startswith(_PACKAGE)


def innermost_of_user(frames: Sequence[FrameType], package: str = "") -> FrameType | None:
    """The innermost frame of the user's code: not asyncflow's, the standard library's or an installed package's.

    A program may be installed like a library: then what is in its `package`, the one that the function
    which was called is from, is the user's.
    """
    for frame in reversed(frames):
        if not is_ours(frame) and (not _is_installed(file_of(frame)) or _is_in(frame, package)):
            return frame
    return None


def innermost_of_library(frames: Sequence[FrameType], package: str = "") -> FrameType | None:
    """The innermost frame of a library that the user's code called; of an event loop's package its outermost one.

    (All that wait do so in the same few functions there.)
    """
    user = innermost_of_user(frames, package)
    called = list(frames) if user is None else list(frames[frames.index(user) + 1 :])
    others = [frame for frame in called if module_of(frame).partition(".")[0] not in _BACKENDS]
    return others[-1] if others else next(iter(called), None)


_BACKENDS = {"asyncio", "trio", "anyio", "outcome", "threading", "selectors"}


def _is_in(frame: FrameType, package: str) -> bool:
    return bool(package) and module_of(frame).partition(".")[0] == package


@lru_cache(maxsize=4096)
def _is_installed(file: str) -> bool:
    return file.startswith(("<frozen", *_installed()))


@cache
def _installed() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    return tuple(paths[name] + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
