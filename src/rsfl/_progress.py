"""How far something is, on stderr: a bar on a terminal, now and then a line in a log file, and
nothing at all where nobody asked."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

__all__ = ["Progress", "progress"]

_PAUSE = 60.0
"""Seconds between two lines of a log file."""


class Progress(Protocol):
    """What can be told how far it is."""

    def update(self, done: int, **figures: object) -> None:
        """So many more are done; figures are shown beside them."""


class _Silent:
    def update(self, done: int, **figures: object) -> None:
        pass


class _Bar(tqdm):  # type: ignore[type-arg]
    """tqdm without its lock between processes, which a killed process may leave locked for ever,
    and without its thread."""

    _lock = threading.RLock()
    monitor_interval = 0


class _OnTerminal:
    def __init__(self, bar: _Bar) -> None:
        self.bar = bar

    def update(self, done: int, **figures: object) -> None:
        if figures:
            self.bar.set_postfix(
                {name.replace("_", " "): value for name, value in figures.items()}, refresh=False
            )
        self.bar.update(done)


class _InLines:
    """At most one line a minute, and one at the end."""

    def __init__(self, what: str, total: int | None, initial: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.initial = self.done = initial
        self.began = self.last = time.monotonic()
        self.told, self.figures = initial, ""

    def update(self, done: int, **figures: object) -> None:
        self.done += done
        self.figures = "".join(f", {k.replace('_', ' ')}={v}" for k, v in figures.items())
        if time.monotonic() - self.last >= _PAUSE:
            self.tell()

    def tell(self) -> None:
        if self.done == self.told:
            return
        self.last, self.told = time.monotonic(), self.done
        rate = (self.done - self.initial) / max(self.last - self.began, 1e-9)
        of = "" if self.total is None else f"/{self.total}"
        print(
            f"{self.what}: {self.done}{of} ({rate:.3g} {self.unit}/s{self.figures})",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def progress(
    total: int | None,
    *,
    shown: bool,
    what: str,
    unit: str = "it",
    initial: int = 0,
) -> Iterator[Progress]:
    """Tell how far it is while the block runs.

    Args:
        total: How many there are, None if unknown.
        shown: Whether to show anything. If not, nothing is made that could wait or be waited for.
        what: What goes on, such as ``certifying``.
        unit: What is counted.
        initial: How many were done before.
    """
    if not shown:
        yield _Silent()
    elif sys.stderr.isatty():
        with _Bar(
            total=total, initial=initial, desc=what, unit=unit, mininterval=0.5, file=sys.stderr
        ) as bar:
            yield _OnTerminal(bar)
    else:
        lines = _InLines(what, total, initial, unit)
        try:
            yield lines
        finally:
            lines.tell()
