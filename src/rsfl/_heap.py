"""Keep freed memory for the next batch while votes are counted and models are trained.

glibc gives large freed blocks back to the system at once, so each pass of a small network on a CPU
touches fresh pages again and spends as long in page faults as in arithmetic. Elsewhere than on
glibc, and where the environment sets its allocator up, this does nothing.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock

__all__ = ["kept"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 32 * 2**20
"""Where glibc's own thresholds stop growing: a trim threshold of twice that. Setting them ends
their growth, so this is what they are left at; the small values that a process begins with would
slow down all that comes after."""

_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_lock = Lock()
_blocks = 0
"""How many blocks are open in this process; the heap is one for all of them."""


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


@contextmanager
def kept() -> Iterator[None]:
    """Within the block, freed blocks of up to 32 MiB stay with the process; after the outermost one
    all that is free goes back."""
    libc = _glibc()
    if libc is None:
        yield
        return
    _enter(libc)
    try:
        yield
    finally:
        _leave(libc)


def _enter(libc: ctypes.CDLL) -> None:
    global _blocks
    with _lock:
        _blocks += 1
        if _blocks == 1:
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
            libc.mallopt(_TRIM_THRESHOLD, 2**30)


def _leave(libc: ctypes.CDLL) -> None:
    global _blocks
    with _lock:
        _blocks -= 1
        if _blocks == 0:
            libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
            libc.malloc_trim(0)
