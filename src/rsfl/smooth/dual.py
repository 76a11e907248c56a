"""Dual smoothing: a smoothed selector names the noise, and the classifier of that noise the label.

Both votes are certified, each at half of alpha, and the smaller radius holds for the two together.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rsfl import _document
from rsfl._batches import checked_index, rows_of
from rsfl._text import floored, lined, tabled
from rsfl.assumptions import NAMED_LEVEL, Assumption
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.measure import Measure
from rsfl.smooth.reading import ABSTAIN
from rsfl.smooth.voter import Voter

__all__ = ["DualCertificate", "DualSmoother", "best_levels"]

_FORMAT = 1
_SHOWN = 10


@dataclass(frozen=True, repr=False)
class DualCertificate:
    r"""What a selector and the classifiers of its levels promise together.

    With probability at least 1 - alpha for each input: where ``label`` is not ``ABSTAIN``, for
    every input within ``radius`` the selector's vote names the same ``level``, and the vote of that
    level's classifier the same label. The radius is the smaller one of the two certificates:

    .. math:: R = \min(R_s, R_{c, k}) , \qquad k \text{ the level that the selector names.}

    While the selector's certificate holds, k is no random number. So the two failures add up,
    whatever draws the two votes share, and each has half of alpha.

    Attributes:
        selected: The selector's certificate: its labels are levels.
        levels: For each level the certificate of the inputs that it was named for; None where
            there are none.
    """

    selected: Certificate
    levels: tuple[Certificate | None, ...]

    def __post_init__(self) -> None:
        told = self.selected.label
        for level, found in enumerate(self.levels):
            wanted = self.selected.index[told == level].tolist()
            if wanted != ([] if found is None else found.index.tolist()):
                raise ValueError(f"level {level} must be of the inputs that it was named for")
            if found is not None and found.alpha != self.selected.alpha:
                raise ValueError(
                    f"alpha must be shared in halves, got {self.selected.alpha!r} and "
                    f"{found.alpha!r}"
                )
            if found is not None and _measure(found.law) != _measure(self.selected.law):
                raise ValueError(f"law must measure as the selector's, got {found.law}")
        if bool((told >= len(self.levels)).any()):
            raise ValueError(f"levels must be all that are named, got {len(self.levels)}")

    def _gathered(self, column: Callable[[Certificate], Tensor], nothing: float) -> Tensor:
        """A column of the level's certificates, in the order of the inputs."""
        like = column(self.selected)
        found = torch.full_like(like, nothing)
        for level, certificate in enumerate(self.levels):
            if certificate is not None:
                found[self.selected.label == level] = column(certificate)
        return found

    @property
    def level(self) -> Tensor:
        """(B,) int64, the level that the selector names, or ``ABSTAIN``."""
        return self.selected.label

    @property
    def label(self) -> Tensor:
        """(B,) int64, the certified class or ``ABSTAIN``."""
        return self._gathered(lambda one: one.label, ABSTAIN)

    @property
    def radius(self) -> Tensor:
        """(B,) float64, 0 where it abstains."""
        own = self._gathered(lambda one: one.radius, 0.0)
        return torch.minimum(self.selected.radius, own)

    @property
    def abstained(self) -> Tensor:
        """(B,) bool, where no statement is made."""
        return self.label == ABSTAIN

    @property
    def n(self) -> Tensor:
        """(B,) int64, votes for estimation, of both."""
        return self.selected.n + self._gathered(lambda one: one.n, 0)

    @property
    def index(self) -> Tensor:
        """(B,) int64, which inputs these are."""
        return self.selected.index

    @property
    def alpha(self) -> float:
        """Failure probability for each input."""
        return 2 * self.selected.alpha

    @property
    def norm(self) -> str:
        """The norm of the radius."""
        return self.selected.norm

    @property
    def space(self) -> str:
        """What the radius is a distance of."""
        return self.selected.space

    @property
    def unit(self) -> str:
        """The unit of the radius."""
        return self.selected.unit

    @property
    def law(self) -> Measure:
        """The selector's noise."""
        return self.selected.law

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What the promise rests on."""
        parts = (self.selected, *(one for one in self.levels if one is not None))
        named = (assumption for part in parts for assumption in part.assumptions)
        return tuple(dict.fromkeys((*named, NAMED_LEVEL)))

    def __len__(self) -> int:
        return len(self.selected)

    def __getitem__(self, key: Any) -> "DualCertificate":
        """The certificate of some of the inputs; a single number gives a batch of one."""
        rows = rows_of(key, len(self), self.selected.label.device)
        selected = self.selected[rows]
        place = torch.zeros_like(self.level)  # of an input among those of its level
        for level in range(len(self.levels)):
            own = self.level == level
            place[own] = torch.arange(int(own.sum()), device=place.device)
        place, levels = place[rows], []
        for level, certificate in enumerate(self.levels):
            own = place[selected.label == level]
            levels.append(certificate[own] if certificate is not None and len(own) else None)
        return DualCertificate(selected, tuple(levels))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a JSON file with a checksum: the votes of both, from which it is
        derived again by whoever reads it.

        Raises:
            TypeError: A law cannot be named.
            OSError: The file cannot be written.
        """
        kept = {
            "selected": self.selected.content(),
            "levels": [None if one is None else one.content() for one in self.levels],
            "label": self.label.tolist(),
            "radius": [repr(radius) for radius in self.radius.tolist()],
            "assumptions": [asdict(assumption) for assumption in self.assumptions],
        }
        _document.write(path, "dual certificate", _FORMAT, kept)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DualCertificate":
        """Read a certificate back, to the CPU.

        Raises:
            ValueError: The file is not as it was written, or does not follow from its votes.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "dual certificate", _FORMAT)
        try:
            read = Certificate.of_content
            levels = (None if one is None else read(one) for one in found["levels"])
            certificate = cls(read(found["selected"]), tuple(levels))
            radius = [repr(one) for one in certificate.radius.tolist()]
            if (certificate.label.tolist(), radius) != (found["label"], found["radius"]):
                raise ValueError("labels and radii are not those that follow from the votes")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a dual certificate: {error}") from error
        return certificate

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Heading, rows and closing line; radii are floored."""
        size, abstained = len(self), int(self.abstained.sum())
        heading = (
            f"Dual certificate of {size} input{'s' * (size != 1)}, {abstained} abstained: "
            f"{self.norm} radius in {self.unit}, one of {len(self.levels)} levels by a vote under "
            f"{self.law}, alpha = {self.alpha:g} for each"
        )
        rows = [["index", "level", "label", "radius", "level to", "label to"]]
        own = self._gathered(lambda one: one.radius, 0.0)
        columns = (self.index, self.level, self.label, self.radius, self.selected.radius, own)
        for number, *named, total, level, label in zip(
            *(column.tolist()[:_SHOWN] for column in columns), strict=True
        ):
            names = ["abstain" if one == ABSTAIN else str(one) for one in named]
            rows.append([str(number), *names, *map(floored, (total, level, label))])
        more = f"... and {size - _SHOWN} more. " if size > _SHOWN else ""
        return heading, rows, f"{more}Assumes {', '.join(map(str, self.assumptions))}."

    def __repr__(self) -> str:
        return lined(*self._table())

    def _repr_html_(self) -> str:
        return tabled(*self._table())


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
        >>> certificate.level.tolist(), [floored(r, 1) for r in certificate.radius.tolist()]
        ([0, 1], ['0.4', '1.2'])
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
            if _measure(level.law) != _measure(selector.law):
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
    radii = torch.stack([one.radius.where(one.label == y, 0.0) for one in certificates])
    best = radii.argmax(dim=0)
    return best.where(radii.amax(dim=0) > 0, len(certificates) - 1)


def _measure(law: Measure) -> tuple[str, str, str]:
    return law.norm, law.space, law.unit
