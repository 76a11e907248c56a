"""What ``import rsfl`` costs beside ``import torch``."""

import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.row import Row, turns


def rows() -> Iterator[Row]:
    commands = {code: [sys.executable, "-c", code] for code in ("import torch", "import torch, rsfl")}
    times = turns({code: lambda line=line: subprocess.run(line, check=True) for code, line in commands.items()})
    alone, both = times.values()
    beyond = median(b - a for a, b in zip(alone, both, strict=True))
    detail = f"torch {median(alone):.2f} s"
    yield Row("import rsfl, beyond import torch", beyond, "s", 0.3, at_least=False, detail=detail)
