"""What is compared with runs in a process of its own, where the library has set nothing up:
counting votes and training change the process's heap (``rsfl._heap``), and what runs beside them
would gain or lose by it.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch
from torch import multiprocessing

from benchmarks.row import Spent

__all__ = ["PEERS", "alone", "apart", "elsewhere"]

Told = TypeVar("Told")

PEERS = Path(".venv-peers/bin/python")
"""The environment that ``make bench`` makes for packages which rsfl is compared with."""


def _serve(call: Callable[[], object], threads: int, connection: Connection) -> None:
    torch.set_num_threads(threads)
    while connection.recv():
        began = time.process_time()
        call()
        connection.send(time.process_time() - began)


@contextmanager
def apart(call: Callable[[], object]) -> Iterator[Callable[[], Spent]]:
    """Within the block, a function that has another process make the call, waits for it, and
    returns the processor seconds that it took there."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(call, torch.get_num_threads(), theirs), daemon=True
    )
    process.start()

    def asked() -> Spent:
        ours.send(True)
        return Spent(ours.recv())

    theirs.close()
    try:
        yield asked
    finally:
        ours.send(False)
        process.join()


def alone(call: Callable[[], Told]) -> Told:
    """What a call returns in a process of its own, which does nothing else."""
    with multiprocessing.get_context("spawn").Pool(
        1, torch.set_num_threads, (torch.get_num_threads(),)
    ) as pool:
        return pool.apply(call)


@contextmanager
def elsewhere(module: str, *arguments: object) -> Iterator[Callable[[], Spent]]:
    """Likewise, a module that runs in the environment of the peers and answers line by line."""
    command = [str(PEERS), "-m", module, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{module} did not start in {PEERS}")

        def asked() -> Spent:
            process.stdin.write("again\n")
            process.stdin.flush()
            return Spent(process.stdout.readline())

        try:
            yield asked
        finally:
            process.stdin.close()
