"""One certificate for a threat against the training and a perturbed input: votes that say, beside
their label, which threats the label withstands."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rsfl import _document
from rsfl._checks import count, counts
from rsfl._text import floored, lined, tabled
from rsfl.assumptions import Assumption
from rsfl.smooth.ballot import Ballot
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.reading import ABSTAIN, Confidence
from rsfl.smooth.votes import Votes

__all__ = ["JointBallot", "JointCertificate", "checked_rung", "withstanding"]

_FORMAT = 1
_SHOWN = 10


def withstanding(threat: str) -> str:
    """What a vote had to meet, in words."""
    return f"certified against {threat}"


@dataclass(frozen=True)
class JointBallot:
    """Votes for pairs of a label and the highest rung that it withstands.

    Attributes:
        pairs: The votes, (B, K * rungs): column ``label * rungs + rung``.
        ladder: What each rung is, in words.
        assumptions: What the judgement of one noisy copy rests on.
        judge: Hash of the numbers that the judge holds, "" where it is unknown.
    """

    pairs: Ballot
    ladder: tuple[str, ...]
    assumptions: tuple[Assumption, ...] = ()
    judge: str = ""

    def __post_init__(self) -> None:
        columns = self.pairs.votes.counts.shape[1]
        if not self.ladder or columns % len(self.ladder):
            raise ValueError(
                f"pairs must have a column for each label and rung, got {columns} for "
                f"{len(self.ladder)} rungs"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def at(self, rung: int) -> Ballot:
        """The votes of those copies whose label withstands a rung; the others count as votes for
        no class."""
        rung = checked_rung(rung, self.ladder)
        selection = self.pairs.selection
        return replace(
            self.pairs,
            selection=None if selection is None else self._reached(selection, rung),
            votes=self._reached(self.pairs.votes, rung),
            condition=withstanding(self.ladder[rung]),
            judged=self.assumptions,
        )

    def _reached(self, votes: Votes, rung: int) -> Votes:
        by_rung = votes.counts.view(len(votes.counts), -1, len(self.ladder))
        reached = by_rung[:, :, rung:].sum(dim=2)
        return Votes(reached, votes.n - reached.sum(dim=1))

    def certificate(
        self,
        alpha: float = 0.001,
        *,
        rungs: Sequence[int] | None = None,
        together: bool = False,
        confidence: Confidence = "clopper-pearson",
    ) -> "JointCertificate":
        """A radius for each rung, from one set of votes.

        Args:
            alpha: Probability, for each input, with which the certificate may be wrong.
            rungs: Which rungs, ascending; all by default.
            together: Whether alpha is for all of the rungs at once, as for a curve over them, so
                that each gets its share of it; else it is for each rung by itself.
            confidence: ``clopper-pearson``, or ``hoeffding``, which is never tighter.
        """
        chosen = (
            tuple(range(len(self.ladder))) if rungs is None else _checked_rungs(rungs, self.ladder)
        )
        spent = alpha / len(chosen) if together else alpha
        steps = (self.at(rung).certificate(spent, confidence=confidence) for rung in chosen)
        return JointCertificate(self, tuple(steps), chosen, alpha, together, confidence)

    @classmethod
    def cat(cls, parts: Sequence["JointBallot"]) -> "JointBallot":
        """One ballot for the inputs of several, cast under the same conditions.

        Raises:
            ValueError: There is none, or they differ in what the votes were cast under.
        """
        if not parts:
            raise ValueError(f"parts must not be empty, got {parts!r}")
        for part in parts[1:]:
            for name in ("ladder", "assumptions", "judge"):
                if getattr(part, name) != getattr(parts[0], name):
                    raise ValueError(
                        f"parts must agree in {name}, got {getattr(parts[0], name)!r} and "
                        f"{getattr(part, name)!r}"
                    )
        return replace(parts[0], pairs=Ballot.cat([part.pairs for part in parts]))

    def document(self) -> dict[str, Any]:
        """What a file says of the ballot."""
        return {
            "pairs": self.pairs.document(),
            "ladder": list(self.ladder),
            "assumptions": [asdict(one) for one in self.assumptions],
            **({"judge": self.judge} if self.judge else {}),
        }

    @classmethod
    def of_document(cls, content: dict[str, Any]) -> "JointBallot":
        """The ballot that :meth:`document` described."""
        named = tuple(Assumption(**one) for one in content["assumptions"])
        pairs, ladder = Ballot.of_document(content["pairs"]), tuple(content["ladder"])
        return cls(pairs, ladder, named, content.get("judge", ""))


def checked_rung(rung: int, ladder: Sequence[str]) -> int:
    """``rung``, if the ladder has it."""
    found = count("rung", rung)
    if found >= len(ladder):
        raise ValueError(f"rung must be from 0 to {len(ladder) - 1}, got {rung!r}")
    return found


def _checked_rungs(rungs: Sequence[int], ladder: Sequence[str]) -> tuple[int, ...]:
    found = counts("rungs", list(rungs))
    if found.ndim != 1 or not found.size or (found[1:] <= found[:-1]).any():
        raise ValueError(f"rungs must be at least one, ascending, got {rungs!r}")
    return tuple(checked_rung(one, ladder) for one in found.tolist())


@dataclass(frozen=True, repr=False)
class JointCertificate:
    """What the vote of noisy copies of a judged classifier promises, rung by rung.

    With probability at least 1 - alpha for each input (and for each rung, or for all of ``rungs``
    at once where ``together``): whatever the threat of the rung has done to the training, every
    input within ``radius(rung)`` gets ``label(rung)`` from the vote of noisy copies of the model
    that came of it. That vote is what has to be used. Nothing but sampling is in alpha: the
    judgement of one copy is no estimate.

    Attributes:
        ballot: The votes.
        steps: One certificate a rung.
        rungs: Which rungs those are.
        alpha: Failure probability for each input.
        together: Whether that is for all of the rungs at once.
        confidence: How probabilities were bounded.
    """

    ballot: JointBallot
    steps: tuple[Certificate, ...]
    rungs: tuple[int, ...]
    alpha: float
    together: bool
    confidence: Confidence

    def at(self, rung: int) -> Certificate:
        """The certificate of one rung.

        Raises:
            ValueError: That rung was not asked for.
        """
        if rung not in self.rungs:
            raise ValueError(f"rung must be one of {list(self.rungs)}, got {rung!r}")
        return self.steps[self.rungs.index(rung)]

    def label(self, rung: int) -> Tensor:
        """(B,) int64, the label at a rung, or ``ABSTAIN``."""
        return self.at(rung).label

    def radius(self, rung: int) -> Tensor:
        """(B,) float64, how far the input may move while the threat of a rung is withstood."""
        return self.at(rung).radius

    def reach(self, radius: float = 0.0) -> Tensor:
        """(B,) int64, the highest of the rungs up to which each is certified at a radius, with one
        label; -1 where the first is not.

        It holds with probability at least 1 - alpha, though every rung was read: they are tested in
        their order, and the first that fails ends it.
        """
        highest = torch.full((len(self),), -1, device=self.steps[0].label.device)
        held = torch.ones_like(highest, dtype=torch.bool)
        for rung, step in zip(self.rungs, self.steps, strict=True):
            held &= (step.label == self.steps[0].label) & ~step.abstained & (step.radius >= radius)
            highest = torch.where(held, rung, highest)
        return highest

    @property
    def ladder(self) -> tuple[str, ...]:
        """What each of the rungs is, in words."""
        return tuple(self.ballot.ladder[rung] for rung in self.rungs)

    @property
    def law(self) -> Any:
        """The noise."""
        return self.steps[0].law

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What the promise rests on."""
        return self.steps[0].assumptions

    def __len__(self) -> int:
        return len(self.ballot)

    def __getitem__(self, key: Any) -> "JointCertificate":
        """The certificate of some of the inputs; a single number gives a batch of one."""
        steps = tuple(step[key] for step in self.steps)
        pairs = self.ballot.pairs[key]
        return replace(self, ballot=replace(self.ballot, pairs=pairs), steps=steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the votes, and how they were read, to a JSON file with a checksum: labels and
        radii are derived again by whoever reads it.

        Raises:
            TypeError: The law cannot be named.
            OSError: The file cannot be written.
        """
        kept = {
            "ballot": self.ballot.document(),
            "rungs": list(self.rungs),
            "alpha": self.alpha,
            "together": self.together,
            "confidence": self.confidence,
            "label": [step.label.tolist() for step in self.steps],
            "radius": [[repr(r) for r in step.radius.tolist()] for step in self.steps],
        }
        _document.write(path, "joint certificate", _FORMAT, kept)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "JointCertificate":
        """Read a certificate back, to the CPU.

        Raises:
            ValueError: The file is not as it was written, its law is not known here, or its labels
                and radii do not follow from its votes.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "joint certificate", _FORMAT)
        try:
            certificate = JointBallot.of_document(found["ballot"]).certificate(
                found["alpha"],
                rungs=found["rungs"],
                together=found["together"],
                confidence=found["confidence"],
            )
            certificate._compare(found)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a joint certificate: {error}") from error
        return certificate

    def _compare(self, found: dict[str, Any]) -> None:
        """Raise ValueError where a file says something else than follows from its votes."""
        for at, step in enumerate(self.steps):
            for name, here in (("label", step.label.tolist()), ("radius", step.radius.tolist())):
                there = [float(value) for value in found[name][at]]
                for i, (ours, theirs) in enumerate(zip(here, there, strict=True)):
                    if ours != theirs:
                        raise ValueError(
                            f"{name} of input {i} at rung {self.rungs[at]} is {theirs!r} there, "
                            f"and {ours!r} follows from the votes"
                        )

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Heading, rows and closing line; radii are floored."""
        each = "all threats at once" if self.together else "each threat"
        heading = (
            f"Joint certificate of {len(self)} input{'s' * (len(self) != 1)}: {self.law.norm} "
            f"radius in {self.law.unit} under {self.law} for each of {len(self.rungs)} threats, "
            f"alpha = {self.alpha:g} for each input and {each}"
        )
        shown = self._shown()
        rows = [["index", "label", *(self.ballot.ladder[rung] for rung in shown)]]
        for i in range(min(len(self), _SHOWN)):
            label = int(self.steps[0].label[i])
            radii = [floored(float(self.radius(rung)[i])) for rung in shown]
            name = "abstain" if label == ABSTAIN else str(label)
            rows.append([str(int(self.steps[0].index[i])), name, *radii])
        more = f"... and {len(self) - _SHOWN} more. " if len(self) > _SHOWN else ""
        named = ", ".join(dict.fromkeys(map(str, self.assumptions)))
        return heading, rows, f"{more}Assumes {named}."

    def _shown(self) -> list[int]:
        """At most six rungs, from the first to the last."""
        last = len(self.rungs) - 1
        places = sorted({round(last * part / 5) for part in range(6)})
        return [self.rungs[place] for place in places]

    def __repr__(self) -> str:
        return lined(*self._table(), width=None)

    def _repr_html_(self) -> str:
        return tabled(*self._table())
