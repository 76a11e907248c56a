"""What the server makes of the vectors that came through the door."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rsfl._checks import Float64
from rsfl.fed.aggregate import Aggregate, Rule
from rsfl.fed.ours import named_rule, plain_tensor
from rsfl.fed.recording import Outcome
from rsfl.fed.rows import Rows
from rsfl.fed.screening import Verdict

__all__ = ["Average", "averaged", "measured", "projected", "shares_of", "usable"]


class Average(NamedTuple):
    """What a round's vectors became.

    Args:
        value: The aggregated model (d,), in float64.
        shares: What the rule ended up weighing each vector with, by position; empty where there is
            no one number.
        mean: Their plain mean (d,), in float64.
    """

    value: Tensor
    shares: dict[int, float]
    mean: Tensor


def usable(verdict: Verdict) -> bool:
    """Whether an update is averaged, as it came or shortened."""
    return verdict[0] in ("used", "clipped")


def shares_of(weights: Float64, verdicts: Sequence[Verdict], reject: str) -> Float64:
    """What each update weighs in the average: one that cannot be used is a zero of the same weight,
    or leaves its weight to the others."""
    used = np.array([usable(verdict) for verdict in verdicts])
    if reject == "zero" or used.all():
        return weights
    shares = np.zeros_like(weights)
    shares[used] = weights[used] / weights[used].sum()
    return shares


def averaged(
    rule: Rule, rows: Rows, shares: Float64, verdicts: Sequence[Verdict], reject: str
) -> Average:
    """What the rule makes of the vectors.

    The mean is taken vector by vector: it needs no more memory than one model. Any other rule gets
    a matrix of all of them.

    Raises:
        ValueError: The rule cannot aggregate these.
        TypeError: It returns something else than an `Aggregate` of a plain tensor.
    """
    mean = torch.zeros(rows.default.numel(), dtype=torch.float64, device=rows.default.device)
    for i in range(len(rows)):
        mean.add_(rows[i].double(), alpha=float(shares[i]))
    given = [i for i, verdict in enumerate(verdicts) if reject == "zero" or usable(verdict)]
    if named_rule(rule) == "mean":
        return Average(mean, {i: float(shares[i]) for i in given}, mean)
    combined = rule(rows.matrix(given), torch.from_numpy(shares[given]))
    if type(combined) is not Aggregate:
        raise TypeError(f"aggregate must return a fed.Aggregate, got {type(combined).__name__}")
    value, final = combined
    if not plain_tensor(value) or value.shape != mean.shape:
        raise TypeError(
            f"aggregate must return a plain tensor of shape {tuple(mean.shape)}, got {value!r}"
        )
    named = zip(given, final or (), strict=bool(final))
    ends = {i: float(share) for i, share in named}
    return Average(value.detach().double().clone(), ends, mean)


def projected(value: Tensor, radius: float, trained: int) -> Tensor:
    """The first ``trained`` coordinates on the ball of this radius; buffers stay as they are."""
    parameters = value[:trained]
    norm = float(parameters.norm())
    if norm <= radius:
        return value
    return torch.cat([parameters * (radius / norm), value[trained:]])


def measured(rows: Rows, shares: Float64, mean: Tensor, sent: Tensor, outcome: Outcome) -> Outcome:
    """The outcome with the norms of the updates, and of what sets each apart from their mean."""
    centre = mean - sent
    for i in range(len(rows)):
        update = rows[i].double().sub(sent)
        outcome.update_norm[i] = float(update.norm())
        outcome.gap[i] = float(shares[i] * update.sub_(centre).norm())
    return outcome
