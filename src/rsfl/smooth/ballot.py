"""Evidence: votes that were counted, and what they were cast under. Read, it is a certificate."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from rsfl import _document
from rsfl._batches import checked_index, rows_of
from rsfl._checks import count, level, stored
from rsfl.assumptions import Assumption
from rsfl.noise import Law
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.documents import CONDITIONS, evidence_from, evidence_to, merged
from rsfl.smooth.reading import (
    AtRadius,
    ByCount,
    Confidence,
    Counted,
    MostVoted,
    Reading,
    RunnerUp,
    Sequential,
    allowed,
    assumed,
)
from rsfl.smooth.votes import Votes

__all__ = ["FORMAT", "Ballot"]

FORMAT = 1


@dataclass(frozen=True)
class Ballot:
    """The votes on B inputs. Nothing of it depends on how it is read: any number of certificates
    may follow from one ballot, and none of them asks the model again.

    The best of several readings holds at the sum of their alphas: choose before you look.

    Attributes:
        law: The noise under which the votes were cast.
        selection: Votes that select the class; None where none were cast, which leaves
            :meth:`prediction`.
        votes: Other votes, that bound its probability. They share no draw with the selection.
        index: (B,) int64, which inputs these are; 0 ... B - 1 by default.
        dim: Number of coordinates of one input's noise.
        seed: Seed of the draws.
        rule: What stopped the votes; None where their number was fixed before they were seen.
        inputs: (B,) int64, hashes of the inputs; 0 where they are unknown.
        model: Fingerprint of the model, "" where it is unknown.
        spot_checked: Whether the model was asked twice, alone and in a batch, before it voted.
        condition: What a vote had to meet to count, beside its label; votes that missed it are
            among the invalid ones. Such votes bound no rival. "" where nothing was asked.
        touched: Which part of the inputs the noise was added to, "" where it was all of them.
        judged: What the judgement rests on that says whether a vote met the condition.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> votes = [Votes(torch.tensor([[n, 0]])) for n in (100, 1000)]
        >>> ballot = Ballot(Gaussian(0.5), *votes)
        >>> [f"{float(ballot.certificate(alpha=a).radius):.3f}" for a in (0.05, 0.001)]
        ['1.374', '1.232']
    """

    law: Law
    selection: Votes | None
    votes: Votes
    index: Tensor = None  # type: ignore[assignment]  # filled in below
    dim: int = 1
    seed: int = 0
    rule: Sequential | None = None
    inputs: Tensor = None  # type: ignore[assignment]  # likewise
    model: str = ""
    spot_checked: bool = False
    condition: str = ""
    touched: str = ""
    judged: tuple[Assumption, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.law, Law):
            raise TypeError(f"law must be a noise.Law, got {self.law!r}")
        shape = _shape("votes", self.votes)
        if self.selection is not None and _shape("selection", self.selection) != shape:
            raise ValueError(
                f"selection must be of the same inputs and classes as votes, {tuple(shape)}, got "
                f"{tuple(self.selection.counts.shape)}"
            )
        device = self.votes.counts.device
        stored(
            self,
            index=checked_index(self.index, shape[0]).to(device),
            dim=count("dim", self.dim, 1),
            seed=count("seed", self.seed),
            inputs=self.votes.invalid * 0 if self.inputs is None else self.inputs.to(device),
        )

    def __len__(self) -> int:
        return len(self.votes.counts)

    def __getitem__(self, key: SupportsIndex | slice | Tensor | Sequence[int]) -> "Ballot":
        """The ballot of some of the inputs; a single number gives a batch of one."""
        rows = rows_of(key, len(self), self.index.device)

        def some(votes: Votes) -> Votes:
            return Votes(votes.counts[rows], votes.invalid[rows])

        return replace(
            self,
            selection=None if self.selection is None else some(self.selection),
            votes=some(self.votes),
            index=self.index[rows],
            inputs=self.inputs[rows],
        )

    def certificate(
        self,
        alpha: float = 0.001,
        *,
        runner_up: RunnerUp = "complement",
        confidence: Confidence = "clopper-pearson",
    ) -> Certificate:
        """The largest radii that the votes allow.

        Args:
            alpha: Probability, for each input, with which the certificate may be wrong.
            runner_up: ``complement`` takes 1 - p_A for the strongest rival (Cohen et al.);
                ``bounded`` bounds it by its own votes, which certifies more where many classes
                share the rest.
            confidence: ``clopper-pearson``, or ``hoeffding``, which is never tighter.

        Returns:
            The certificate; it abstains where no radius is certified.

        Raises:
            ValueError: An argument is out of its range, or a sequential test stopped the votes.
        """
        return self._read(ByCount(runner_up, confidence), level("alpha", alpha))

    def certificate_at(
        self, radius: float | None = None, alpha: float | None = None
    ) -> Certificate:
        """Whether each input is certified at one radius, by the sequential test: the one reading
        that votes allow which were looked at while they came in.

        It holds whatever stopped the votes. Other radii and levels than the test's own are as good
        where they were chosen without a look at the votes.

        Args:
            radius: The radius asked for; that of the rule by default.
            alpha: Probability, for each input, with which the certificate may be wrong; that of the
                rule by default.

        Returns:
            A certificate of exactly ``radius`` where it is certified, ABSTAIN and 0 elsewhere.

        Raises:
            ValueError: An argument is out of its range, or missing where there is no rule.
        """
        if self.rule is None and (radius is None or alpha is None):
            raise ValueError(
                f"radius and alpha must be given for votes whose number was fixed, got "
                f"{radius!r} and {alpha!r}"
            )
        asked = self.rule.radius if radius is None and self.rule else radius
        spent = self.rule.alpha if alpha is None and self.rule else alpha
        return self._read(AtRadius(asked), level("alpha", spent))  # type: ignore[arg-type]

    def prediction(self, alpha: float = 0.001) -> Certificate:
        """The most voted class where it is significantly ahead of the second, without a radius.

        Args:
            alpha: Probability, for each input, of a class that is not the most probable one.

        Returns:
            A certificate with radius 0.

        Raises:
            ValueError: alpha is out of its range, or the votes were not of a fixed number or had
                to meet a condition.
        """
        bare = replace(self, selection=None)
        return bare._read(MostVoted(), level("alpha", alpha))

    def _read(self, reading: Reading, alpha: float) -> Certificate:
        allowed(reading, self.rule, self.condition)
        if self.selection is None and not isinstance(reading, MostVoted):
            raise ValueError(
                "selection must hold votes that select the class, got None: only prediction "
                "does without"
            )
        selection = self._selection()
        counted = Counted(
            selection.counts.cpu().numpy(),
            self.votes.counts.cpu().numpy(),
            self.votes.n.cpu().numpy(),
        )
        return Certificate.read_from(
            reading.numbers(counted, self.law, self.dim, alpha),
            selection,
            self.votes,
            self.law,
            alpha=alpha,
            reading=reading,
            assumptions=assumed(
                reading,
                self.law,
                spot_checked=self.spot_checked,
                touched=self.touched,
                condition=self.condition,
                judged=self.judged,
            ),
            **self._conditions(),
        )

    def _selection(self) -> Votes:
        return self.selection or Votes(torch.zeros_like(self.votes.counts))

    def _conditions(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rule", *CONDITIONS)}

    def document(self) -> dict[str, Any]:
        """What a file, or a line of a vote log, says of the ballot."""
        return evidence_to(
            law=self.law, selection=self._selection(), votes=self.votes, **self._conditions()
        )

    @classmethod
    def of_document(cls, *contents: dict[str, Any]) -> "Ballot":
        """The ballot that :meth:`document` described; of several, those of different inputs under
        the same conditions.

        Raises:
            ValueError: The votes do not add up, the law is not known here, or the conditions
                differ.
            KeyError, TypeError: Something is missing, or of another type.
        """
        found = evidence_from(merged(contents))
        if not bool(found["selection"].n.any()) and bool(found["votes"].n.any()):
            found["selection"] = None
        return cls(**found)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ballot to a JSON file, whole and with a checksum.

        Raises:
            TypeError: The law cannot be named.
            OSError: The file cannot be written.
        """
        _document.write(
            path, "ballot", FORMAT, self.document() | {"versions": _document.versions()}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ballot":
        """Read a ballot back, to the CPU.

        Raises:
            ValueError: The file is not as it was written, or its law is not known here.
            OSError: The file cannot be read.
        """
        content = _document.read(path, "ballot", FORMAT)
        try:
            return cls.of_document(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a ballot: {error}") from error

    @classmethod
    def cat(cls, parts: Sequence["Ballot"]) -> "Ballot":
        """One ballot for the inputs of several, cast under the same conditions.

        Raises:
            ValueError: There is none, or they differ in what the votes were cast under.
        """
        if not parts:
            raise ValueError(f"parts must not be empty, got {parts!r}")
        first = parts[0]
        shared = (name for name in CONDITIONS if name not in ("index", "inputs"))
        for name in ("law", "rule", *shared):
            for part in parts[1:]:
                if getattr(part, name) != getattr(first, name):
                    raise ValueError(
                        f"parts must agree in {name}, got {getattr(first, name)} and "
                        f"{getattr(part, name)}"
                    )
        return replace(
            first,
            selection=None
            if any(part.selection is None for part in parts)
            else _joined([part._selection() for part in parts]),
            votes=_joined([part.votes for part in parts]),
            index=torch.cat([part.index for part in parts]),
            inputs=torch.cat([part.inputs for part in parts]),
        )


def _joined(parts: Sequence[Votes]) -> Votes:
    return Votes(torch.cat([p.counts for p in parts]), torch.cat([p.invalid for p in parts]))


def _shape(name: str, votes: object) -> torch.Size:
    """(B, K), if these are votes."""
    if not isinstance(votes, Votes):
        raise TypeError(f"{name} must be smooth.Votes, got {type(votes).__name__}")
    counts, invalid = votes.counts, votes.invalid
    for part, tensor, ndim in (("counts", counts, 2), ("invalid", invalid, 1)):
        if tensor.dtype != torch.int64 or tensor.ndim != ndim:
            raise TypeError(
                f"{name}.{part} must be int64 of {ndim} dimension{'s' * (ndim - 1)}, got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            )
    if counts.shape[1] < 1 or len(counts) != len(invalid):
        raise ValueError(
            f"{name} must hold counts (B, K) and invalid (B,), got {tuple(counts.shape)} and "
            f"{tuple(invalid.shape)}"
        )
    if bool((counts < 0).any()) or bool((invalid < 0).any()):
        raise ValueError(f"{name} must hold no negative number, got {votes}")
    return counts.shape
