"""Standard variates in float32 whose tails are right.

A float32 uniform of PyTorch has 24 random bits on a CPU. What is made of one ends early, and there
too rarely: its normals at 5.77 standard deviations, which one of 830 pictures of 150,528
coordinates passes. Here uniforms have 32 bits, and on a CPU what lies far out is drawn anew from
the tail, with 53. (Elsewhere PyTorch's uniforms have 32 bits themselves, and looking for what lies
far out would make the host wait.)

How far the drawn laws are from the exact ones is bounded in the documentation ("When floating point
matters").
"""

import numpy as np
import torch
from scipy import special
from torch import Tensor

__all__ = ["laplace", "normal", "uniform"]

_FAR = 3.5  # of normals: one of 2149 lies further out
_FAR_TAIL = float(special.ndtr(-_FAR))
_FAR_EXPONENTIAL = 12.0  # one of 163,000


def _bits(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | None
) -> Tensor:
    """Independent int32 numbers, each of the 2^32 as probable as any other."""
    numel = int(np.prod(shape, dtype=np.int64))
    pairs = torch.empty((numel + 1) // 2, dtype=torch.int64, device=device)  # half as many calls
    return pairs.random_(-(2**63), None, generator=generator).view(torch.int32)[:numel].view(shape)


def _fractions(many: int, generator: torch.Generator | None) -> np.ndarray:
    """Uniform on (0, 1], in steps of 2^-53; on a CPU."""
    drawn = torch.rand(many, dtype=torch.float64, generator=generator, device="cpu")
    return np.asarray(1 - drawn.numpy())


def uniform(
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Uniform on [-1, 1]."""
    return _bits(shape, generator, device).to(torch.float32).mul_(2.0**-31)


def normal(
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Normal with mean 0 and variance 1."""
    z = torch.empty(shape, dtype=torch.float32, device=device).normal_(generator=generator)
    if z.device.type == "cpu":
        flat = z.view(-1).numpy()
        far = np.flatnonzero(np.abs(flat) > _FAR)
        if len(far):
            # Given that |z| is beyond _FAR, its tail P(Z > |z|) is uniform below that of _FAR.
            tail = _FAR_TAIL * _fractions(len(far), generator)
            flat[far] = np.copysign(special.ndtri(tail), flat[far])
    return z


def laplace(
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Laplace with scale 1: the logarithm of a uniform variable, with a sign of its own."""
    signed = _bits(shape, generator, device).to(torch.float32)
    # -log of a uniform variable, which is never 0: one half stands for the cell around it.
    log = signed.abs().clamp_(min=0.5).mul_(2.0**-31).log_()
    if log.device.type == "cpu":
        flat = log.view(-1).numpy()
        far = np.flatnonzero(flat < -_FAR_EXPONENTIAL)
        # What an exponential variable exceeds a bound by has its own law.
        flat[far] = np.log(_fractions(len(far), generator)) - _FAR_EXPONENTIAL
    return torch.copysign(log, signed)
