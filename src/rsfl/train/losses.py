"""Losses to descend: each is called as ``loss(model, x, y, generator)`` and returns a scalar."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from rsfl._checks import count
from rsfl._models import evaluating
from rsfl.attacks import Attack, attacked, checked_labels, logits_at
from rsfl.noise import Law
from rsfl.smooth import Smoother
from rsfl.train.orbits import OrbitNoise

__all__ = ["Adversarial", "CrossEntropy", "Loss", "pseudo_labels"]


class Loss(Protocol):
    """Anything that is called as ``loss(model, x, y, generator)``: an object of this module, or a
    function."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, /
    ) -> Tensor:
        """The scalar to descend on a mini-batch; it draws from the generator alone."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy, on inputs perturbed by a law if one is given: noise or deformation
    augmentation.

    Args:
        law: Noise law or deformation; one draw a sample and step.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> model, x, y = torch.nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
        >>> CrossEntropy(Gaussian(0.25))(model, x, y, torch.Generator().manual_seed(0)).backward()

    References:
        Cohen, Rosenfeld and Kolter, Certified adversarial robustness via randomized smoothing,
        2019, section 3.3.
    """

    law: Law | None = None

    def inputs(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``x`` with a fresh perturbation of each sample."""
        if self.law is None:
            return x
        shape = (len(x), *self.law.noise_shape(x.shape[1:]))
        return self.law.perturb(x, self.law.sample(shape, generator=generator, device=x.device))

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each sample, shape (N,)."""
        return functional.cross_entropy(
            outputs, checked_labels(y, *outputs.shape), reduction="none"
        )

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean over the batch."""
        return self.losses(model(self.inputs(x, generator)), y).mean()


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Cross-entropy at the points that an attack finds, under the noise that it looked at.

    With a smoothed attack this is SmoothAdv training, with :class:`~rsfl.attacks.PGD`, which looks
    without noise, it is plain adversarial training. The attack sees the model in evaluation mode:
    its passes move no batch statistics and no dropout. Each module's own mode is restored before
    the loss is computed.

    Args:
        attack: How to look for the points.
        law: The law of the smoothed classifier: it sets the norm of the attack's budget, and its
            noise. Under an :class:`OrbitNoise` pictures are moved first, and attacked where they
            are then, under its noise of the pixels.
        num_classes: Width of the logits.
        multi_noise: Whether all the attack's draws enter the loss, or only the first.

    Example:
        >>> from rsfl.attacks import SmoothAdvPGD
        >>> from rsfl.noise import Gaussian
        >>> model, x, y = torch.nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3
        >>> loss = Adversarial(
        ...     attack=SmoothAdvPGD(epsilon=0.5, steps=2, samples=2),
        ...     law=Gaussian(0.25),
        ...     num_classes=3,
        ... )
        >>> loss(model, x, y, torch.Generator().manual_seed(0)).backward()

    References:
        Salman et al., Provably robust deep learning via adversarially trained smoothed classifiers,
        2019, Pseudocode 1.
    """

    attack: Attack
    law: Law
    num_classes: int
    multi_noise: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be an attacks.Attack, got {self.attack!r}")
        count("num_classes", self.num_classes, 1)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean over the batch and over the draws that enter."""
        law = self.law
        if isinstance(law, OrbitNoise):
            x, law = _in(self.attack.box, law.moved(x, generator)), law.pixels
        smoother = Smoother(model, law, self.num_classes)
        found, _ = attacked(self.attack, smoother, x, y, generator=generator)
        noise = found.noise if self.multi_noise else found.noise[:1]
        logits = logits_at(smoother, x, found.point, noise)
        return functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(noise)))

    def warmed_up(self, epoch: int, epochs: int) -> Self:
        """The loss for one epoch of a warm-up: the attack's epsilon times epoch / epochs, at most
        its own.

        Steps shrink with it, unless the attack's ``step_size`` is set.

        Args:
            epoch: Which epoch, from 1.
            epochs: How many the warm-up takes; 0 for none.
        """
        if count("epoch", epoch, 1) >= count("epochs", epochs):
            return self
        return replace(self, attack=self.attack.scaled(epoch / epochs))


def _in(box: tuple[float, float] | None, x: Tensor) -> Tensor:
    """Pictures whose interpolation was rounded out of the box, in the box; others as they are."""
    if box is None:
        return x
    slack = 8 * torch.finfo(x.dtype).eps * max(map(abs, box))
    return torch.where((x - (inside := x.clamp(*box))).abs() <= slack, inside, x)


@torch.no_grad()
def pseudo_labels(model: nn.Module, x: Tensor, *, batch_size: int = 1024) -> Tensor:
    """The classes (N,) that a model gives to unlabelled inputs, for self-training; in evaluation
    mode.

    Train a model on the labelled data, let it label the rest, train the robust model on both. To
    give the second kind a weight of its own, add the losses of two batches: ``loss(model, x, y) +
    weight * loss(model, u, labels)``.

    Args:
        model: Maps a batch of inputs to logits.
        x: Unlabelled inputs (N, ...).
        batch_size: Inputs per forward call.

    Raises:
        ValueError: Logits are not finite.

    References:
        Carmon et al., Unlabeled data improves adversarial robustness, 2019; Salman et al. 2019,
        section 4.2.
    """
    count("batch_size", batch_size, 1)
    with evaluating(model):
        logits = torch.cat([model(part) for part in torch.split(x, batch_size)])
    bad = ~logits.isfinite().all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"model must give finite logits to label x, got {logits[bad][0].tolist()} for one input"
        )
    return logits.argmax(dim=1)
