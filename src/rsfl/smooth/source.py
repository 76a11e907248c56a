"""What votes come from, whatever it is that the noise is added to."""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rsfl._checks import count
from rsfl._fingerprint import Fingerprint, backend_fingerprint, model_fingerprint
from rsfl._models import answered, as_given, evaluating
from rsfl.assumptions import Assumption
from rsfl.noise import Law
from rsfl.smooth.inputs import Inputs
from rsfl.smooth.spot import probed, probes
from rsfl.smooth.votes import BLOCK, ESTIMATION, Votes

__all__ = ["Source"]

_KNOWN = frozenset({"law", "num_classes", "model", "spot_check", "_spotted"})
"""What every source holds, and the settings of a run say by themselves."""


class Source(ABC):
    """Something under noise whose votes can be counted; the arguments are those of a Voter."""

    condition: str = ""
    """What a vote has to meet to count, beside its label; "" where nothing."""

    judged: tuple[Assumption, ...] = ()
    """What the judgement rests on that says whether it does."""

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
            raise TypeError(f"law must be a noise.Law, such as noise.Gaussian(0.25), got {law!r}")
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
        x: Any,
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
            x: Inputs (B, ...), as :meth:`checked` returns them.
            index: (B,) int64 on the CPU, which inputs these are.
            start: First sample, at least 0.
            stop: One past the last sample.
            seed: Seed of the draws.
            stage: ``SELECTION`` or ``ESTIMATION``, which share no draw.
            batch_size: Noisy inputs per forward call; None chooses one that fits.

        Returns:
            The votes, on the device of ``x``.
        """

    def dim(self, x: Tensor | Inputs) -> int:
        """The number of coordinates of the noise that one vote sees."""
        return math.prod(self.law.noise_shape(x.shape[1:]))

    def block(self, x: Any) -> int:
        """How many samples of an input draw from one key, where it is the input that carries
        noise. Noise is a function of this, of the kind of device and of the key."""
        return BLOCK

    def checked(self, x: Any) -> Any:
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

    def spot(self, x: Any) -> None:  # noqa: B027
        """Ask the model a few questions about the first of these inputs.

        Raises:
            ValueError: It is not one function of a single input.
        """

    @property
    def touched(self) -> str:
        """Which part of an input the noise is added to, "" where it is all of it."""
        return ""

    @property
    def spot_checked(self) -> bool:
        """Whether votes are cast only after the model was asked."""
        return self.spot_check and self.model is not None

    def fingerprint(self, x: Tensor | Inputs) -> Fingerprint:
        """What tells this voter from others: its model, and what it answers about one input
        (1, ...). Of a class defined elsewhere, what its objects hold and do belongs to it."""
        own = {name: value for name, value in vars(self).items() if name not in _KNOWN}
        if self.model is None:
            told = self.count(x, torch.zeros(1, dtype=torch.int64), 0, BLOCK, seed=0)
            return backend_fingerprint(self, own, [told.counts, told.invalid])
        rows = probed(self.model, x) if isinstance(x, Inputs) else as_given(self.model, probes(x))
        devices = [x.device] if x.device.type == "cuda" else []
        with evaluating(self.model), torch.random.fork_rng(devices):
            answers = answered(self.model(rows.clone()))
        found = model_fingerprint(self.model, [answers])
        if type(self).__module__.partition(".")[0] == "rsfl":
            return found
        beside = backend_fingerprint(self, own, ())
        return replace(
            found,
            attributes=f"{found.attributes} {beside.attributes}",
            code=f"{found.code} {beside.code}",
        )
