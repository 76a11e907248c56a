"""Dual smoothing: a smoothed selector names the noise, and the classifier of that noise the label.

Both votes are certified, each at half of alpha, and the smaller radius holds for the two together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rsfl._batches import checked_index
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.dual_certificate import DualCertificate, measured
from rsfl.smooth.voter import Voter

__all__ = ["DualSmoother", "best_levels"]


class DualSmoother:
    """A smoothed classifier whose noise depends on the input, soundly: a smoothed selector names
    one of several levels, each a smoother of its own, and that one names the label.

    Args:
        selector: Its classes are the levels. Any smoother, under noise of its own.
        levels: One smoother for each class of the selector: other noise, and as a rule another
            model. All measure distances as the selector's law does.

    Raises:
        ValueError: There are not as many levels as the selector has classes, or laws measure
            otherwise.
        TypeError: One of them is no smoother.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> from rsfl.smooth import Smoother
        >>> def sign(scale):  # of the first coordinate
        ...     return lambda x: torch.stack([scale * x[:, 0], -scale * x[:, 0]], 1)
        >>> far = lambda x: torch.stack([2 - x[:, 0].abs(), x[:, 0].abs() - 2], 1)
        >>> near, wide = (Smoother(sign(1.0), Gaussian(sigma), 2) for sigma in (0.25, 1.0))
        >>> dual = DualSmoother(Smoother(far, Gaussian(0.5), 2), [near, wide])
        >>> certificate = dual.certify(torch.tensor([[0.5], [4.0]]), n=1000)
        >>> certificate.level.tolist(), (certificate.radius > torch.tensor([0.4, 1.2])).tolist()
        ([0, 1], [True, True])
    """

    def __init__(self, selector: Voter, levels: Sequence[Voter]) -> None:
        levels = tuple(levels)
        for name, one in (("selector", selector), *(("levels", level) for level in levels)):
            if not isinstance(one, Voter):
                raise TypeError(
                    f"{name} must be smoothers, such as smooth.GaussianSmoother(model, 0.5, "
                    f"num_classes=10), got {type(one).__name__}"
                )
            if one.touched or one.law.space not in ("input", "parametric"):
                raise ValueError(f"{name} must be under noise on whole inputs, got {one}")
        if len(levels) != selector.num_classes:
            raise ValueError(
                f"levels must be one for each of the selector's {selector.num_classes} classes, "
                f"got {len(levels)}"
            )
        for level in levels:
            if measured(level.law) != measured(selector.law):
                raise ValueError(
                    f"levels must measure distances as the selector's {selector.law}, got "
                    f"{level.law}"
                )
            if level.num_classes != levels[0].num_classes:
                raise ValueError(
                    f"levels must have the same num_classes, got {levels[0].num_classes} and "
                    f"{level.num_classes}"
                )
        self.selector, self.levels = selector, levels
        self.num_classes = levels[0].num_classes

    def __repr__(self) -> str:
        return f"DualSmoother({self.selector}, {list(self.levels)})"

    def certify(
        self,
        x: Tensor,
        *,
        n0: int = 100,
        n: int | None = None,
        alpha: float = 0.001,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
        **how: Any,
    ) -> DualCertificate:
        """Certify the level of each input, and then the label under its noise, each at alpha / 2.

        Args:
            x: Inputs (B, ...), finite.
            n0: Votes for selection, of each of the two.
            n: Votes for estimation, of each of the two.
            alpha: Probability, for each input, with which the certificate may be wrong.
            seed: Seed of the draws.
            index: (B,) which inputs these are; 0 ... B - 1 by default.
            how: ``batch_size``, ``runner_up`` and ``confidence``, as for :meth:`Voter.certify`.

        Returns:
            The certificate; it abstains where either does.
        """
        told = {"n0": n0, "n": n, "seed": seed, **how}
        return self._asked(
            x, index, lambda one, part, at: one.certify(part, index=at, alpha=alpha / 2, **told)
        )

    def predict(
        self,
        x: Tensor,
        *,
        n: int = 1000,
        alpha: float = 0.001,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> DualCertificate:
        """The label that is certified, without a radius: the class of the level that the selector
        names, or ``ABSTAIN`` where the votes of either cannot tell the first from the second.

        Args:
            x: Inputs (B, ...), finite.
            n: Votes of each of the two.
            alpha: Probability, for each input, of a class that is not the dual classifier's.
            seed: Seed of the draws.
            index: (B,) which inputs these are; 0 ... B - 1 by default.
            batch_size: Noisy inputs per forward call; None chooses one that fits.
        """
        told: dict[str, Any] = {"n": n, "seed": seed, "batch_size": batch_size}
        return self._asked(
            x, index, lambda one, part, at: one.predict(part, index=at, alpha=alpha / 2, **told)
        )

    def _asked(
        self,
        x: Tensor,
        index: Tensor | Sequence[int] | None,
        ask: Callable[[Voter, Tensor, Tensor], Certificate],
    ) -> DualCertificate:
        x = self.selector.checked(x)
        numbers = checked_index(index, len(x))
        selected = ask(self.selector, x, numbers)
        levels = []
        for number, level in enumerate(self.levels):
            rows = (selected.label == number).nonzero().flatten()
            levels.append(ask(level, x[rows], numbers[rows.cpu()]) if len(rows) else None)
        return DualCertificate(selected, tuple(levels))


def best_levels(certificates: Sequence[Certificate], y: Tensor) -> Tensor:
    """Which of several certificates of the same inputs has the largest radius for the true label,
    (B,) int64: what a selector is to be trained on. The last level where none has one: there is
    nothing to lose.

    Args:
        certificates: One a level, of training inputs.
        y: (B,) their labels.

    Raises:
        ValueError: They are not of the same inputs.
    """
    if not certificates or any(len(one) != len(y) for one in certificates):
        raise ValueError(
            f"certificates must be of the {len(y)} inputs of y, got "
            f"{[len(one) for one in certificates]}"
        )
    first = certificates[0]
    for place, other in enumerate(certificates[1:], start=1):
        if not (other.index.equal(first.index) and other.inputs.equal(first.inputs)):
            raise ValueError(
                f"certificates must be of the same inputs in one order, got others in number "
                f"{place}"
            )
    radii = torch.stack([one.radius.where(one.label == y, 0.0) for one in certificates])
    best = radii.argmax(dim=0)
    return best.where(radii.amax(dim=0) > 0, len(certificates) - 1)
