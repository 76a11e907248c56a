"""Run as a script by the kill tests: forks federated runs from a parent that has torch imported,
and kills them.

Arguments: a directory, the number of kills, a seed. Prints one JSON line: the digest of the
undisturbed run's weights and ledger, the digest after each kill and resume, and how many rounds
each kill left behind.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from rsfl import fed

ROUNDS = 16


def server() -> fed.Server:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 4, generator=generator)
    y = torch.randint(3, (60,), generator=generator)
    torch.manual_seed(0)
    parts = fed.partition.equal(60, 6)
    mixed = fed.clients(x, y, parts[:3], fed.SGD(batch_size=5, mixture=0.5, momentum=0.5))
    alone = fed.clients(x, y, parts[3:], fed.SGD(batch_size=5), first=3)
    return fed.Server(
        nn.Linear(4, 3),
        [*mixed, *alone],
        fraction=0.7,
        clip=2.0,
        noise_std=0.05,
        keep=("updates", "samples"),
    )


def digest(result: fed.Result) -> str:
    models = [result.model, *(result.models[id_] for id_ in sorted(result.models))]
    weights = b"".join(p.detach().numpy().tobytes() for model in models for p in model.parameters())
    updates = b"".join(entry.updates.numpy().tobytes() for entry in result.ledger.entries)
    return hashlib.sha256(weights + updates + repr(result.ledger).encode()).hexdigest()


def forked(path: Path, output: Path) -> int:
    """Start the run in a child, which writes the digest of what it ends with."""
    child = os.fork()
    if not child:
        output.write_text(digest(server().run(ROUNDS, checkpoint=path, progress=False)))
        os._exit(0)
    return child


def reached(path: Path) -> int:
    """The last round that was saved."""
    return max((int(state.stem.split("-")[1]) for state in path.glob("state-*.rsfl")), default=0)


def main() -> None:
    base, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    random.seed(seed)
    begin = time.perf_counter()
    os.waitpid(forked(base / "whole", base / "whole.txt"), 0)
    whole = time.perf_counter() - begin
    digests, left = [], []
    for k in range(kills):
        path = base / f"run{k}"
        child, after = forked(path, base / f"{k}.txt"), random.randrange(ROUNDS - 1)
        while reached(path) < after:
            time.sleep(whole / ROUNDS / 20)
        time.sleep(
            random.uniform(0, whole / ROUNDS)
        )  # anywhere in the round that follows, its writes included
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left.append(reached(path))
        os.waitpid(forked(path, base / f"{k}.txt"), 0)
        digests.append((base / f"{k}.txt").read_text())
    print(
        json.dumps(
            {
                "whole": (base / "whole.txt").read_text(),
                "digests": digests,
                "left": left,
                "rounds": ROUNDS,
            }
        )
    )


if __name__ == "__main__":
    main()
