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
    """Median wall time of a call."""
    return median(turns({"": call}, repeats=repeats, warmup=warmup)[""])


def turns(
    calls: Mapping[str, Callable[[], object]], *, repeats: int = 5, warmup: int = 1
) -> dict[str, list[float]]:
    """Wall times of several calls that take turns, so that a busy machine slows all of them
    alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """The median, over the turns, of one time divided by the other of the same turn."""
    return median(a / b for a, b in zip(above, below, strict=True))
