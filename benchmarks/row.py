"""One line of the table: what was measured, and what was aimed for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """A measured figure. ``target`` is what it should reach (``at_least``) or stay below; None for information only."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = True
    detail: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def __str__(self) -> str:
        aim = "" if self.target is None else f"{'>=' if self.at_least else '<='} {self.target:g}"
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{self.name:<58}{self.value:>10.3g} {self.unit:<12}{aim:>10} {verdict:<7}{self.detail}"


def seconds(call: Callable[[], object], *, repeats: int = 3, warmup: int = 1) -> float:
    """Median wall time of a call."""
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times)
