"""Keep freed memory for the next batch while votes are counted on a CPU.

glibc gives large freed blocks back to the system at once, so each forward pass of a small network touches fresh pages
again and spends as long in page faults as in arithmetic. Elsewhere than on glibc this does nothing.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

__all__ = ["kept"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_DEFAULT, _LARGEST_MMAP = 128 * 1024, 32 * 2**20


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


@contextmanager
def kept() -> Iterator[None]:
    """Within the block, freed blocks of up to 32 MiB stay with the process; afterwards all that is free goes back."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
    libc.mallopt(_TRIM_THRESHOLD, 2**30)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _DEFAULT)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT)
        libc.malloc_trim(0)
