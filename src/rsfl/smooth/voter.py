"""From votes to certificates, whatever it is that the votes come from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import bounds
from rsfl._checks import choice, count, counts, number
from rsfl.noise import Law
from rsfl.smooth.certificate import (
    CONFIDENCE,
    Certificate,
    certified_by_count,
    certified_by_test,
    predicted,
)
from rsfl.smooth.votes import BLOCK, ESTIMATION, SELECTION, Votes

__all__ = ["Voter", "checked_batch", "checked_index", "looks"]


class Voter(ABC):
    """A model under noise that can be asked for votes, and so for predictions and certificates.

    Subclasses say what the noise is added to: they count votes.
    """

    default_n: ClassVar[int] = 100_000
    """Votes for estimation where the caller names no number; fewer where each costs a model."""

    def __init__(self, model: nn.Module, law: Law, num_classes: int) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if not isinstance(law, Law):
            raise TypeError(f"law must be a noise.Law, got {law!r}")
        self.model = model
        self.law = law
        self.num_classes = count("num_classes", num_classes, 1)

    def __repr__(self) -> str:
        of = f"{type(self.model).__name__}, {self.law}, num_classes={self.num_classes}"
        return f"{type(self).__name__}({of})"

    @abstractmethod
    def _count(
        self,
        x: Tensor,
        index: Tensor,
        start: int,
        stop: int,
        *,
        seed: int,
        batch_size: int | None,
        stage: int = ESTIMATION,
    ) -> Votes:
        """The votes of the samples start ... stop - 1 of every input."""

    @abstractmethod
    def dim(self, x: Tensor) -> int:
        """The number of coordinates of the noise that one vote sees."""

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
        x, index = self._checked(x, index)
        return self._count(x, index, 0, n, seed=seed, batch_size=batch_size).counts

    def certify(
        self,
        x: Tensor,
        *,
        n0: int = 100,
        n: int | None = None,
        alpha: float = 0.001,
        batch_size: int | None = None,
        seed: int = 0,
        index: Tensor | Sequence[int] | None = None,
        runner_up: str = "complement",
        confidence: str = "clopper-pearson",
    ) -> Certificate:
        """Select a class with n0 votes, bound its probability with n others, return its radius.

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
            ValueError: An argument is out of its range, or n cannot certify anything.
            TypeError: x or the logits are not tensors of numbers.
        """
        alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
        choice("runner_up", runner_up, ("complement", "bounded"))
        lower, _ = CONFIDENCE[choice("confidence", confidence, tuple(CONFIDENCE))]
        n0, n = count("n0", n0, 1), count("n", self.default_n if n is None else n, 1)
        seed = count("seed", seed)
        least = bounds.minimum_trials(
            alpha if runner_up == "complement" else alpha / 2, lower=lower
        )
        if n < least:
            raise ValueError(
                f"n must be at least {least} to certify anything at alpha={alpha!r}, got {n}"
            )
        x, index = self._checked(x, index)
        selection = self._count(x, index, 0, n0, seed=seed, batch_size=batch_size, stage=SELECTION)
        votes = self._count(x, index, 0, n, seed=seed, batch_size=batch_size)
        return certified_by_count(
            self.law,
            selection,
            votes,
            alpha=alpha,
            index=index,
            seed=seed,
            dim=self.dim(x),
            runner_up=runner_up,
            confidence=confidence,
        )

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
        no radius.

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
        alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
        seed = count("seed", seed)
        n, least = count("n", n, 1), bounds.top_two_minimum_trials(alpha)
        if n < least:
            raise ValueError(
                f"n must be at least {least} to predict anything at alpha={alpha!r}, got {n}"
            )
        x, index = self._checked(x, index)
        votes = self._count(x, index, 0, n, seed=seed, batch_size=batch_size)
        return predicted(self.law, votes, alpha=alpha, index=index, seed=seed)

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
        answer needs.

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
            A certificate of exactly ``radius`` where it is certified, ABSTAIN and 0 elsewhere; its
            ``n`` says what each input took.

        Raises:
            ValueError: An argument is out of its range, or n_max cannot certify the radius.
            TypeError: x or the logits are not tensors of numbers.
        """
        alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
        radius = number("radius", radius, 0, np.inf, open_high=True)
        n0, n_max = (
            count("n0", n0, 1),
            count("n_max", self.default_n if n_max is None else n_max, 1),
        )
        seed = count("seed", seed)
        x, index = self._checked(x, index)
        p0 = self.law.probability(radius, dim=self.dim(x))
        least = bounds.sequential_minimum_trials(p0, alpha)
        if n_max < least:
            raise ValueError(
                f"n_max must be at least {least} to certify radius={radius!r} at "
                f"alpha={alpha!r}, got {n_max}"
            )
        selection = self._count(x, index, 0, n0, seed=seed, batch_size=batch_size, stage=SELECTION)
        chosen = selection.counts.argmax(dim=1)
        found, invalid = torch.zeros_like(selection.counts), torch.zeros_like(selection.invalid)
        certified = np.zeros(len(x), dtype=bool)
        undecided = torch.arange(len(x), device=x.device)
        for start, stop in looks(n_max):
            new = self._count(
                x[undecided], index[undecided.cpu()], start, stop, seed=seed, batch_size=batch_size
            )
            found[undecided] += new.counts
            invalid[undecided] += new.invalid
            successes = found[undecided, chosen[undecided]].cpu().numpy()
            decision = np.asarray(bounds.sequential_decision(successes, stop, p0, alpha))
            hopeless = (
                np.asarray(bounds.sequential_decision(successes + n_max - stop, n_max, p0, alpha))
                != 1
            )
            certified[undecided.cpu().numpy()] = decision == 1
            undecided = undecided[torch.from_numpy((decision == 0) & ~hopeless).to(x.device)]
            if len(undecided) == 0:
                break
        return certified_by_test(
            self.law,
            selection,
            Votes(found, invalid),
            certified,
            radius=radius,
            p0=p0,
            alpha=alpha,
            index=index,
            seed=seed,
        )

    def _checked(self, x: Tensor, index: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """The inputs and their indices, if certificates for them would mean something."""
        x = checked_batch(x)
        device = next((tensor.device for tensor in self.model.parameters()), x.device)
        if device != x.device:
            raise ValueError(f"x must be on the model's device {device}, got {x.device}")
        self.law.check(x)
        return x, checked_index(index, len(x))


def checked_batch(x: Tensor) -> Tensor:
    """``x``, detached, if it is a batch (B, ...) of finite inputs.

    Raises:
        ValueError: It holds no number, or an infinity or NaN.
        TypeError: It is no dense tensor of floating point numbers.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must have a floating point dtype, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor, got one of layout {x.layout}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"x must be a batch (B, ...) of at least one input, got shape {tuple(x.shape)}"
        )
    finite = x.isfinite()
    if not bool(finite.all()):
        where = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"x must be finite, got {x[where].item()!r} at index {where}")
    return x.detach()


def checked_index(index: Tensor | Sequence[int] | None, rows: int) -> Tensor:
    """Which inputs a batch holds, (rows,) int64 on the CPU; 0 ... rows - 1 if that is not said.

    Raises:
        ValueError: It is not one whole number of at least 0 for each input.
        TypeError: It holds something else than numbers.
    """
    if index is None:
        return torch.arange(rows)
    numbers = counts("index", index.cpu() if isinstance(index, Tensor) else index)
    if numbers.shape != (rows,):
        raise ValueError(
            f"index must hold {rows} whole numbers, one for each input, got {numbers.tolist()}"
        )
    return torch.from_numpy(numbers)


def looks(n_max: int) -> list[tuple[int, int]]:
    """The sequential test's schedule: spans of samples that end at whole blocks, each at most a
    tenth of what came before, and at n_max."""
    stops = [min(BLOCK, n_max)]
    while stops[-1] < n_max:
        grown = stops[-1] // BLOCK + max(1, stops[-1] // BLOCK // 10)
        stops.append(min(grown * BLOCK, n_max))
    return list(zip([0, *stops], stops, strict=False))
