"""Simulated attackers: what they do to their samples, to their updates, and when."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from rsfl._checks import count, counts, number
from rsfl.fed.trainer import Poison

__all__ = [
    "Attack",
    "Backdoor",
    "InnerProduct",
    "LabelFlip",
    "Noise",
    "Scale",
    "SignFlip",
    "distribute",
    "feature_increments",
    "pixel_patch",
]

Tamper: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""``tamper(own, honest, generator)``: the update (d,) sent instead of ``own``, knowing the honest
ones (m, d)."""


@dataclass(frozen=True)
class Attack:
    """What one client does, and in which rounds: `Server.run` takes one per attacker.

    Args:
        rounds: The attacked rounds; None for all.
        data: What happens to each mini-batch before training (`Backdoor`, `LabelFlip`, or any
            function of (x, y) that keeps their number); to all the samples at once where the
            trainer is not `SGD`.
        update: What happens to the update before it is sent (`Scale`, `SignFlip`, `Noise`,
            `InnerProduct`, or any function of (own, honest, generator)). Model replacement is a
            backdoor with a `Scale` in one round.

    Example:
        >>> replacement = Attack(rounds=[10], data=LabelFlip({0: 1}), update=Scale(20.0))
        >>> replacement.active(10), replacement.active(11)
        (True, False)
    """

    rounds: Collection[int] | None = None
    data: Poison | None = None
    update: Tamper | None = None

    def __post_init__(self) -> None:
        if self.rounds is not None:
            rounds = counts(
                "rounds",
                list(self.rounds) if isinstance(self.rounds, Collection) else self.rounds,
                1,
            )
            if rounds.ndim != 1:
                raise ValueError(f"rounds must be a collection of rounds, got {self.rounds!r}")
            object.__setattr__(self, "rounds", frozenset(rounds.tolist()))

    def active(self, index: int) -> bool:
        """Whether the client attacks in this round."""
        return self.rounds is None or index in self.rounds


@dataclass(frozen=True)
class Backdoor:
    """Adds a pattern to the first ``per_batch`` samples of each mini-batch and gives them the
    target label.

    Batches are shuffled, so which samples those are is random. A batch shorter than that is
    poisoned whole.

    Args:
        pattern: What is added to an input, of the shape of one input; its l2 norm is the backdoor's
            magnitude.
        target: Label of poisoned samples; None to keep their own.
        per_batch: Samples poisoned in each batch; None for all.
    """

    pattern: Tensor = field(repr=False)
    target: int | None
    per_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("target", "per_batch"):
            if getattr(self, name) is not None:
                count(name, getattr(self, name))

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The poisoned batch; ``x`` and ``y`` stay as they are."""
        many = len(x) if self.per_batch is None else min(self.per_batch, len(x))
        x, y = x.clone(), y.clone()
        x[:many] += self.pattern.to(x)
        if self.target is not None:
            y[:many] = self.target
        return x, y


@dataclass(frozen=True)
class LabelFlip:
    """Gives every sample of a class another label.

    Args:
        labels: New label by true label; classes that are not named keep theirs.
    """

    labels: Mapping[int, int]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with its labels changed."""
        flipped = y.clone()
        for old, new in self.labels.items():
            flipped[y == old] = new
        return x, flipped


@dataclass(frozen=True)
class Scale:
    """Sends ``factor`` times the update: with about one over the client's weight it replaces the
    global model."""

    factor: float

    def __call__(self, own: Tensor, honest: Tensor, generator: torch.Generator) -> Tensor:
        """The update to send."""
        return self.factor * own


@dataclass(frozen=True)
class SignFlip:
    """Sends the opposite of the update, ``factor`` times."""

    factor: float = 1.0

    def __call__(self, own: Tensor, honest: Tensor, generator: torch.Generator) -> Tensor:
        """The update to send."""
        return -self.factor * own


@dataclass(frozen=True)
class Noise:
    """Sends Gaussian noise of standard deviation ``sigma`` instead of an update."""

    sigma: float

    def __call__(self, own: Tensor, honest: Tensor, generator: torch.Generator) -> Tensor:
        """The update to send."""
        return self.sigma * torch.randn(
            own.shape, generator=generator, dtype=own.dtype, device=own.device
        )


@dataclass(frozen=True)
class InnerProduct:
    """Sends ``-factor`` times the mean of the honest updates, so that the average may point the
    wrong way.

    References:
        Xie, Koyejo and Gupta, Fall of empires: breaking Byzantine-tolerant SGD by inner product
        manipulation, UAI 2019.
    """

    factor: float = 1.0

    def __call__(self, own: Tensor, honest: Tensor, generator: torch.Generator) -> Tensor:
        """The update to send; its own, reversed, where there is no honest one to know."""
        return -self.factor * (honest.mean(dim=0) if len(honest) else own)


def pixel_patch(
    shape: Sequence[int], norm: float, *, size: int = 2, corner: tuple[int, int] = (0, 0)
) -> Tensor:
    """A bright square of a given l2 norm, for images of shape (..., H, W).

    Args:
        shape: Shape of one image.
        norm: l2 norm of the whole pattern.
        size: Side of the square in pixels.
        corner: Row and column of its upper left pixel.

    Example:
        >>> float(pixel_patch((1, 8, 8), 0.5).norm())
        0.5
    """
    row, column = count("corner", corner[0]), count("corner", corner[1])
    size = count("size", size, 1)
    if len(shape) < 2 or row + size > shape[-2] or column + size > shape[-1]:
        raise ValueError(f"shape must hold a square of {size} at {corner!r}, got {tuple(shape)!r}")
    pattern = torch.zeros(tuple(shape), dtype=torch.float64)
    pattern[..., row : row + size, column : column + size] = 1
    return pattern.mul_(number("norm", norm, 0.0) / float(pattern.norm()))


def feature_increments(features: int, increments: Mapping[int, float]) -> Tensor:
    """A pattern that raises the named features of a table's rows.

    Example:
        >>> feature_increments(4, {1: 0.5, 3: -0.1}).tolist()
        [0.0, 0.5, 0.0, -0.1]
    """
    pattern = torch.zeros(count("features", features, 1), dtype=torch.float64)
    for feature, increment in increments.items():
        if not 0 <= feature < features:
            raise ValueError(f"increments must name features below {features}, got {feature!r}")
        pattern[feature] = number("increments", increment)
    return pattern


def distribute(pattern: Tensor, attackers: int) -> list[Tensor]:
    """Split a pattern over attackers: disjoint pieces that add up to it, its non-zero entries dealt
    out in turn.

    References:
        Xie, Huang, Chen and Li, DBA: distributed backdoor attacks against federated learning, ICLR
        2020.
    """
    attackers = count("attackers", attackers, 1)
    places = torch.nonzero(pattern.reshape(-1))[:, 0]
    if len(places) < attackers:
        raise ValueError(
            f"attackers must be at most the {len(places)} non-zero entries, got {attackers!r}"
        )
    pieces = []
    for k in range(attackers):
        piece = torch.zeros_like(pattern).reshape(-1)
        piece[places[k::attackers]] = pattern.reshape(-1)[places[k::attackers]]
        pieces.append(piece.reshape(pattern.shape))
    return pieces
