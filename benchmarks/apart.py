"""Plain loops in processes of their own, where the library has set nothing up: counting votes and
training change the process's heap (``rsfl._heap``), and what runs beside them would gain or lose by
it.
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
    process = context.Process(
        target=_serve, args=(call, torch.get_num_threads(), theirs), daemon=True
    )
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
