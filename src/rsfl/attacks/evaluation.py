"""What an attack achieves, beside what no attack can."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsfl._draws import generator
from rsfl._text import floored, raised
from rsfl.attacks.attack import Attack
from rsfl.attacks.objective import attackable
from rsfl.attacks.verified import attacked
from rsfl.deform import Deformation
from rsfl.smooth import (
    ABSTAIN,
    Ballot,
    Certificate,
    DeformationSmoother,
    Smoother,
    Votes,
    draw_noise,
)

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an attack achieved on N inputs, beside what was certified for them.

    Attributes:
        y: (N,) int64, the labels.
        certificate: For the unattacked inputs.
        attacked: (N,) int64, what the smoothed classifier predicts at the attacked points, or
            ``ABSTAIN``.
        distance: (N,) float64, how far the attack went.
        epsilon: How far it might go.
    """

    y: Tensor
    certificate: Certificate
    attacked: Tensor
    distance: Tensor
    epsilon: float

    @property
    def clean_accuracy(self) -> float:
        """Share of the unattacked inputs that are certified to be of their class, at any radius."""
        return float((self.certificate.label == self.y).double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of the attacked points that are predicted right, without abstaining: what *this*
        attack leaves."""
        return float((self.attacked == self.y).double().mean())

    @property
    def certified_accuracy(self) -> float:
        """Share of the inputs certified to be of their class at every point within epsilon: what
        *any* attack leaves, save that at its point the prediction may lack votes and abstain."""
        held = (self.certificate.label == self.y) & (self.certificate.radius > self.epsilon)
        return float(held.double().mean())

    @property
    def refuted(self) -> Tensor:
        """(N,) bool: predicted as another class within the certified radius. For each input, the
        certificate or the prediction erred: that has a probability of at most 2 alpha."""
        label, radius = self.certificate.label, self.certificate.radius
        return (
            (label != ABSTAIN)
            & (self.attacked != ABSTAIN)
            & (self.attacked != label)
            & (self.distance < radius)
        )

    def __repr__(self) -> str:
        return (
            f"Evaluation of {len(self.y)} inputs at epsilon = {self.epsilon!r}: "
            f"clean {floored(self.clean_accuracy, 3)}, attacked {raised(self.robust_accuracy, 3)}, "
            f"certified {floored(self.certified_accuracy, 3)}"
        )


def evaluate(
    smoother: Smoother,
    attack: Attack,
    loader: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor],
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
) -> Evaluation:
    """Attack batches of inputs in evaluation mode; predict at the points found, and certify the
    inputs themselves.

    An attack with more ``samples`` sees more of the smoothed classifier: 128 are plenty, and so
    many copies of a batch go through the model at once. Its draws are keyed by seed and input,
    apart from those of the votes. Where it arrived is measured here, whatever it says itself; it
    may take gradients, gets copies of the inputs, and comes after the certificates.

    Args:
        smoother: What is attacked.
        attack: How.
        loader: Batches (x, y), or one of them.
        n0: Votes that select the class to certify.
        n: Votes for each certificate and for each prediction at an attacked point.
        alpha: Failure probability of each of these.
        seed: Seed of all draws.

    Returns:
        Labels, certificates and predictions for all inputs.

    Raises:
        ValueError: There are no batches, the attack left its budget or its box, the law's norm is
            none that can be attacked, or an argument is one that certify, predict or the attack
            refuse.
        TypeError: loader yields something else than pairs (x, y).
    """
    attackable(smoother)
    labels, certificates, points, distances = [], [], [], []
    epsilon, start = attack.epsilon, 0
    one = isinstance(loader, tuple) and any(isinstance(part, Tensor) for part in loader)
    batches: Iterable[Any] = [loader] if one else loader
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"loader must yield pairs (x, y), got {type(batch).__name__}")
        x, y = batch
        index = torch.arange(start, start + len(x))
        start += len(x)
        # Certified first: what the attack does to the model cannot reach the certificate.
        certificates.append(smoother.certify(x, n0=n0, n=n, alpha=alpha, seed=seed, index=index))
        drawn = [
            _drawn(smoother, attack, one[None], seed, i)
            for i, one in zip(index.tolist(), x, strict=True)
        ]
        noise = torch.cat([one for one, _ in drawn], dim=1)
        fallback = torch.cat([one for _, one in drawn])
        found, distance = attacked(attack, smoother, x, y, noise, fallback=fallback)
        labels.append(y.clone())
        points.append(
            _predicted(smoother, x, found.point, n=n, alpha=alpha, seed=seed, index=index)
        )
        distances.append(distance)
    if not labels:
        raise ValueError("loader must yield at least one batch, got none")
    return Evaluation(
        torch.cat(labels),
        Certificate.cat(certificates),
        torch.cat(points),
        torch.cat(distances),
        epsilon,
    )


def _drawn(
    smoother: Smoother, attack: Attack, x: Tensor, seed: int, index: int
) -> tuple[Tensor, Tensor]:
    """The attacker's own draws for one input: noise, and the direction of a step without a
    gradient."""
    draws = generator(seed, "attack", index, device=x.device)
    noise = attack.draw(smoother, x, draws)
    return noise, torch.randn(noise.shape[1:], generator=draws, device=x.device, dtype=x.dtype)


def _predicted(
    smoother: Smoother, x: Tensor, point: Tensor, *, n: int, alpha: float, seed: int, index: Tensor
) -> Tensor:
    """What the smoothed classifier predicts at the points."""
    law = smoother.law
    if not isinstance(law, Deformation):
        return smoother.predict(point, n=n, alpha=alpha, seed=seed, index=index).label
    # The original inputs and the draws that predict would take, under parameters moved by the
    # offsets.
    draws = [
        draw_noise(law, x.shape[1:], n, seed=seed, index=i, device=x.device) for i in index.tolist()
    ]
    shifted = DeformationSmoother(smoother.model, law, smoother.num_classes).shifted(
        x, torch.stack(draws, dim=1)
    )
    counts = shifted(point)
    return Ballot(law, None, Votes(counts, n - counts.sum(dim=1))).prediction(alpha).label
