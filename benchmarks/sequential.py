"""Votes that the sequential decision saves, on inputs whose vote shares are spread as a CIFAR-10
network's are.

A third of the inputs is lost (share of the label below 1/2), a third is clear (1 - share
log-uniform between 1e-6 and 0.03), the rest is spread evenly between 1/2 and 1. The classifier
looks at two numbers: the sign of the first says whether a vote goes to the label, the second which
of nine others gets it instead. So every share is exact, and what a fixed number of votes would
certify on average is a sum, not a sample.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import binom
from torch import Tensor, nn

from benchmarks.row import Row
from rsfl import bounds
from rsfl.smooth import GaussianSmoother

INPUTS, SIGMA, N, ALPHA = 3000, 1.0, 100_000, 0.001


class LabelOrOther(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        other = 1 + (9 * torch.special.ndtr(x[:, 1] / SIGMA)).long().clamp(max=8)
        return nn.functional.one_hot(torch.where(x[:, 0] > 0, 0, other), 10).float()


def shares(size: int) -> np.ndarray:
    """Vote shares of the label, on an even grid of quantiles."""
    u = (np.arange(size // 3) + 0.5) / (size // 3)
    return np.concatenate([0.02 + 0.48 * u, 1 - 10 ** (-6 + 4.5 * u), 0.5 + 0.5 * u])


def certified_with_all_votes(p: np.ndarray, p0: float) -> float:
    """The expected share that n votes certify beyond p0."""
    k = np.arange(N + 1)
    least = k[np.asarray(bounds.clopper_pearson_lower(k, N, ALPHA)) >= p0][0]
    return float(binom.sf(least - 1, N, p).mean())


def rows() -> Iterator[Row]:
    p = shares(INPUTS)
    x = torch.tensor(np.stack([SIGMA * ndtri(p), np.zeros(len(p))], axis=1), dtype=torch.float32)
    smoother = GaussianSmoother(LabelOrOther(), SIGMA, 10)
    for r in (0.5, 1.0, 2.0):
        at = smoother.certify_at(x, r * SIGMA, n_max=N, alpha=ALPHA)
        found = (at.label == 0).double().mean().item()
        full = certified_with_all_votes(p, smoother.law.probability(r * SIGMA))
        aim = r == 1.0
        saved = N / at.n.double().mean().item()
        detail = f"certified {found:.4f} against {full:.4f}"
        yield Row(
            f"certify_at, r = {r:g} sigma: votes saved",
            saved,
            "times",
            40 if aim else None,
            detail=detail,
        )
        lost, most = 100 * (full - found), 0.5 if aim else None
        yield Row(f"certify_at, r = {r:g} sigma: share lost", lost, "points", most, at_least=False)
