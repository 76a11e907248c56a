"""Classifiers that judge themselves, and their smoothing: votes count beside their label what the
label withstands."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._checks import count
from rsfl._fingerprint import weights_hash
from rsfl.assumptions import Assumption
from rsfl.noise import Law
from rsfl.smooth.input import Smoother
from rsfl.smooth.joint import JointBallot, JointCertificate, checked_rung, withstanding
from rsfl.smooth.reading import Confidence

__all__ = ["JointSmoother", "Judge"]


class Judge(nn.Module, ABC):
    """A classifier that judges itself: beside its label at an input it says which threats against
    its training the label withstands there, by a certificate that no chance is in.

    The threats form a ladder: what withstands a rung withstands all rungs below it. On rung 0
    nobody attacks.

    Args:
        num_classes: Number of labels, K.
        ladder: What each rung is, in words, the lowest first.
        assumptions: What the judgement rests on.
    """

    def __init__(
        self, num_classes: int, ladder: Sequence[str], assumptions: Sequence[Assumption] = ()
    ) -> None:
        super().__init__()
        self.num_classes = count("num_classes", num_classes, 1)
        self.ladder = tuple(ladder)
        if not self.ladder:
            raise ValueError(f"ladder must have at least one rung, got {ladder!r}")
        self.assumptions = tuple(assumptions)

    @abstractmethod
    def judged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Label (B,) and highest rung (B,) that it withstands, both int64; -1 is no statement."""

    def forward(self, x: Tensor) -> Tensor:
        """One column a pair of label and rung, (B, K * rungs), and a one in the pair that was
        found; a row without a statement is NaN, which votes for nothing."""
        label, rung = self.judged(x)
        width = len(self.ladder)
        pairs = torch.zeros((len(x), self.num_classes * width), device=x.device)
        stated = (label >= 0) & (rung >= 0)
        place = torch.where(stated, label * width + rung.clamp(max=width - 1), 0)
        pairs.scatter_(1, place[:, None], 1.0)
        return pairs.masked_fill_(~stated[:, None], torch.nan)


class _Labels(nn.Module):
    """The labels of a judge, and no vote where they do not withstand a rung."""

    def __init__(self, judge: Judge, rung: int) -> None:
        super().__init__()
        self.judge, self.rung = judge, rung

    def forward(self, x: Tensor) -> Tensor:
        label, rung = self.judge.judged(x)
        withstood = (label >= 0) & (rung >= self.rung)
        labels = nn.functional.one_hot(label.clamp(min=0), self.judge.num_classes).float()
        return labels.masked_fill(~withstood[:, None], torch.nan)


class _AtRung(Smoother):
    """Votes of one rung: its ballots say what a vote had to meet to count, and what says so."""

    def __init__(self, judge: Judge, rung: int, law: Law, spot_check: bool) -> None:
        super().__init__(_Labels(judge, rung), law, judge.num_classes, spot_check=spot_check)
        self.condition, self.judged = withstanding(judge.ladder[rung]), judge.assumptions


class JointSmoother:
    """The vote of noisy copies of a judged classifier: one certificate for a threat against its
    training *and* a change of its input.

    Args:
        judge: Says of one input which threats its label withstands, such as
            ``fed.GroupJudge`` or ``fed.LinearJudge``.
        law: How inputs are perturbed.
        spot_check: Before the first votes ask the judge twice, alone and in a batch.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> class Sign(Judge):  # sure of itself far from 0
        ...     def judged(self, x):
        ...         return (x[:, 0] > 0).long(), x[:, 0].abs().floor().long()
        >>> smoother = JointSmoother(Sign(2, ["nobody", "one client"]), Gaussian(0.5))
        >>> certificate = smoother.certify(torch.tensor([[2.0]]), n=1000)
        >>> certificate.label(1).item(), bool(certificate.radius(1) < certificate.radius(0))
        (1, True)
    """

    def __init__(self, judge: Judge, law: Law, *, spot_check: bool = True) -> None:
        if not isinstance(judge, Judge):
            raise TypeError(
                f"judge must be a smooth.Judge, such as fed.GroupJudge(vote), got "
                f"{type(judge).__name__}"
            )
        self.judge, self.law = judge, law
        width = judge.num_classes * len(judge.ladder)
        self.pairs = Smoother(judge, law, width, spot_check=spot_check)

    def __repr__(self) -> str:
        return f"JointSmoother({type(self.judge).__name__}, {self.law})"

    def ballot(self, x: Tensor, **votes: Any) -> JointBallot:
        """The votes of noisy copies of each input, as :meth:`Smoother.ballot` counts them.

        Args:
            x: Inputs (B, ...), finite.
            votes: ``n0``, ``n``, ``seed``, ``index``, ``batch_size``.
        """
        held = {n: t for n, t in self.judge.state_dict().items() if isinstance(t, Tensor)}
        pairs, known = self.pairs.ballot(x, **votes), weights_hash(held)
        return JointBallot(pairs, self.judge.ladder, self.judge.assumptions, known)

    def certify(
        self,
        x: Tensor,
        *,
        alpha: float = 0.001,
        rungs: Sequence[int] | None = None,
        together: bool = False,
        confidence: Confidence = "clopper-pearson",
        **votes: Any,
    ) -> JointCertificate:
        """A radius for each rung, from one set of votes.

        Args:
            x: Inputs (B, ...), finite.
            alpha: Probability, for each input, with which the certificate may be wrong.
            rungs: Which rungs; all by default.
            together: Whether alpha is for all of the rungs at once.
            confidence: ``clopper-pearson`` or ``hoeffding``.
            votes: ``n0``, ``n``, ``seed``, ``index``, ``batch_size``.
        """
        ballot = self.ballot(x, **votes)
        return ballot.certificate(alpha, rungs=rungs, together=together, confidence=confidence)

    def at(self, rung: int) -> Smoother:
        """The smoother whose votes count at one rung only, for everything that smoothers do: its
        certificates hold whatever the threat of that rung did."""
        rung = checked_rung(rung, self.judge.ladder)
        return _AtRung(self.judge, rung, self.law, self.pairs.spot_check)
