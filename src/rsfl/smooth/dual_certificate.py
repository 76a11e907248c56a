"""What a selector of noise and the classifiers of its levels promise together."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rsfl import _document
from rsfl._batches import rows_of
from rsfl._text import floored, lined, tabled
from rsfl.assumptions import NAMED_LEVEL, Assumption
from rsfl.deform import Deformation
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.measure import Measure
from rsfl.smooth.reading import ABSTAIN

__all__ = ["DualCertificate", "measured"]

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
            if found is None:
                continue
            if _measured(found) != _measured(self.selected):
                raise ValueError(
                    f"levels must measure as the selector does, in {_measured(self.selected)}, got "
                    f"{_measured(found)}"
                )
            theirs, ours = found.inputs.cpu(), self.selected.inputs[told == level].cpu()
            if bool(((theirs != ours) & (theirs != 0) & (ours != 0)).any()):
                raise ValueError(
                    f"level {level} must be of the selector's inputs, got others under their index"
                )
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
    def inputs(self) -> Tensor:
        """(B,) int64, hashes of the inputs; 0 where they are unknown."""
        return self.selected.inputs

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


def measured(law: Measure) -> tuple[str, ...]:
    """What a law's distances are: norm, space and unit, and of parameters what they deform. Only
    where they agree may the smaller of two radii be taken."""
    plain = law.norm, law.space, law.unit
    return (*plain, law.warp) if isinstance(law, Deformation) else plain


def _measured(certificate: Certificate) -> tuple[str, ...]:
    """The same, the unit with the part of the input that is moved."""
    return (*measured(certificate.law), certificate.unit)
