"""What importing rsfl costs beside ``import torch``."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from statistics import median

from benchmarks.row import Row, Spent, turns

ALONE = "import torch"
WITH = {
    "import rsfl": f"{ALONE}; import rsfl",
    "from rsfl.smooth import "
    "GaussianSmoother": f"{ALONE}; from rsfl.smooth import GaussianSmoother",
    "from rsfl import *": f"{ALONE}; from rsfl import *",
    "from scipy import special, which all certificates need": f"{ALONE}; from scipy import special",
}


def run(code: str) -> Spent:
    """Processor seconds of a process with this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def rows() -> Iterator[Row]:
    calls = {code: partial(run, code) for code in (ALONE, *WITH.values())}
    times = turns(calls)
    for name, code in WITH.items():
        beyond = median(b - a for a, b in zip(times[ALONE], times[code], strict=True))
        target = 0.3 if name == "from rsfl import *" else None
        detail = f"torch {median(times[ALONE]):.2f} s"
        yield Row(
            f"{name}: beyond import torch", beyond, "s", target, at_least=False, detail=detail
        )
