"""What ``import rsfl`` costs beside ``import torch``."""

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.row import Row, seconds


def rows() -> Iterator[Row]:
    def python(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True), repeats=5)

    torch, both = python("import torch"), python("import torch, rsfl")
    yield Row("import rsfl, beyond import torch", both - torch, "s", 0.3, at_least=False, detail=f"torch {torch:.2f} s")
