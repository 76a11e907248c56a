"""One line of the table: what was measured, and what was aimed for."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """A measured figure. ``target`` is what it should reach (``at_least``) or stay below; None for
    information only."""

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
        return (
            f"{self.name:<62}{self.value:>10.3g} {self.unit:<12}{aim:>10} {verdict:<7}{self.detail}"
        )


def seconds(call: Callable[[], object], *, repeats: int = 3, warmup: int = 1) -> float:
    """Median time of a call."""
    return median(turns({"": call}, repeats=repeats, warmup=warmup)[""])


class Spent(float):
    """Processor seconds that a call took in another process."""


BY_PROCESSOR = False
"""Whether times are those of the processor. They tell what a call costs where other programs want
the same cores, and nothing of what threads gain."""


def turns(
    calls: Mapping[str, Callable[[], object]], *, repeats: int = 5, warmup: int = 1
) -> dict[str, list[float]]:
    """Times of several calls that take turns, so that a busy machine slows all of them alike. What
    runs in another process returns the processor's seconds there."""
    clock = time.process_time if BY_PROCESSOR else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            began = clock()
            told = call()
            took = clock() - began
            if turn >= warmup:
                times[name].append(told if BY_PROCESSOR and isinstance(told, Spent) else took)
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """The median, over the turns, of one time divided by the other of the same turn."""
    return median(a / b for a, b in zip(above, below, strict=True))
