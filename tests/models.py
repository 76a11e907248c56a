"""Models whose smoothed classifier is known in closed form."""

import itertools

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor, nn

from rsfl import noise


class Staircase(nn.Module):
    """A classifier of the line: class ``classes[i]`` between ``edges[i - 1]`` and ``edges[i]``. One
    edge is a linear two-class model, none a constant."""

    def __init__(self, edges, classes, num_classes):
        super().__init__()
        self.edges, self.classes, self.num_classes = list(edges), list(classes), num_classes
        self.register_buffer("_edges", torch.tensor(self.edges, dtype=torch.float64))
        self.register_buffer("_logits", torch.eye(num_classes)[self.classes])

    def forward(self, x: Tensor) -> Tensor:
        return self._logits[torch.bucketize(x[:, 0].double(), self._edges)]

    def smoothed(self, law: noise.Law, x: np.ndarray) -> np.ndarray:
        """(N, K): the probability of each class under the law, exactly."""
        x = np.atleast_1d(np.asarray(x, dtype=np.float64))
        cdf = np.stack(
            [np.zeros_like(x), *(distribution(law, e, x) for e in self.edges), np.ones_like(x)]
        )
        g = np.zeros((len(x), self.num_classes))
        for c, below, above in zip(self.classes, cdf, cdf[1:], strict=False):
            g[:, c] += above - below
        return g

    def distance_to_flip(self, law: noise.Law, x: float, label: int, reach: float = 6.0) -> float:
        """How far the nearest point lies whose most probable class is not ``label``; inf if none
        within reach."""
        if isinstance(law, noise.RoundedGaussian):
            top = law.levels - 1
            offset = np.concatenate([sign * np.arange(0, top + 1) / top for sign in (1, -1)])
            offset = offset[(x + offset >= -1e-9) & (x + offset <= 1 + 1e-9)]
        else:
            offset = np.concatenate([np.linspace(0, sign * reach, 12_001) for sign in (1, -1)])
        lead = self.lead(law, x + offset, label)
        flipped = np.abs(offset[lead < 0])
        if len(flipped) == 0:
            return np.inf
        if isinstance(law, noise.RoundedGaussian) or flipped.min() == 0:
            return float(flipped.min())
        nearest = offset[lead < 0][np.argmin(flipped)]
        before = nearest - np.sign(nearest) * reach / 12_000
        root = optimize.brentq(
            lambda d: self.lead(law, np.array([x + d]), label)[0], before, nearest
        )
        return abs(float(root))

    def lead(self, law: noise.Law, x: np.ndarray, label: int) -> np.ndarray:
        g = self.smoothed(law, x)
        others = np.delete(g, label, axis=1)
        return g[:, label] - (others.max(axis=1) if others.shape[1] else 0)


def distribution(law: noise.Law, edge: float, x: np.ndarray) -> np.ndarray:
    """P[x + noise <= edge]."""
    if isinstance(law, noise.Gaussian):
        return special.ndtr((edge - x) / law.sigma)
    if isinstance(law, noise.RoundedGaussian):
        top = law.levels - 1
        below = np.floor(edge * top + 1e-9)  # the last grid point not above the edge
        return special.ndtr((below + 0.5 - np.rint(x * top)) / (law.sigma * top))
    if isinstance(law, noise.Uniform):
        return np.clip((edge - x + law.half_width) / (2 * law.half_width), 0, 1)
    assert isinstance(law, noise.Laplace)
    z = (edge - x) / law.scale
    return np.where(z < 0, np.exp(np.minimum(z, 0)) / 2, 1 - np.exp(-np.maximum(z, 0)) / 2)


def independent_logits(mu: np.ndarray, spread: float) -> np.ndarray:
    """(K,): which of K independent N(mu, spread^2) logits is largest, by one-dimensional
    quadrature."""
    t = np.linspace(-9, 9, 721)
    density = np.exp(-t * t / 2) / np.sqrt(2 * np.pi) * (t[1] - t[0])
    shifted = t + (mu[:, None, None] - mu[None, :, None]) / spread  # class, rival, node
    below = special.ndtr(shifted)
    for c in range(len(mu)):
        below[c, c] = 1
    return (below.prod(axis=1) * density).sum(axis=1)


LAWS = {
    "gaussian": noise.Gaussian(0.5),
    "uniform": noise.Uniform(1.0),
    "laplace": noise.Laplace(0.4),
    "rounded": noise.RoundedGaussian(0.25),
}

MODELS = {
    "threshold": Staircase([0.5], [0, 1], 2),
    "staircase": Staircase([-0.2, 0.3, 0.55, 0.9], [0, 1, 2, 1, 3], 4),
    "constant": Staircase([], [1], 3),
}

CASES = list(itertools.product(LAWS, MODELS))
