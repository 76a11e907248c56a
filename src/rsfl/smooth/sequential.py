"""Votes that are counted until a sequential test has decided, or no longer can."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsfl import bounds
from rsfl._checks import Float64
from rsfl.smooth.votes import BLOCK, Votes

__all__ = ["count_until", "looks"]


def count_until(
    cast: Callable[[Any, Tensor, int, int], Votes],
    x: Any,
    index: Tensor,
    chosen: Tensor,
    p0: float | Float64,
    *,
    alpha: float,
    n_max: int,
) -> Votes:
    """Count votes until the sequential test has decided on every input, or no longer can.

    Args:
        cast: Counts the samples [start, stop) of inputs and their indices.
        x: Inputs (B, ...).
        index: Which inputs these are, on the CPU.
        chosen: (B,) int64, the class of each that is to be certified, on the device of x.
        p0: The probability that it has to exceed, for all inputs or (B,) for each.
        alpha: Level of the test.
        n_max: Votes after which an undecided input is given up.

    Returns:
        The votes; their number is for each input the one at which it was dropped.
    """
    found: Votes | None = None
    threshold = np.broadcast_to(np.asarray(p0, dtype=np.float64), (len(x),))
    undecided = torch.arange(len(x), device=x.device)
    for start, stop in looks(n_max):
        rows = undecided.cpu()
        new = cast(x[undecided], index[rows], start, stop)
        if found is None:
            found = Votes(new.counts.clone(), new.invalid.clone())
        else:
            found.counts[undecided] += new.counts
            found.invalid[undecided] += new.invalid
        successes = found.counts[undecided, chosen[undecided]].cpu().numpy()
        above = threshold[rows.numpy()]
        decision = np.asarray(bounds.sequential_decision(successes, stop, above, alpha))
        best = bounds.sequential_decision(successes + n_max - stop, n_max, above, alpha)
        hopeless = np.asarray(best) != 1
        undecided = undecided[torch.from_numpy((decision == 0) & ~hopeless).to(x.device)]
        if len(undecided) == 0:
            break
    assert found is not None  # there is always a first look
    return found


def looks(n_max: int) -> list[tuple[int, int]]:
    """The sequential test's schedule: spans of samples that end at whole blocks, each at most a
    tenth of what came before, and at n_max."""
    stops = [min(BLOCK, n_max)]
    while stops[-1] < n_max:
        grown = stops[-1] // BLOCK + max(1, stops[-1] // BLOCK // 10)
        stops.append(min(grown * BLOCK, n_max))
    return list(zip([0, *stops], stops, strict=False))
