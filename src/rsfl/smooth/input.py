"""Smoothers: a model and a law of noise, from inputs to certificates."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from rsfl._checks import count
from rsfl._models import input_dtype, widened
from rsfl.noise import Law
from rsfl.orbit import Orbit
from rsfl.smooth.called import as_model
from rsfl.smooth.inputs import Batch, Inputs
from rsfl.smooth.module import (
    Preprocessing,
    SmoothedModule,
    bounded,
    normalised,
    structure,
)
from rsfl.smooth.orbit_votes import OrbitPlan, orbit_ballot
from rsfl.smooth.orbits import OrbitBallot, OrbitCertificate
from rsfl.smooth.spot import asked_twice, probed
from rsfl.smooth.voter import Voter
from rsfl.smooth.votes import ESTIMATION, Votes, checked_logits, count_votes, per_key

__all__ = ["Smoother"]


class Smoother(Voter):
    r"""The smoothed classifier of a model: the class that the model votes for most under noise.

    Smoothing acts on the tensors given to it; put any normalisation inside the model, or name it as
    ``preprocessing``. Noise is
    added to them in float32, or in their own dtype if it has more digits, and the sum is given to
    the model in the dtype of its first parameter: of a bfloat16 model, the rounding is a part of
    what is certified, and inputs stay in float32.

    Args:
        model: Maps a batch (B, ...) of inputs to logits (B, num_classes), or to an object with
            ``logits``, on any device and in any dtype: a module, or any function. It may write into
            the batch: that is never the caller's tensor. One whose inputs are several tensors is
            wrapped in :class:`Parts` or :class:`At`.
        law: How inputs are perturbed.
        num_classes: Width of the logits, at least 1.
        preprocessing: (mean, std) of the inputs that the model expects, numbers or one for each
            channel, or foolbox's ``dict(mean=..., std=..., axis=-3)``. The smoother then takes
            inputs as they were before that, and so noise and radii are in their unit.
        bounds: (low, high) of every coordinate of an input. Radii are then in pixels, and other
            inputs are refused.
        spot_check: Before the first votes ask the model twice, alone and in a batch, and refuse one
            whose answers differ by more than rounding explains.

    Raises:
        ValueError: The law perturbs parameters, or num_classes is below 1.
        TypeError: model or law is of another type.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> _ = model.bias.data.zero_()
        >>> x = torch.tensor([[0.8, 0.0]])
        >>> certificate = Smoother(model, Gaussian(0.5), 2).certify(x, n=1000)
        >>> int(certificate.label), 0.6 < float(certificate.radius) < 0.8  # the exact radius is 0.8
        (0, True)
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        law: Law,
        num_classes: int,
        *,
        preprocessing: Preprocessing | None = None,
        bounds: tuple[float, float] | None = None,
        spot_check: bool = True,
    ) -> None:
        model = as_model(model)
        model, law = normalised(model, preprocessing), bounded(model, law, bounds)
        super().__init__(law, num_classes, model=model, spot_check=spot_check)
        if law.space == "parameters":
            raise ValueError(
                f"law must perturb inputs, got {law}: ParameterSmoother is for parameters"
            )

    def given(self, x: Batch) -> Any:
        """The inputs as the law sees them: of a structured model, its parts told apart."""
        parts = structure(self.model)
        if parts is None:
            return x
        return parts.own(x) if isinstance(x, Inputs) else parts.split(x)

    @property
    @override
    def touched(self) -> str:
        parts = structure(self.model)
        return "" if parts is None else parts.touched

    @override
    def block(self, x: Any) -> int:
        return per_key(self.dim(x), x.device)

    @override
    def checked(self, x: Any) -> Any:
        parts = structure(self.model)
        if parts is None:
            return super().checked(x)
        inputs = parts.checked(x)
        return inputs.holding(super().checked(inputs.touched))

    def noise(self, x: Batch, m: int, *, generator: torch.Generator | None = None) -> Tensor:
        """m draws for each input, (m, B, ...), float32, on the device of x."""
        given = self.given(x)
        shape = self.law.noise_shape(given.shape[1:])
        return self.law.sample(
            (count("m", m, 1), len(given), *shape), generator=generator, device=given.device
        )

    def logits(self, x: Batch, noise: Tensor) -> Tensor:
        """The model's logits (m, B, K) for the inputs under noise (m, B, ...), in one forward
        call."""
        whole = self.given(x)
        x = whole.touched if isinstance(whole, Inputs) else whole
        m, size = noise.shape[0], len(x)
        if noise.shape[1:] != (size, *self.law.noise_shape(x.shape[1:])):
            expected = ("m", size, *self.law.noise_shape(x.shape[1:]))
            raise ValueError(f"noise must have shape {expected}, got {tuple(noise.shape)}")
        rows = widened(x).expand(m, *x.shape).flatten(0, 1)
        noisy = self.law.perturb(rows, noise.flatten(0, 1)).to(input_dtype(self.model, x))
        if isinstance(whole, Inputs):
            own = torch.arange(size, device=x.device).repeat(m)
            answer = self.model(whole.under(noisy, own))
        else:
            answer = self.model(noisy)
        return checked_logits(answer, m * size, self.num_classes).view(m, size, -1)

    def probabilities(
        self, x: Batch, noise: Tensor | int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean softmax over noise, (B, K), differentiable in x, in the noise and in the model's
        parameters.

        Args:
            x: Inputs (B, ...), or a batch of a structured model.
            noise: Draws (m, B, ...), or their number m.
            generator: Draws the noise where only its number is given.
        """
        x = self.given(x)
        if not isinstance(noise, Tensor):
            noise = self.noise(x, noise, generator=generator)
        logits = self.logits(x, noise)
        return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)).mean(
            dim=0
        )

    def module(
        self, samples: int, *, noise: Literal["fixed", "fresh"] = "fixed", seed: int = 0
    ) -> SmoothedModule:
        """The smoothed classifier as an ``nn.Module``, for attacks and losses of other libraries:
        see :class:`SmoothedModule`.

        Args:
            samples: Draws m for each call.
            noise: ``fixed``: the same draws for every input and call; ``fresh``: new ones.
            seed: Seed of the draws.
        """
        return SmoothedModule(self, samples, noise=noise, seed=seed)

    def orbit_ballot(
        self,
        x: Tensor,
        family: Orbit,
        *,
        allowance: float = 0.0,
        alpha: float = 0.001,
        plan: OrbitPlan | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
    ) -> OrbitBallot:
        """Votes about all pictures of an orbit: :func:`rsfl.smooth.orbit_ballot`."""
        return orbit_ballot(
            self, x, family, allowance=allowance, alpha=alpha, plan=plan, seed=seed, index=index
        )

    def certify_orbit(
        self,
        x: Tensor,
        family: Orbit,
        *,
        allowance: float = 0.0,
        alpha: float = 0.001,
        plan: OrbitPlan | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
    ) -> OrbitCertificate:
        """One label for every picture of a family, and for all within an allowance of one.

        The picture is the one that somebody hands in: it may have been turned, resampled and saved
        before. The noise is that of the pixels, and must be measured in l2.

        Args:
            x: Images (B, C, H, W), finite; one of them alone is ``x[None]``.
            family: The family of pictures, such as ``orbit.Rotations(math.radians(50))``.
            allowance: l2 distance that a picture may be from one of the family, such as
                ``orbit.eight_bit_allowance(x.shape[1:])`` for pictures that were saved in 8 bits.
            alpha: Probability, for each input, with which the certificate may be wrong.
            plan: How votes are spent.
            seed: Seed of the draws. They depend on it, on ``index``, on the centre they are cast
                for, and on nothing else.
            index: (B,) which inputs these are; 0 ... B - 1 by default.

        Returns:
            The certificate; it abstains where some picture could not be certified.

        Raises:
            ValueError: An argument is out of its range, or the noise is not measured in l2.
            TypeError: x or the logits are not tensors of numbers.

        Example:
            >>> from rsfl.noise import Gaussian
            >>> from rsfl.orbit import Rotations
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
            >>> _ = model[1].weight.data.copy_(torch.stack([-torch.ones(9), torch.ones(9)]))
            >>> _ = model[1].bias.data.copy_(torch.tensor([3.0, -3.0]))  # bright, or dark
            >>> dark = torch.full((1, 1, 3, 3), 0.2)
            >>> Smoother(model, Gaussian(0.5), 2).certify_orbit(dark, Rotations(0.3)).label
            tensor([0])
        """
        ballot = self.orbit_ballot(
            x, family, allowance=allowance, alpha=alpha, plan=plan, seed=seed, index=index
        )
        return ballot.certificate(allowance=allowance, alpha=alpha)

    @override
    def spot(self, x: Tensor | Inputs) -> None:
        if self.spot_check:
            asked_twice(self.model, probed(self.model, x), self.num_classes)

    @override
    def count(
        self,
        x: Tensor | Inputs,
        index: Tensor,
        start: int,
        stop: int,
        *,
        seed: int,
        stage: int = ESTIMATION,
        batch_size: int | None = None,
    ) -> Votes:
        return count_votes(
            self.model,
            self.law,
            x,
            self.num_classes,
            start=start,
            stop=stop,
            seed=seed,
            index=index,
            stage=stage,
            batch_size=batch_size,
        )
