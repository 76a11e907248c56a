"""From inputs to ballots, whatever it is that the votes come from."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rsfl import _heap, bounds
from rsfl._batches import checked_index
from rsfl._checks import count, level
from rsfl.smooth.ballot import Ballot
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.inputs import Batch, hashes
from rsfl.smooth.reading import ByCount, Confidence, MostVoted, RunnerUp, Sequential
from rsfl.smooth.sequential import count_until
from rsfl.smooth.source import Source
from rsfl.smooth.votes import SELECTION, Votes

__all__ = ["Voter"]


class Voter(Source):
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

    def ballot(
        self,
        x: Batch,
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
            x: Inputs (B, ...), finite; one of them alone is ``x[None]``. Of a structured model
                (:class:`Parts`, :class:`At`) the mapping or tuple that is a batch.
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
        with _heap.kept():  # giving it back twice would cost a tiny model as much as 100 votes
            if n0:
                selection = self.count(
                    x, index, 0, n0, seed=seed, stage=SELECTION, batch_size=batch_size
                )
            votes = self.count(x, index, 0, n, seed=seed, batch_size=batch_size)
        return self._cast(x, index, seed, selection, votes)

    def ballot_at(
        self,
        x: Batch,
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
        given, index, seed = self._ready(x, index, seed)
        p0 = self.law.probability(rule.radius, dim=self.dim(given))
        least = bounds.sequential_minimum_trials(p0, rule.alpha)
        if rule.n_max < least:
            raise ValueError(
                f"n_max must be at least {least} to certify radius={rule.radius!r} at "
                f"alpha={rule.alpha!r}, got {rule.n_max}"
            )
        self._ask(given)
        selection = self.count(
            given, index, 0, n0, seed=seed, stage=SELECTION, batch_size=batch_size
        )
        votes = count_until(
            lambda *part: self.count(*part, seed=seed, batch_size=batch_size),
            given,
            index,
            selection.counts.argmax(dim=1),
            p0,
            alpha=rule.alpha,
            n_max=rule.n_max,
        )
        return self._cast(given, index, seed, selection, votes, rule)

    def votes(
        self,
        x: Batch,
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
        x: Batch,
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
        x: Batch,
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
        x: Batch,
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
        self, x: Batch, index: Tensor | Sequence[int] | None, seed: int
    ) -> tuple[Any, Tensor, int]:
        """Inputs, indices and seed, checked."""
        seed, x = count("seed", seed), self.checked(x)
        return x, checked_index(index, len(x)), seed

    def _ask(self, x: Any) -> None:
        """Before the first votes, see what the model is."""
        if not self._spotted:
            self.spot(x)
            self._spotted = True

    def _cast(
        self,
        x: Any,
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
            inputs=hashes(x),
            spot_checked=self.spot_checked,
            touched=self.touched,
            condition=self.condition,
            judged=self.judged,
        )
