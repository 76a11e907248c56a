"""Whose exception it is: what a stranger's code raises is told of the stranger, and only the user's
own interrupt ends a run."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

__all__ = ["theirs", "told", "watched"]

_watching = False
_interrupted = False


@contextmanager
def watched() -> Iterator[None]:
    """Within the block, interrupts from the keyboard are told from exceptions of the same name."""
    global _watching, _interrupted
    if _watching or current_thread() is not main_thread():
        yield
        return
    usual = signal.getsignal(signal.SIGINT)

    def noted(number: int, frame: FrameType | None) -> None:
        global _interrupted
        _interrupted = True
        if callable(usual):
            usual(number, frame)

    _watching, _interrupted = True, False
    if callable(usual):  # elsewhere the signal is ignored, or ends the process: it raises nothing
        signal.signal(signal.SIGINT, noted)
    try:
        yield
    finally:
        _watching = False
        if callable(usual):
            signal.signal(signal.SIGINT, usual)


def theirs(error: BaseException) -> bool:
    """Whether the code that was called raised this by itself: all but the user's interrupt."""
    if not isinstance(error, KeyboardInterrupt):
        return True
    if current_thread() is not main_thread():
        return True  # a signal never comes to another thread
    return _watching and not _interrupted


def told(error: BaseException) -> str:
    """An exception in words."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # its words, too, are a stranger's code
        return type(error).__name__
