"""Files that survive: locks between processes, writes that reach the disk, replacements that are
whole or not there."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["appended", "locked", "replaced"]


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[int]:
    """A descriptor of the file, made if missing, that no other process holds locked.

    The kernel drops the lock when the process ends, however it ends.

    Raises:
        BlockingIOError: Another process holds it, and ``wait`` is false.
    """
    import fcntl  # of POSIX systems only; reading a run does without it

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BlockingIOError(
                errno.EWOULDBLOCK, "another process is writing", str(path)
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def appended(descriptor: int, data: bytes, path: Path) -> None:
    """Write ``data`` at the position of the descriptor and wait until the disk has it.

    Raises:
        OSError: It could not be written; a part of it may have been.
    """
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError as error:  # os.write knows no name
        raise OSError(error.errno, error.strerror, str(path)) from error


def replaced(path: Path, data: bytes) -> None:
    """Write a file beside its place, then put it there: after a kill at any point the old one or
    the new one is there, whole. Of several writers the last one wins: each has a draft of its
    own."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            appended(descriptor, data, draft)
        finally:
            os.close(descriptor)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, has to reach the disk
    finally:
        os.close(folder)
