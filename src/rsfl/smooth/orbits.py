"""Orbits in votes: the ballot that holds their tests, and the certificate that is read from it."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from rsfl import _document
from rsfl._checks import number
from rsfl._text import floored, lined, raised, tabled
from rsfl.assumptions import (
    FRESH_VOTES,
    ONE_FUNCTION,
    ONE_RESAMPLING,
    OPTIONAL_STOPPING,
    ORBIT_COVER,
    PER_INPUT,
    SPLIT_ALPHA,
    Assumption,
    spot_checked,
)
from rsfl.noise import Law
from rsfl.orbit import Orbit
from rsfl.smooth.orbit_documents import orbit_from, orbit_to, places
from rsfl.smooth.orbit_tests import OrbitTests
from rsfl.smooth.reading import ABSTAIN

__all__ = ["OrbitBallot", "OrbitCertificate"]

_FORMAT = 1


_SHOWN = 10


@dataclass(frozen=True, eq=False)
class OrbitBallot:
    """Votes about all pictures of an orbit, for a batch of B inputs: evidence, from which any
    reading can be made.

    Attributes:
        chosen: (B,) int64, the label that the pilot votes chose.
        pilot: (B,) int64, how many pilot votes were cast.
        index: (B,) int64, which inputs these are.
        tests: The tests of each input.
        shape: The shape of one image.
        orbit: The family of pictures.
        law: The noise.
        seed: Seed of the run.
        spot_checked: Whether the model was asked twice, alone and in a batch, before it voted.
    """

    chosen: Tensor
    pilot: Tensor
    index: Tensor
    tests: tuple[OrbitTests, ...]
    shape: tuple[int, ...]
    orbit: Orbit
    law: Law
    seed: int
    spot_checked: bool = False

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def votes(self) -> Tensor:
        """(B,) int64, votes that each input took, pilot included."""
        return self.pilot + torch.tensor([int(tests.trials.sum()) for tests in self.tests])

    @property
    def centres(self) -> Tensor:
        """(B,) int64, how many pictures were voted on, pilots apart."""
        return torch.tensor([len(tests) for tests in self.tests], dtype=torch.int64)

    def __getitem__(self, key: SupportsIndex | slice | Sequence[int]) -> Self:
        """The ballot of some of the inputs; a single number gives a batch of one."""
        kept = places(key, len(self))
        return replace(
            self,
            chosen=self.chosen[kept],
            pilot=self.pilot[kept],
            index=self.index[kept],
            tests=tuple(self.tests[place] for place in kept),
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One ballot for the inputs of several, which must agree in everything else."""
        if not parts:
            raise ValueError(f"parts must not be empty, got {parts!r}")
        first = parts[0]
        for part in parts[1:]:
            for name in ("shape", "orbit", "law", "seed", "spot_checked"):
                if getattr(part, name) != getattr(first, name):
                    raise ValueError(
                        f"parts must agree in {name}, got {getattr(first, name)} and "
                        f"{getattr(part, name)}"
                    )
        return replace(
            first,
            chosen=torch.cat([part.chosen for part in parts]),
            pilot=torch.cat([part.pilot for part in parts]),
            index=torch.cat([part.index for part in parts]),
            tests=tuple(tests for part in parts for tests in part.tests),
        )

    def certificate(self, *, allowance: float = 0.0, alpha: float = 0.001) -> "OrbitCertificate":
        """What the votes promise, for pictures within ``allowance`` of one of the family.

        No model is called. The tests stay valid wherever the voting stopped, so the allowance and
        alpha may be others than those that the votes were planned for, if they are chosen without a
        look at the votes.

        Args:
            allowance: l2 distance, at least 0, that a picture may be from one of the family.
            alpha: Probability, for each input, with which the certificate may be wrong.
        """
        allowance = number("allowance", allowance, 0, np.inf, open_high=True)
        alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
        held = [
            tests.passed(self.law, allowance=allowance, alpha=alpha, dim=math.prod(self.shape))
            for tests in self.tests
        ]
        label = torch.where(torch.tensor(held, dtype=torch.bool), self.chosen, ABSTAIN)
        return OrbitCertificate(
            label=label,
            ballot=self,
            allowance=allowance,
            alpha=alpha,
            assumptions=(
                FRESH_VOTES,
                OPTIONAL_STOPPING,
                SPLIT_ALPHA,
                PER_INPUT,
                ORBIT_COVER,
                ONE_RESAMPLING,
                spot_checked(ONE_FUNCTION) if self.spot_checked else ONE_FUNCTION,
                *self.law.assumptions,
            ),
        )

    def confirmed(self, x: Tensor) -> Tensor:
        """Whether the geometry is that of these images: no picture of a cell is bounded to be
        farther from its centre than was said.

        Args:
            x: The images (B, C, H, W) that were voted on.

        Returns:
            (B,) bool; a cell without a centre has nothing to confirm.
        """
        if tuple(x.shape) != (len(self), *self.shape):
            raise ValueError(f"x must have shape {(len(self), *self.shape)}, got {tuple(x.shape)}")
        pairs = zip(x, self.tests, strict=True)
        found = [tests.confirmed(self.orbit, image[None]) for image, tests in pairs]
        return torch.tensor(found, dtype=torch.bool)

    def document(self) -> dict[str, Any]:
        """All of it as JSON takes it: what a log keeps."""
        return orbit_to(**{one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def of_document(cls, found: Mapping[str, Any]) -> Self:
        """The ballot that :meth:`document` wrote.

        Raises:
            ValueError: It is no such document.
        """
        try:
            return cls(**orbit_from(found))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no ballot of an orbit: {error}") from error


@dataclass(frozen=True, repr=False)
class OrbitCertificate:
    """What a smoothed classifier promises about all pictures of an orbit.

    With probability at least 1 - alpha for each input x: where ``label`` is not ``ABSTAIN``, the
    smoothed classifier gives that label to T(x, t) + d for **every** t in the box of the orbit and
    **every** d with an l2 norm of at most ``allowance``, under the named ``assumptions``. T(x, t)
    is the picture itself: somebody may make it and hand it in.

    Attributes:
        label: (B,) int64, the class of all pictures, or ``ABSTAIN``.
        ballot: The votes that it was read from.
        allowance: How far a picture that is handed in may be from one of the family, in l2.
        alpha: Failure probability for each input.
        assumptions: What the promise rests on.
    """

    label: Tensor
    ballot: OrbitBallot
    allowance: float
    alpha: float
    assumptions: tuple[Assumption, ...]

    @property
    def abstained(self) -> Tensor:
        """(B,) bool, where no statement is made."""
        return self.label == ABSTAIN

    @property
    def orbit(self) -> Orbit:
        """The family of pictures."""
        return self.ballot.orbit

    @property
    def law(self) -> Law:
        """The noise."""
        return self.ballot.law

    @property
    def index(self) -> Tensor:
        """(B,) int64, which inputs these are."""
        return self.ballot.index

    @property
    def votes(self) -> Tensor:
        """(B,) int64, votes that each input took, pilot included."""
        return self.ballot.votes

    @property
    def centres(self) -> Tensor:
        """(B,) int64, how many pictures were voted on, pilots apart."""
        return self.ballot.centres

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, key: SupportsIndex | slice | Sequence[int]) -> Self:
        """The certificate of some of the inputs; a single number gives a batch of one."""
        kept = places(key, len(self))
        return replace(self, label=self.label[kept], ballot=self.ballot[kept])

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One certificate for the inputs of several, which must agree in everything that is not per
        input."""
        if not parts:
            raise ValueError(f"parts must not be empty, got {parts!r}")
        first = parts[0]
        for part in parts[1:]:
            for name in ("allowance", "alpha", "assumptions"):
                if getattr(part, name) != getattr(first, name):
                    raise ValueError(
                        f"parts must agree in {name}, got {getattr(first, name)} and "
                        f"{getattr(part, name)}"
                    )
        label = torch.cat([part.label for part in parts])
        return replace(first, label=label, ballot=OrbitBallot.cat([part.ballot for part in parts]))

    def to_dict(self) -> dict[str, Any]:
        """NumPy arrays for what there is per input, plain values for the rest."""
        return {
            "label": self.label.numpy(),
            "abstained": self.abstained.numpy(),
            "centres": self.centres.numpy(),
            "votes": self.votes.numpy(),
            "index": self.index.numpy(),
            "orbit": repr(self.orbit),
            "allowance": self.allowance,
            "alpha": self.alpha,
            "law": repr(self.law),
            "seed": self.ballot.seed,
            "assumptions": [str(assumption) for assumption in self.assumptions],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate with its votes to a JSON file, whole and with a checksum.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            TypeError: The law or the orbit is of a kind that has no name here.
            OSError: The file cannot be written.
        """
        content = {
            "label": self.label.tolist(),
            "ballot": self.ballot.document(),
            "allowance": self.allowance,
            "alpha": self.alpha,
            "assumptions": [asdict(assumption) for assumption in self.assumptions],
        }
        _document.write(path, "orbit certificate", _FORMAT, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "OrbitCertificate":
        """Read a certificate back: the votes are read again, and must say what the file says.

        Args:
            path: A file that :meth:`save` wrote.

        Raises:
            ValueError: The file is not as it was written, or its votes do not carry its labels.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "orbit certificate", _FORMAT)
        try:
            ballot = OrbitBallot.of_document(found["ballot"])
            certificate = ballot.certificate(allowance=found["allowance"], alpha=found["alpha"])
            named = (*(Assumption(**one) for one in found["assumptions"]), *certificate.assumptions)
            if certificate.label.tolist() != found["label"]:
                raise ValueError("its votes do not carry its labels")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as an orbit certificate: {error}") from error
        unique = {assumption.id: assumption for assumption in named}
        return replace(certificate, assumptions=tuple(unique.values()))

    def _table(self) -> tuple[str, list[list[str]], str]:
        abstained = int(self.abstained.sum())
        box = ", ".join(
            f"{name} in [{raised(low)}, {floored(high)}]"
            for name, (low, high) in zip(self.orbit.parameters, self.orbit.box, strict=True)
        )
        heading = (
            f"OrbitCertificate of {len(self)} input{'s' * (len(self) != 1)}, {abstained} "
            f"abstained: every picture of {type(self.orbit).__name__} ({box}) and all within l2 "
            f"{floored(self.allowance)} of one, {self.law}, alpha = {self.alpha:g} for each"
        )
        rows = [["index", "label", "centres", "votes"]]
        for place in range(min(len(self), _SHOWN)):
            label = int(self.label[place])
            rows.append(
                [
                    str(int(self.index[place])),
                    "abstain" if label == ABSTAIN else str(label),
                    str(int(self.centres[place])),
                    str(int(self.votes[place])),
                ]
            )
        more = f"... and {len(self) - _SHOWN} more. " if len(self) > _SHOWN else ""
        named = ", ".join(dict.fromkeys(map(str, self.assumptions)))
        return heading, rows, f"{more}Assumes {named}."

    def __repr__(self) -> str:
        return lined(*self._table())

    def _repr_html_(self) -> str:
        return tabled(*self._table())
