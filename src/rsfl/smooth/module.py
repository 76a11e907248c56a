"""What a smoother looks like to whoever knows nothing of smoothing: models with their normalisation
in front, and the smoothed classifier as a module."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from rsfl._checks import choice, count
from rsfl._draws import generator
from rsfl.noise import (
    Gaussian,
    Laplace,
    Law,
    PixelGaussian,
    PixelLaplace,
    PixelUniform,
    Uniform,
)
from rsfl.smooth.inputs import Batch, Inputs
from rsfl.smooth.structured import At, Structured

__all__ = ["Normalised", "Preprocessing", "SmoothedModule", "bounded", "normalised", "structure"]

Preprocessing: TypeAlias = tuple[Any, Any] | Mapping[str, Any]
"""(mean, std), numbers or one for each channel, or ``dict(mean=..., std=..., axis=-3)``."""


class Normalised(nn.Module):
    """A model that is given pixels and gives its own inputs ``(x - mean) / std``.

    Args:
        model: Takes normalised inputs.
        mean: A number, or one for each entry along ``axis``.
        std: Likewise, positive.
        axis: Which axis has the channels, counted from the last; -3 for images (..., C, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Any, std: Any, axis: int = -3) -> None:
        super().__init__()
        self.model, self.axis = model, axis
        if axis >= 0:
            raise ValueError(f"axis must count from the last one, such as -3, got {axis!r}")
        device = next((one.device for one in model.parameters()), None)
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=torch.float32, device=device)
            good = tensor.isfinite() if name == "mean" else tensor.isfinite() & (tensor > 0)
            if tensor.ndim > 1 or not bool(good.all()):
                what = "finite" if name == "mean" else "positive"
                raise ValueError(
                    f"{name} of preprocessing must be a {what} number, or one for each channel, "
                    f"got {value!r}"
                )
            shaped = (
                tensor.squeeze() if tensor.numel() == 1 else tensor.view(-1, *[1] * (-axis - 1))
            )
            self.register_buffer(name, shaped)

    def forward(self, x: Tensor | Inputs) -> Any:
        """What the model makes of the normalised inputs."""
        if isinstance(x, Inputs):
            return self.model(x.holding(self._scaled(x.touched)))
        return self.model(self._scaled(x))

    def _scaled(self, x: Tensor) -> Tensor:
        for name, one in (("mean", self.mean), ("std", self.std)):
            if one.numel() > 1 and (x.ndim <= -self.axis or x.shape[self.axis] != one.shape[0]):
                raise ValueError(
                    f"{name} of preprocessing must hold a number for each entry along axis "
                    f"{self.axis} of inputs of shape {tuple(x.shape[1:])}, got {one.numel()} "
                    f"numbers; axis=-1 is the last one"
                )
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


def structure(model: nn.Module | None) -> Structured | None:
    """What tells the parts of a model's inputs, where these are more than one tensor."""
    if isinstance(model, Normalised):
        return structure(model.model)
    return model if isinstance(model, Structured) else None


def normalised(model: nn.Module, preprocessing: Preprocessing | None) -> nn.Module:
    """The model behind its preprocessing, if there is any.

    Raises:
        TypeError: It is neither a pair nor a mapping of mean, std and axis.
    """
    if preprocessing is None:
        return model
    if isinstance(model, At):
        raise TypeError(
            f"preprocessing is of inputs, and noise is at {model.touched}: put it inside the model"
        )
    if isinstance(preprocessing, Mapping):
        if unknown := sorted(set(preprocessing) - {"mean", "std", "axis", "flip_axis"}):
            raise TypeError(f"preprocessing must have mean, std and axis, got {unknown!r}")
        if preprocessing.get("flip_axis") is not None:
            raise TypeError("preprocessing must not flip an axis: put that inside the model")
        parts = {"mean": 0.0, "std": 1.0, **preprocessing}
        parts.pop("flip_axis", None)
        return Normalised(model, **parts)
    if not (isinstance(preprocessing, tuple | list) and len(preprocessing) == 2):
        raise TypeError(
            f"preprocessing must be (mean, std) or dict(mean=..., std=..., axis=-3), got "
            f"{preprocessing!r}"
        )
    return Normalised(model, *preprocessing)


def bounded(model: nn.Module, law: Law, bounds: tuple[float, float] | None) -> Law:
    """The law for inputs in these bounds, if there are any: its radii are in pixels.

    Raises:
        TypeError: The law has no such form, bounds are no pair, or noise is not on inputs.
    """
    if bounds is None:
        return law
    if isinstance(model, At):
        raise TypeError(f"bounds are of pixels, and noise is at {model.touched}: leave them out")
    if not (isinstance(bounds, tuple | list) and len(bounds) == 2):
        raise TypeError(f"bounds must be (low, high), such as (0, 1), got {bounds!r}")
    low, high = bounds
    if type(law) is Gaussian:
        return PixelGaussian(law.sigma, low, high)
    if type(law) is Uniform:
        return PixelUniform(law.half_width, low, high)
    if type(law) is Laplace:
        return PixelLaplace(law.scale, low, high)
    raise TypeError(f"bounds are for Gaussian, Uniform and Laplace noise, got {law}")


class _Noisy(Protocol):
    """What a module has to know of a smoother."""

    model: nn.Module
    law: Law

    def given(self, x: Batch) -> Any:
        """The inputs as the law sees them."""

    def logits(self, x: Batch, noise: Tensor) -> Tensor:
        """The logits (m, B, K) of inputs under noise."""


class SmoothedModule(nn.Module):
    r"""A smoothed classifier as a module: inputs (B, ...) to log mean probabilities (B, K),

    .. math:: \log \frac1m \sum_i \mathrm{softmax}\, f(x + \delta_i) ,

    differentiable in x and in the parameters. It certifies nothing: it is what attacks, plots and
    losses look at.

    Args:
        smoother: Whose classifier. ``.to``, ``.eval`` and ``.train`` reach the smoother's own
            model, which this module holds.
        samples: Draws m.
        noise: ``fixed``: the same m draws for every input and call. The module is then one function
            of each input by itself, however a batch is cut. ``fresh``: new draws for each input and
            each call, keyed by the seed and the number of the call.
        seed: Seed of the draws.

    Example:
        >>> from rsfl.smooth import GaussianSmoother
        >>> smoother = GaussianSmoother(nn.Linear(4, 3), 0.25, num_classes=3)
        >>> smoothed = smoother.module(samples=100)
        >>> total = smoothed(torch.rand(2, 4)).exp().sum(dim=1)
        >>> torch.allclose(total, torch.ones(2))
        True
    """

    def __init__(
        self,
        smoother: _Noisy,
        samples: int,
        *,
        noise: Literal["fixed", "fresh"] = "fixed",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.smoother = smoother
        self.model = smoother.model
        self.samples = count("samples", samples, 1)
        self.noise = choice("noise", noise, ("fixed", "fresh"))
        self.seed, self.calls = count("seed", seed), 0

    def extra_repr(self) -> str:
        """What is drawn."""
        return f"{self.smoother.law}, samples={self.samples}, noise={self.noise!r}"

    def forward(self, x: Batch) -> Tensor:
        """The logarithms of the mean probabilities (B, K), in float32 at least."""
        x = self.smoother.given(x)
        logits = self.smoother.logits(x, self._draws(x))
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_p = logits.log_softmax(dim=-1, dtype=wide)
        return log_p.logsumexp(dim=0) - math.log(self.samples)

    def _draws(self, x: Any) -> Tensor:
        """The noise (m, B, ...)."""
        law, shape = self.smoother.law, self.smoother.law.noise_shape(x.shape[1:])
        if self.noise == "fixed":
            draws = generator(self.seed, "module", device=x.device)
            one = law.sample((self.samples, 1, *shape), generator=draws, device=x.device)
            return one.expand(self.samples, len(x), *shape)
        self.calls += 1
        draws = generator(self.seed, "module", self.calls, device=x.device)
        return law.sample((self.samples, len(x), *shape), generator=draws, device=x.device)
