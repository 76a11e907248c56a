r"""Losses that look at several noisy copies of an input at once, and ask the copies to agree.

Write :math:`p_i = \mathrm{softmax}\, f(x + \delta_i)` for the m copies of an input and
:math:`\bar p = \frac1m \sum_i p_i` for the smoothed classifier's estimate.

The public experiments with :class:`Consistency` and :class:`SmoothMix` cut each batch of N inputs
into m parts and take a step for each of these under m draws, so that a step costs what it costs
without: that is ``Batches(x, y, size=N // m)`` with ``samples=m``.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from rsfl._checks import count, number, stored
from rsfl.attacks import SmoothAdvPGD, attacked, checked_labels
from rsfl.noise import Gaussian, Law, PixelGaussian
from rsfl.smooth import Smoother

__all__ = ["MACER", "Consistency", "SmoothMix", "Stability"]


@dataclass(frozen=True, kw_only=True)
class Stability:
    r"""Cross-entropy on the inputs as they are, and of their noisy copies' classes with theirs:

    .. math:: -\log p(x)_y - \lambda \frac1m \sum_i \sum_k p(x)_k \log p(x + \delta_i)_k .

    Args:
        law: The noise.
        weight: :math:`\lambda`, at least 0; published on MNIST: 2.
        samples: Draws m for each input and step.

    Example:
        >>> model, x, y = torch.nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
        >>> loss = Stability(law=Gaussian(0.25))
        >>> loss(model, x, y, torch.Generator().manual_seed(0)).backward()

    References:
        Li, Chen, Wang and Carin, Certified adversarial robustness with additive noise, 2019,
        section 5.
    """

    law: Law
    weight: float = 2.0
    samples: int = 1

    def __post_init__(self) -> None:
        _settings(self, "weight")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean over the batch."""
        logits = model(x)
        plain = functional.cross_entropy(logits, checked_labels(y, *logits.shape))
        noisy = _log_softmax(_logits(model, self.law, x, self.samples, generator))
        drift = -(logits.softmax(dim=-1, dtype=noisy.dtype) * noisy).sum(dim=-1)
        total: Tensor = plain + self.weight * drift.mean()
        return total


@dataclass(frozen=True, kw_only=True)
class Consistency:
    r"""Cross-entropy on noisy copies, and how far they are from their mean:

    .. math:: -\frac1m \sum_i \log p_{i,y}
       + \lambda \frac1m \sum_i \mathrm{KL}(\bar p \,\|\, p_i) + \eta\, H(\bar p) .

    Args:
        law: The noise.
        weight: :math:`\lambda`, at least 0; published on MNIST: 10 at sigma = .25, 5 at .5 and 1.
        entropy: :math:`\eta`, at least 0; published: .5.
        samples: Draws m for each input and step, at least 2; published: 2.

    Example:
        >>> model, x, y = torch.nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
        >>> loss = Consistency(law=Gaussian(0.5), weight=5.0)
        >>> loss(model, x, y, torch.Generator().manual_seed(0)).backward()

    References:
        Jeong and Shin, Consistency regularization for certified robustness of smoothed classifiers,
        2020.
    """

    law: Law
    weight: float
    entropy: float = 0.5
    samples: int = 2

    def __post_init__(self) -> None:
        _settings(self, "weight", "entropy", samples=2)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean over the batch."""
        logits = _logits(model, self.law, x, self.samples, generator)
        log_p = _log_softmax(logits)
        log_mean = _log_mean(log_p)
        mean = log_mean.exp()
        apart = (mean * (log_mean - log_p.mean(dim=0))).sum(dim=-1)  # the mean of the m divergences
        spread = -(mean * log_mean).sum(dim=-1)
        return _cross_entropy(logits, y) + (self.weight * apart + self.entropy * spread).mean()


@dataclass(frozen=True, kw_only=True)
class MACER:
    r"""Log-loss of the smoothed classifier, and a hinge that widens the certified radius of what it
    has right:

    .. math:: -\log \bar p_y + \lambda \frac{\sigma}{2}
       \bigl(\gamma - (\Phi^{-1}(\bar q_y) - \Phi^{-1}(\max_{k \ne y} \bar q_k))\bigr)

    with :math:`\bar q` the mean of :math:`\mathrm{softmax}(\beta f)`. The second term counts where
    :math:`\bar q` is largest at y and the gap of the quantiles is at most :math:`\gamma`.

    Args:
        law: Gaussian noise: the hinge is its radius.
        weight: :math:`\lambda`, at least 0; published on MNIST: 16 at sigma = .25 and .5, 6 at 1.
        samples: Draws m for each input and step; published: 16.
        beta: Inverse temperature of the hinge's softmax, positive; published: 16.
        gamma: Gap of the quantiles from which on a radius is wide enough; published: 8.

    Example:
        >>> model, x, y = torch.nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
        >>> loss = MACER(law=Gaussian(0.25), weight=16.0)
        >>> loss(model, x, y, torch.Generator().manual_seed(0)).backward()

    References:
        Zhai et al., MACER: attack-free and scalable robust training via maximizing certified
        radius, 2020.
    """

    law: Gaussian
    weight: float
    samples: int = 16
    beta: float = 16.0
    gamma: float = 8.0

    def __post_init__(self) -> None:
        if type(self.law) not in (Gaussian, PixelGaussian):
            raise TypeError(f"law must be noise.Gaussian for MACER's radius, got {self.law!r}")
        _settings(self, "weight")
        for name in ("beta", "gamma"):
            value = number(name, getattr(self, name), 0, np.inf, open_low=True, open_high=True)
            stored(self, **{name: value})

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean over the batch."""
        logits = _logits(model, self.law, x, self.samples, generator)
        rows = checked_labels(y, *logits.shape[1:])[:, None]
        log_loss = -_log_mean(_log_softmax(logits)).gather(1, rows)
        if self.weight == 0:
            return log_loss.mean()
        return log_loss.mean() + self.weight * self.hinges(logits, y).sum() / len(y)

    def hinges(self, logits: Tensor, y: Tensor) -> Tensor:
        """sigma / 2 (gamma - gap) of the inputs that it counts for, (C,), from logits (m, B, K)."""
        mean = _log_mean(_log_softmax(self.beta * logits)).exp()
        top = mean.topk(2, dim=1)
        with torch.no_grad():  # saturated ones are further apart than any gamma
            apart = torch.special.ndtri(top.values)
            counts = (top.indices[:, 0] == y) & (apart[:, 0] - apart[:, 1] <= self.gamma)
        first, second = torch.special.ndtri(top.values[counts]).unbind(dim=1)
        hinges: Tensor = self.law.sigma / 2 * (self.gamma - (first - second))
        return hinges

    def warmed_up(self, epoch: int, epochs: int) -> Self:
        """The loss for one epoch of a warm-up: without the hinge up to the last of ``epochs``.

        Args:
            epoch: Which epoch, from 1.
            epochs: How many the warm-up takes; 0 for none.
        """
        if count("epoch", epoch, 1) > count("epochs", epochs):
            return self
        return replace(self, weight=0.0)


@dataclass(frozen=True, kw_only=True)
class SmoothMix:
    r"""Cross-entropy on noisy copies, and less confidence on the way to where the smoothed class
    changes.

    An attack of :math:`T` steps of length :math:`a`, with no budget but the box, climbs from x to
    :math:`\tilde x`. With u uniform on [0, 1/2] for each input, :math:`x_u = (1 - u) x + u
    \tilde x`, target :math:`t = (1 - u) \bar p(x) + u / K`, and c = 1 where the mean of the
    copies of x is largest at y, else 0:

    .. math:: -\frac1m \sum_i \log p_{i,y}
       + \eta\, c \frac1m \sum_i \mathrm{KL}(t \,\|\, p(x_u + \delta_i)) .

    The attack, the first term and the second use the same draws. Gradients pass through t.

    Args:
        law: The noise, of inputs themselves.
        num_classes: Width of the logits, K.
        steps: T; published on MNIST: 2, 4 and 8 at sigma = .25, .5 and 1.
        step_size: a, positive, in the norm of the law; published: 1.
        weight: :math:`\eta`, at least 0; published: 5, growing over the first ten epochs.
        samples: Draws m for each input and step; published: 4.
        box: Range that every coordinate of an input keeps to, or None.

    Example:
        >>> model, x, y = torch.nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
        >>> loss = SmoothMix(law=Gaussian(0.5), num_classes=3, steps=4)
        >>> loss(model, x, y, torch.Generator().manual_seed(0)).backward()

    References:
        Jeong et al., SmoothMix: training confidence-calibrated smoothed classifiers for certified
        robustness, 2021.
    """

    law: Law
    num_classes: int
    steps: int
    step_size: float = 1.0
    weight: float = 5.0
    samples: int = 4
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        _settings(self, "weight")
        if self.law.space != "input":
            raise ValueError(
                f"law must perturb inputs themselves, which SmoothMix mixes, got {self.law}"
            )
        count("num_classes", self.num_classes, 2)
        self._attack()

    def _attack(self) -> SmoothAdvPGD:
        """As far as its steps reach: the budget never binds."""
        count("steps", self.steps, 1)
        number("step_size", self.step_size, 0, np.inf, open_low=True, open_high=True)
        return SmoothAdvPGD(
            epsilon=self.steps * self.step_size,
            steps=self.steps,
            step_size=self.step_size,
            samples=self.samples,
            box=self.box,
        )

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean over the batch."""
        smoother = Smoother(model, self.law, self.num_classes)
        found, _ = attacked(self._attack(), smoother, x, y, generator=generator)
        logits = smoother.logits(x, found.noise)
        mean = _log_mean(_log_softmax(logits)).exp()
        u = torch.rand(len(x), generator=generator, device=x.device, dtype=mean.dtype) / 2
        part = u.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        mixed = _log_softmax(smoother.logits(x + part * (found.point - x), found.noise))
        target = (1 - u)[:, None] * mean + u[:, None] / self.num_classes
        log_target = target.clamp(min=torch.finfo(target.dtype).tiny).log()
        apart = (target * (log_target - mixed.mean(dim=0))).sum(dim=-1)
        right = (mean.argmax(dim=-1) == y).to(mean.dtype)
        return _cross_entropy(logits, y) + self.weight * (right * apart).mean()

    def warmed_up(self, epoch: int, epochs: int) -> Self:
        """The loss for one epoch of a warm-up: its weight times epoch / epochs, at most its own.

        Args:
            epoch: Which epoch, from 1.
            epochs: How many the warm-up takes; 0 for none.
        """
        if count("epoch", epoch, 1) >= count("epochs", epochs):
            return self
        return replace(self, weight=self.weight * epoch / epochs)


def _settings(
    loss: Stability | Consistency | MACER | SmoothMix, *weights: str, samples: int = 1
) -> None:
    """Check what the losses have in common."""
    if not isinstance(loss.law, Law):
        raise TypeError(f"law must be a noise.Law, got {loss.law!r}")
    count("samples", loss.samples, samples)
    for name in weights:
        stored(loss, **{name: number(name, getattr(loss, name), 0, np.inf, open_high=True)})


def _logits(
    model: nn.Module, law: Law, x: Tensor, samples: int, generator: torch.Generator | None
) -> Tensor:
    """The logits (m, B, K) of fresh noisy copies, in one forward call."""
    shape = (samples, len(x), *law.noise_shape(x.shape[1:]))
    noise = law.sample(shape, generator=generator, device=x.device)
    rows = x.expand(samples, *x.shape).flatten(0, 1)
    logits: Tensor = model(law.perturb(rows, noise.flatten(0, 1)))
    return logits.view(samples, len(x), -1)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _log_mean(log_p: Tensor) -> Tensor:
    """The logarithm (B, K) of the mean of probabilities (m, B, K)."""
    return log_p.logsumexp(dim=0) - math.log(len(log_p))


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The mean over copies and inputs."""
    rows = checked_labels(y, *logits.shape[1:]).repeat(len(logits))
    return functional.cross_entropy(logits.flatten(0, 1), rows)
