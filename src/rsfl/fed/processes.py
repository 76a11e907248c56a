"""The training of each group of clients in a process of its own, which ends with it."""

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import torch
from torch import Tensor

from rsfl._progress import progress as shown_progress
from rsfl.fed.faults import told, watched
from rsfl.fed.layout import Layout
from rsfl.fed.ledger import Ledger
from rsfl.fed.poison import Attack
from rsfl.fed.rounds import Rounds
from rsfl.fed.settings import Settings
from rsfl.fed.training import train

__all__ = ["Group", "carried_out"]


@dataclass
class Group:
    """The run of one group, and what came of it."""

    number: int
    settings: Settings
    attacks: Mapping[int, Attack]
    checkpoint: Path | None
    vector: Tensor | None = None
    failure: str = ""
    ledger: Ledger | None = None

    def rounds(self, total: int) -> Rounds:
        """Its rounds, the done ones left out."""
        where = self.checkpoint
        return Rounds(self.settings, total, attacks=self.attacks, checkpoint=where)

    def done(self, run: Rounds) -> None:
        """Keep what came of its rounds."""
        self.vector, self.ledger = run.state.clipped, run.result().ledger


@dataclass
class _Process:
    """A group that trains somewhere else."""

    group: Group
    process: BaseProcess
    answer: IO[bytes]
    deadline: float


@dataclass
class _Pool:
    """Processes under way: ended when the block is left, however it is left."""

    running: list[_Process] = field(default_factory=list)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.running:
            one.process.kill()
            one.process.join()
            one.answer.close()


def carried_out(
    everyone: Sequence[Group], rounds: int, processes: int, timeout: float | None, progress: bool
) -> None:
    """Carry each group out in a process of its own, so many at a time."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("groups in processes of their own need a system that can fork")
    devices = {p.device.type for one in everyone for p in one.settings.model.parameters()}
    if "cuda" in devices:
        raise ValueError("model must be on the CPU: a process that has used a GPU cannot be forked")
    context = multiprocessing.get_context("fork")
    layout = Layout.of(everyone[0].settings.model)
    waiting = list(everyone)
    told_ = shown_progress(len(waiting), shown=progress, what="groups", unit="group", initial=0)
    with _Pool() as pool, told_ as bar:
        while waiting or pool.running:
            while waiting and len(pool.running) < processes:
                group = waiting.pop(0)
                answer = TemporaryFile(prefix="rsfl-")  # noqa: SIM115 - closed when it was read
                others = [one.answer for one in pool.running]
                process = context.Process(target=_carry_out, args=(group, rounds, answer, others))
                process.start()
                deadline = float("inf") if timeout is None else time.monotonic() + timeout
                pool.running.append(_Process(group, process, answer, deadline))
            soonest = min(one.deadline for one in pool.running) - time.monotonic()
            patience = None if soonest == float("inf") else max(soonest, 0.0)
            wait([one.process.sentinel for one in pool.running], timeout=patience)
            for one in list(pool.running):
                late = time.monotonic() >= one.deadline
                if one.process.is_alive() and not late:
                    continue
                done = not one.process.is_alive()
                one.process.kill()
                one.process.join()
                pool.running.remove(one)
                if done:
                    _read(one.group, one.answer, layout)
                else:
                    one.group.failure = f"was not done after {timeout:g} s"
                one.answer.close()
                bar.update(1)


def _carry_out(group: Group, rounds: int, answer: IO[bytes], others: Sequence[IO[bytes]]) -> None:
    """Train a group, in a process that is forked for it, and write down what came of it."""
    for one in others:
        os.close(one.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever forked this process ends it
    torch.set_num_threads(1)  # the threads of the other process are not here
    try:
        with watched():
            run = group.rounds(rounds)
            while run.left:
                asked = run.invite()
                replies = train(
                    run.settings.model, *asked, stacked=run.settings.stacked, apart=run.apart
                )
                run.conclude(replies)
        vector = run.state.clipped.contiguous().view(torch.uint8)
        said = b"ok\n" + vector.numpy().tobytes()
    except BaseException as error:
        said = b"failed\n" + told(error).encode(errors="replace")[:300]
    answer.write(said)
    answer.flush()
    os._exit(0)  # whatever threads a client has left behind


def _read(group: Group, answer: IO[bytes], layout: Layout) -> None:
    """What a process left behind: bytes, from which nothing but numbers is made."""
    answer.seek(0)
    verdict, _, rest = answer.read().partition(b"\n")
    numbers = sum(shape.numel() for shape in layout.shapes.values())
    size = numbers * torch.empty((), dtype=layout.dtype).element_size()
    if verdict == b"ok" and len(rest) == size:
        group.vector = torch.frombuffer(bytearray(rest), dtype=layout.dtype)
    else:
        words = rest.decode(errors="replace") if verdict == b"failed" else ""
        group.failure = words[:300] or "ended without a word"
