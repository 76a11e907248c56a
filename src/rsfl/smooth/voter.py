"""From inputs to ballots, whatever it is that the votes come from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import bounds
from rsfl._batches import checked_index
from rsfl._checks import Float64, count, level
from rsfl._fingerprint import Fingerprint, backend_fingerprint, input_hash, model_fingerprint
from rsfl._models import as_given, evaluating
from rsfl.noise import Law
from rsfl.smooth.ballot import Ballot
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.reading import ByCount, Confidence, MostVoted, RunnerUp, Sequential
from rsfl.smooth.spot import probes
from rsfl.smooth.votes import BLOCK, ESTIMATION, SELECTION, Votes

__all__ = ["Voter", "count_until", "looks"]


class Voter(ABC):
    """Something under noise that can be asked for votes, and so for predictions and certificates.

    A subclass says what the noise is added to, and counts votes: :meth:`count` is all that a
    backend of one's own has to define. It is given inputs that were checked.

    Args:
        law: The noise.
        num_classes: How many classes there are to vote for, at least 1.
        model: The model that votes, if it is one of torch; None where something else does.
        spot_check: Ask the model a few questions before its first votes, to see that it is one
            function of a single input.
    """

    default_n: ClassVar[int] = 100_000
    """Votes for estimation where the caller names no number; fewer where each costs a model."""

    def __init__(
        self,
        law: Law,
        num_classes: int,
        *,
        model: nn.Module | None = None,
        spot_check: bool = True,
    ) -> None:
        if not isinstance(law, Law):
            raise TypeError(f"law must be a noise.Law, got {law!r}")
        self.law = law
        self.num_classes = count("num_classes", num_classes, 1)
        self.model = model
        self.spot_check = spot_check
        self._spotted = False

    def __repr__(self) -> str:
        model = "" if self.model is None else f"{type(self.model).__name__}, "
        return f"{type(self).__name__}({model}{self.law}, num_classes={self.num_classes})"

    @abstractmethod
    def count(
        self,
        x: Tensor,
        index: Tensor,
        start: int,
        stop: int,
        *,
        seed: int,
        stage: int = ESTIMATION,
        batch_size: int | None = None,
    ) -> Votes:
        """The votes of the samples ``start`` ... ``stop - 1`` of every input.

        The noise of a sample is to be a function of (seed, index of its input, stage, number of the
        sample) and of nothing else: not of the batch, of neighbours or of what was counted before.

        Args:
            x: Inputs (B, ...), checked.
            index: (B,) int64 on the CPU, which inputs these are.
            start: First sample, at least 0.
            stop: One past the last sample.
            seed: Seed of the draws.
            stage: ``SELECTION`` or ``ESTIMATION``, which share no draw.
            batch_size: Noisy inputs per forward call; None chooses one that fits.

        Returns:
            The votes, on the device of ``x``.
        """

    def dim(self, x: Tensor) -> int:
        """The number of coordinates of the noise that one vote sees."""
        return math.prod(self.law.noise_shape(x.shape[1:]))

    def checked(self, x: Tensor) -> Tensor:
        """The inputs, if certificates for them would mean something.

        Raises:
            ValueError: They are not finite, on another device than the model, or the law does not
                apply to them.
            TypeError: They are no tensor of numbers.
        """
        x = self.law.checked(x)
        own = () if self.model is None else self.model.parameters()
        device = next((tensor.device for tensor in own), x.device)
        if device != x.device:
            raise ValueError(f"x must be on the model's device {device}, got {x.device}")
        return x

    def spot(self, x: Tensor) -> None:  # noqa: B027
        """Ask the model a few questions about the first of these inputs.

        Raises:
            ValueError: It is not one function of a single input.
        """

    @property
    def spot_checked(self) -> bool:
        """Whether votes are cast only after the model was asked."""
        return self.spot_check and self.model is not None

    def fingerprint(self, x: Tensor) -> Fingerprint:
        """What tells this voter from others: its model, and what it answers about one input
        (1, ...)."""
        if self.model is None:
            told = self.count(x, torch.zeros(1, dtype=torch.int64), 0, BLOCK, seed=0)
            return backend_fingerprint(self, [told.counts, told.invalid])
        rows = as_given(self.model, probes(x))
        with evaluating(self.model), torch.random.fork_rng([x.device] if x.is_cuda else []):
            answers = self.model(rows.clone())
        return model_fingerprint(self.model, [answers])

    def ballot(
        self,
        x: Tensor,
        *,
        n0: int = 100,
        n: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
    ) -> Ballot:
        """Count votes whose number is fixed; what they promise is read from the ballot, as often as
        one likes.

        Args:
            x: Inputs (B, ...), finite; one of them alone is ``x[None]``.
            n0: Votes for selection; 0 for a ballot that only predicts.
            n: Votes for estimation; ``default_n`` if None.
            batch_size: Noisy inputs per forward call, or inputs where the parameters carry noise;
                None chooses one that fits.
            seed: Seed of the draws. They depend on it, on ``index`` and on nothing else.
            index: (B,) which inputs these are; 0 ... B - 1 by default.

        Returns:
            The ballot, on the device of x.

        Raises:
            ValueError: An argument is out of its range; or the model is not one function of a
                single input, as far as the spot check tells.
            TypeError: x or the logits are not tensors of numbers.
        """
        n0, n = count("n0", n0), count("n", self.default_n if n is None else n, 1)
        x, index, seed = self._ready(x, index, seed)
        self._ask(x)
        selection = None
        if n0:
            selection = self.count(
                x, index, 0, n0, seed=seed, stage=SELECTION, batch_size=batch_size
            )
        votes = self.count(x, index, 0, n, seed=seed, batch_size=batch_size)
        return self._cast(x, index, seed, selection, votes)

    def ballot_at(
        self,
        x: Tensor,
        radius: float,
        *,
        n0: int = 100,
        alpha: float = 0.001,
        n_max: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
    ) -> Ballot:
        """Count as few votes as it takes to decide whether each input is certified at ``radius``.

        A sequential test (:func:`rsfl.bounds.sequential_decision`) looks at the votes of each input
        after a fixed schedule of samples and drops inputs that are decided, or that even unanimous
        votes could no longer certify.

        Args:
            x: Inputs (B, ...), finite; one of them alone is ``x[None]``.
            radius: The radius asked for, at least 0, within what the law can certify.
            n0: Votes for selection, at least 1.
            alpha: Probability, for each input, with which the certificate may be wrong.
            n_max: Votes after which an undecided input is given up; ``default_n`` if None.
            batch_size: Noisy inputs per forward call; None chooses one that fits.
            seed: Seed of the draws.
            index: (B,) which inputs these are; 0 ... B - 1 by default.

        Returns:
            The ballot: ``certificate_at`` is the one reading that it allows.

        Raises:
            ValueError: An argument is out of its range, or n_max cannot certify the radius.
            TypeError: x or the logits are not tensors of numbers.
        """
        rule = Sequential(radius, alpha, self.default_n if n_max is None else n_max)
        n0 = count("n0", n0, 1)
        x, index, seed = self._ready(x, index, seed)
        p0 = self.law.probability(rule.radius, dim=self.dim(x))
        least = bounds.sequential_minimum_trials(p0, rule.alpha)
        if rule.n_max < least:
            raise ValueError(
                f"n_max must be at least {least} to certify radius={rule.radius!r} at "
                f"alpha={rule.alpha!r}, got {rule.n_max}"
            )
        self._ask(x)
        selection = self.count(x, index, 0, n0, seed=seed, stage=SELECTION, batch_size=batch_size)
        votes = count_until(
            lambda *part: self.count(*part, seed=seed, batch_size=batch_size),
            x,
            index,
            selection.counts.argmax(dim=1),
            p0,
            alpha=rule.alpha,
            n_max=rule.n_max,
        )
        return self._cast(x, index, seed, selection, votes, rule)

    def votes(
        self,
        x: Tensor,
        n: int,
        *,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """The classes that n noisy copies of each input vote for, (B, K) int64.

        The draws are those of :meth:`certify`'s estimation; the same seed and index give the same
        votes. Copies with non-finite logits do not vote.
        """
        n, seed = count("n", n, 1), count("seed", seed)
        x = self.checked(x)
        return self.count(
            x, checked_index(index, len(x)), 0, n, seed=seed, batch_size=batch_size
        ).counts

    def certify(  # noqa: PLR0913  # what ballot and reading take
        self,
        x: Tensor,
        *,
        n0: int = 100,
        n: int | None = None,
        alpha: float = 0.001,
        batch_size: int | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
        runner_up: RunnerUp = "complement",
        confidence: Confidence = "clopper-pearson",
    ) -> Certificate:
        """Select a class with n0 votes, bound its probability with n others, return its radius:
        :meth:`ballot` and its :meth:`~Ballot.certificate`.

        Args:
            x: Inputs (B, ...), finite; one of them alone is ``x[None]``.
            n0: Votes for selection, at least 1.
            n: Votes for estimation, enough to certify something at alpha; ``default_n`` if None.
            alpha: Probability, for each input, with which the certificate may be wrong.
            batch_size: Noisy inputs per forward call, or inputs where the parameters carry noise;
                None chooses one that fits.
            seed: Seed of the draws. They depend on it, on ``index`` and on nothing else.
            index: (B,) which inputs these are; 0 ... B - 1 by default.
            runner_up: ``complement`` takes 1 - p_A for the strongest rival (Cohen et al.);
                ``bounded`` bounds it by its own votes, which certifies more where many classes
                share the rest.
            confidence: ``clopper-pearson``, or ``hoeffding``, which is never tighter.

        Returns:
            The certificate; it abstains where no radius is certified.

        Raises:
            ValueError: An argument is out of its range, or n cannot certify anything; or the model
                is not one function of a single input, as far as the spot check tells.
            TypeError: x or the logits are not tensors of numbers.
        """
        alpha, n0 = level("alpha", alpha), count("n0", n0, 1)
        n = count("n", self.default_n if n is None else n, 1)
        ByCount(runner_up, confidence).enough(n, alpha)
        ballot = self.ballot(x, n0=n0, n=n, batch_size=batch_size, seed=seed, index=index)
        return ballot.certificate(alpha, runner_up=runner_up, confidence=confidence)

    def predict(
        self,
        x: Tensor,
        *,
        n: int = 1000,
        alpha: float = 0.001,
        batch_size: int | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
    ) -> Certificate:
        """The smoothed classifier's class where n votes tell it from the second, else ``ABSTAIN``;
        no radius: :meth:`ballot` and its :meth:`~Ballot.prediction`.

        Args:
            x: Inputs (B, ...), finite; one of them alone is ``x[None]``.
            n: Votes; enough to tell unanimity from chance at alpha.
            alpha: Probability, for each input, of returning a class that is not the most probable
                one.
            batch_size: Noisy inputs per forward call; None chooses one that fits.
            seed: Seed of the draws.
            index: (B,) which inputs these are; 0 ... B - 1 by default.

        Returns:
            A certificate with radius 0.

        Raises:
            ValueError: An argument is out of its range, or n cannot decide anything.
            TypeError: x or the logits are not tensors of numbers.
        """
        alpha, n = level("alpha", alpha), count("n", n, 1)
        MostVoted().enough(n, alpha)
        ballot = self.ballot(x, n0=0, n=n, batch_size=batch_size, seed=seed, index=index)
        return ballot.prediction(alpha)

    def certify_at(
        self,
        x: Tensor,
        radius: float,
        *,
        n0: int = 100,
        alpha: float = 0.001,
        n_max: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
    ) -> Certificate:
        """Decide whether each input is certified at least at ``radius``, with as few votes as the
        answer needs: :meth:`ballot_at`, which says what the arguments are, and its
        :meth:`~Ballot.certificate_at`.

        Returns:
            A certificate of exactly ``radius`` where it is certified, ABSTAIN and 0 elsewhere; its
            ``n`` says what each input took.
        """
        ballot = self.ballot_at(
            x,
            radius,
            n0=n0,
            alpha=alpha,
            n_max=n_max,
            batch_size=batch_size,
            seed=seed,
            index=index,
        )
        return ballot.certificate_at()

    def _ready(
        self, x: Tensor, index: Tensor | Sequence[int] | None, seed: int
    ) -> tuple[Tensor, Tensor, int]:
        """Inputs, indices and seed, checked."""
        seed, x = count("seed", seed), self.checked(x)
        return x, checked_index(index, len(x)), seed

    def _ask(self, x: Tensor) -> None:
        """Before the first votes, see what the model is."""
        if not self._spotted:
            self.spot(x)
            self._spotted = True

    def _cast(
        self,
        x: Tensor,
        index: Tensor,
        seed: int,
        selection: Votes | None,
        votes: Votes,
        rule: Sequential | None = None,
    ) -> Ballot:
        return Ballot(
            self.law,
            selection,
            votes,
            index,
            dim=self.dim(x),
            seed=seed,
            rule=rule,
            inputs=torch.tensor([input_hash(one) for one in x.cpu()]),
            spot_checked=self.spot_checked,
        )


def count_until(
    cast: Callable[[Tensor, Tensor, int, int], Votes],
    x: Tensor,
    index: Tensor,
    chosen: Tensor,
    p0: float | Float64,
    *,
    alpha: float,
    n_max: int,
) -> Votes:
    """Count votes until the sequential test has decided on every input, or no longer can.

    Args:
        cast: Counts the samples [start, stop) of inputs and their indices.
        x: Inputs (B, ...).
        index: Which inputs these are, on the CPU.
        chosen: (B,) int64, the class of each that is to be certified, on the device of x.
        p0: The probability that it has to exceed, for all inputs or (B,) for each.
        alpha: Level of the test.
        n_max: Votes after which an undecided input is given up.

    Returns:
        The votes; their number is for each input the one at which it was dropped.
    """
    found: Votes | None = None
    threshold = np.broadcast_to(np.asarray(p0, dtype=np.float64), (len(x),))
    undecided = torch.arange(len(x), device=x.device)
    for start, stop in looks(n_max):
        rows = undecided.cpu()
        new = cast(x[undecided], index[rows], start, stop)
        if found is None:
            found = Votes(new.counts.clone(), new.invalid.clone())
        else:
            found.counts[undecided] += new.counts
            found.invalid[undecided] += new.invalid
        successes = found.counts[undecided, chosen[undecided]].cpu().numpy()
        above = threshold[rows.numpy()]
        decision = np.asarray(bounds.sequential_decision(successes, stop, above, alpha))
        best = bounds.sequential_decision(successes + n_max - stop, n_max, above, alpha)
        hopeless = np.asarray(best) != 1
        undecided = undecided[torch.from_numpy((decision == 0) & ~hopeless).to(x.device)]
        if len(undecided) == 0:
            break
    assert found is not None  # there is always a first look
    return found


def looks(n_max: int) -> list[tuple[int, int]]:
    """The sequential test's schedule: spans of samples that end at whole blocks, each at most a
    tenth of what came before, and at n_max."""
    stops = [min(BLOCK, n_max)]
    while stops[-1] < n_max:
        grown = stops[-1] // BLOCK + max(1, stops[-1] // BLOCK // 10)
        stops.append(min(grown * BLOCK, n_max))
    return list(zip([0, *stops], stops, strict=False))
