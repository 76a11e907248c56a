"""All that wants a GPU, in one call: ``python -m benchmarks.gpu --data DIR --out DIR``.

Three stages, each a few minutes on one H100; ``--stages`` picks some of them:

- tests: ``pytest -m gpu``;
- votes: the hot loop beside the bare forward pass and the plain loop (``benchmarks.gpu_votes``);
- recipes: the experiments below, many at the same time, each a process of its own with one thread.
  ``--jobs`` picks some by how their names begin. What has not ended after ``--seconds`` is
  stopped, and goes on where it was when it is called again with the same ``--out``.

Leaves a log of each process, what the recipes keep, and ``gpu.json``: the machine, how each process
ended, and its seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.machine import machine

PAPERS = "benchmarks.papers."
_FULL = ("--scale", "paper")
_MEDIUM = ("--scale", "medium", "--figures", "training")
JOBS: Mapping[str, tuple[str, ...]] = {
    **{
        f"mnist-{method}-{sigma}": ("mnist", *_FULL, "--methods", method, "--sigmas", sigma)
        for method in ("Consistency", "noise")
        for sigma in ("0.25", "0.5", "1.0")
    },
    "li2021-rotation-50": ("li2021", *_FULL, "--cases", "rotation-50", "rotation-50-saved"),
    "li2021-scaling-30": ("li2021", *_FULL, "--cases", "scaling-30"),
    "li2021-rotation-180": ("li2021", *_FULL, "--cases", "rotation-180"),
    "li2021-cifar10": ("li2021", *_FULL, "--cases", "cifar10-rotation-10"),
    **{
        f"salman2019-{way}": ("salman2019", *_MEDIUM, "--ways", way)
        for way in ("SmoothAdv-PGD", "noise")
    },
    **{
        f"joint-{case}": ("joint", *_FULL, "--case", case)
        for case in ("pixels-100", "pixels-50", "pixels-200", "pixels-100-smoothadv")
    },
    **{
        f"mnist-{method}-0.5": ("mnist", *_FULL, "--methods", method, "--sigmas", "0.5")
        for method in ("MACER", "Stability", "SmoothMix", "SmoothAdv")
    },
}
"""Recipe and arguments by name."""


@dataclass
class Process:
    """A command that runs, with its log.

    Attributes:
        name: Of its log.
        command: What is run.
        began: When, by a clock that only goes forward.
        status: How it ended; None while it runs, ``stopped`` if it was stopped.
        seconds: How long it ran.
    """

    name: str
    command: Sequence[str]
    began: float = 0.0
    status: int | str | None = None
    seconds: float = 0.0

    def start(self, out: Path) -> "subprocess.Popen[bytes]":
        """Start it, with one thread."""
        self.began = time.monotonic()
        with open(out / f"{self.name}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )

    def ended(self, status: int | str) -> None:
        """Note how it ended."""
        self.status, self.seconds = status, round(time.monotonic() - self.began, 1)
        print(f"{self.name}: {status} after {self.seconds} s", flush=True)


def together(processes: Sequence[Process], out: Path, deadline: float, most: int = 1) -> None:
    """Run so many at the same time, and stop those that are not done by the deadline."""
    waiting, running = list(processes), list[tuple[Process, subprocess.Popen[bytes]]]()
    while waiting or running:
        while waiting and len(running) < most and time.monotonic() < deadline:
            running.append((waiting[0], waiting.pop(0).start(out)))
        if not running:
            break  # what was never begun has no status
        for process, started in list(running):
            if started.poll() is None and time.monotonic() < deadline:
                continue
            late = started.poll() is None
            if late:
                started.kill()  # what it keeps is written whole or not at all
            status = started.wait()
            process.ended("stopped" if late else status)
            running.remove((process, started))
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=Path("data"), help="as of the recipes")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--seconds", type=float, default=540, help="for all stages together")
    stages = ("tests", "votes", "recipes")
    parser.add_argument("--stages", nargs="*", choices=stages, default=stages)
    parser.add_argument("--jobs", nargs="*", default=[""], help="how the names of recipes begin")
    parser.add_argument("--device", default="cuda", help="of the recipes")
    parser.add_argument("--together", type=int, default=12, help="recipes at the same time")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("python -m benchmarks.gpu needs a CUDA device, and PyTorch sees none here.")
    chosen = [name for name in JOBS if any(name.startswith(one) for one in asked.jobs)]
    if not chosen:
        parser.error(f"--jobs must begin names among {', '.join(JOBS)}, got {asked.jobs}")
    asked.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + asked.seconds
    alone = {
        "tests": Process("tests", ["-m", "pytest", "-q", "-m", "gpu", "tests"]),
        "votes": Process(
            "votes", ["-m", "benchmarks.gpu_votes", "--out", str(asked.out / "votes.json")]
        ),
    }
    ran = [alone[stage] for stage in asked.stages if stage in alone]
    for process in ran:
        together([process], asked.out, deadline)
    if "recipes" in asked.stages:
        shared = ("--data", str(asked.data), "--device", asked.device)
        recipes = []
        for name in chosen:
            recipe, *arguments = JOBS[name]
            command = ["-m", PAPERS + recipe, *arguments, *shared, "--out", str(asked.out / name)]
            recipes.append(Process(name, command))
        together(recipes, asked.out, deadline, asked.together)
        ran += recipes
    content = {"machine": machine(), "processes": [asdict(process) for process in ran]}
    (asked.out / "gpu.json").write_text(json.dumps(content, indent=1))
    sys.exit(any(process.status not in (0, "stopped", None) for process in ran))


if __name__ == "__main__":
    main()
