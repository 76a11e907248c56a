"""References in a process of their own.

Counting votes keeps freed memory (``rsfl._heap``), and a heap that was once kept serves whatever runs later in the same
process: a plain loop that would spend half of its time in page faults no longer does. So it is timed where the library
never ran.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch
from torch import multiprocessing


def _serve(call: Callable[[], object], threads: int, connection: Connection) -> None:
    torch.set_num_threads(threads)
    while connection.recv():
        call()
        connection.send(None)


@contextmanager
def apart(call: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Within the block, a function that has another process make the call, and waits for it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(call, torch.get_num_threads(), theirs), daemon=True)
    process.start()

    def asked() -> None:
        ours.send(True)
        ours.recv()

    theirs.close()
    try:
        yield asked
    finally:
        ours.send(False)
        process.join()
