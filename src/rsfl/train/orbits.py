"""Training for certificates of orbits: a random picture of the family, then noise on it."""

import math
from dataclasses import dataclass
from typing import NoReturn

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from typing_extensions import override

from rsfl.noise import Law
from rsfl.orbit import Orbit

__all__ = ["OrbitNoise"]


@dataclass(frozen=True)
class OrbitNoise(Law):
    """One law after the other: parameters uniform on an orbit's box, then noise on the picture.

    `CrossEntropy`, `Stability`, `Consistency` and `Adversarial` take it, and so train a model for
    :meth:`rsfl.smooth.Smoother.certify_orbit`; `SmoothMix`, which mixes inputs, and `MACER`, which
    reads radii, do not. No certificate is read from it: that is the business of the noise alone.

    Args:
        family: The family of pictures, a little wider than the one to certify: its ends would be
            seen from one side only.
        law: The noise of the pixels; or another ``OrbitNoise``, which moves the picture once more
            and then adds its noise.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> from rsfl.orbit import Rotations, Translations
        >>> from rsfl.train import Consistency
        >>> law = OrbitNoise(Rotations(math.radians(53)), Gaussian(0.2))
        >>> loss = Consistency(law=law, weight=5.0, entropy=0.0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> loss(model, x, y, torch.Generator().manual_seed(0)).backward()

        Shifted first, then turned:

        >>> both = OrbitNoise(Translations(0.1, 0.1), law)
        >>> loss = Consistency(law=both, weight=5.0, entropy=0.0)
    """

    family: Orbit
    law: Law
    norm = "none"
    space = "orbit"
    unit = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.family, Orbit):
            raise TypeError(
                f"family must be an orbit, such as orbit.Rotations(0.5), got {self.family!r}"
            )
        nested = isinstance(self.law, OrbitNoise)
        if not nested and not (isinstance(self.law, Law) and self.law.space == "input"):
            raise TypeError(
                "law must be one of the pixels, such as noise.Gaussian(0.25), or another "
                f"OrbitNoise, got {self.law!r}"
            )

    @property
    def pixels(self) -> Law:
        """The noise of the pixels, behind every family."""
        return self.law.pixels if isinstance(self.law, OrbitNoise) else self.law

    def moved(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random picture of every family in turn, without noise."""
        params = self.family.sample(len(x), generator=generator, device=x.device)
        pictures = self.family(x, params)
        return self.law.moved(pictures, generator) if isinstance(self.law, OrbitNoise) else pictures

    @override
    def noise_shape(self, shape: torch.Size) -> torch.Size:
        """The parameters, and behind them what the other law draws, in one row."""
        return torch.Size([self.family.dim + math.prod(self.law.noise_shape(shape))])

    @override
    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        rows, rest = shape[:-1], shape[-1] - self.family.dim
        params = self.family.sample(math.prod(rows), generator=generator, device=device)
        noise = self.law.sample((*rows, rest), generator=generator, device=device)
        return torch.cat([params.view(*rows, self.family.dim), noise], dim=-1)

    @override
    def perturb(self, x: Tensor, noise: Tensor) -> Tensor:
        params, rest = noise.tensor_split([self.family.dim], dim=1)
        pictures = self.family(x, params)
        shape = self.law.noise_shape(pictures.shape[1:])
        return self.law.perturb(pictures, rest.reshape(-1, *shape))

    @override
    def radius(
        self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int | None = None
    ) -> NoReturn:
        raise ValueError(
            f"law must be the noise alone, {self.pixels}, to certify: certify_orbit moves the "
            f"picture itself, over one family such as {' or '.join(map(str, self._families))}"
        )

    @property
    def _families(self) -> list[Orbit]:
        within = self.law._families if isinstance(self.law, OrbitNoise) else []
        return [self.family, *within]
