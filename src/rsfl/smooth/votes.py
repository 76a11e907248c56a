"""The hot loop: votes of noisy copies of many inputs at once, counted where they were cast."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rsfl import _heap
from rsfl._checks import count, stored
from rsfl._draws import rekey
from rsfl._models import answered, input_dtype, voting, widened
from rsfl.noise import Law
from rsfl.smooth.inputs import Inputs

__all__ = [
    "BLOCK",
    "ESTIMATION",
    "SELECTION",
    "Votes",
    "checked_logits",
    "count_votes",
    "draw_noise",
    "per_key",
    "tally",
]

BLOCK = 100
"""Samples per key on a CPU: one generator draws this many perturbations of one input, whatever the
batch looks like."""

_TALLIED = 10_000
"""Logits that are tallied at once: after a forward pass little else is in a processor's caches, and
each small operation of a tally takes several times as long as by itself."""

SELECTION, ESTIMATION = 0, 1
"""What votes are for. The two never share a draw."""


@dataclass(frozen=True)
class Votes:
    """Votes counted so far.

    Attributes:
        counts: (B, K) int64, for each class.
        invalid: (B,) int64, those that went to no class, for non-finite logits; none by default.
    """

    counts: Tensor
    invalid: Tensor = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.invalid is None:
            stored(self, invalid=self.counts.new_zeros(len(self.counts)))

    @property
    def n(self) -> Tensor:
        """(B,) int64, all votes that were cast."""
        return self.counts.sum(dim=1) + self.invalid

    def __add__(self, other: "Votes") -> "Votes":
        return Votes(self.counts + other.counts, self.invalid + other.invalid)


class _Blocks:
    """Blocks of noise by key. The last block is kept: small batches walk through it piece by
    piece."""

    def __init__(self, law: Law, shape: torch.Size, device: torch.device) -> None:
        one = law.noise_shape(shape)
        self.law, self.device, self.size = law, device, per_key(one.numel(), device)
        self.shape = self.size, *one
        self.generator = torch.Generator(device)
        self.key: tuple[int, ...] = ()
        self.noise = torch.empty(0)

    def __call__(self, seed: int, index: int, stage: int, block: int) -> Tensor:
        key = (seed, index, stage, block)
        if key != self.key:
            rekey(self.generator, *key)
            self.noise = self.law.sample(self.shape, generator=self.generator, device=self.device)
            self.key = key
        return self.noise


def per_key(numel: int, device: torch.device) -> int:
    """How many perturbations of ``numel`` numbers one generator draws: the noise of a sample is a
    function of this, too, so a run records it. A device that is told what to do by a CPU waits for
    it where networks are small: there one key is for up to a million numbers."""
    if device.type == "cpu":
        return BLOCK
    return BLOCK * min(100, max(1, 2**20 // (BLOCK * numel)))


def _pieces(
    first: int, last: int, start: int, per_input: int, block: int = BLOCK
) -> Iterator[tuple[int, int, int, int]]:
    """(input, block, first, last) for the rows [first, last) of a job of samples start ... start +
    per_input - 1 of each input in turn: each piece lies within one block of one input."""
    while first < last:
        i, j = divmod(first, per_input)
        sample = start + j
        size = min(block - sample % block, per_input - j, last - first)
        yield i, sample // block, sample % block, sample % block + size
        first += size


def _adds(law: Law, shape: torch.Size) -> bool:
    """Whether a law perturbs by nothing but adding its noise, whose sum can then go into the batch
    at once."""
    plain = getattr(law.perturb, "__func__", None) is Law.perturb
    return plain and law.noise_shape(shape) == shape


def checked_logits(logits: object, rows: int, num_classes: int) -> Tensor:
    """``logits``, or the ``logits`` of what a model returned, if they are a tensor of shape (rows,
    num_classes)."""
    logits = answered(logits)
    if logits.shape != (rows, num_classes):
        way = ""
        if logits.shape in ((rows,), (rows, 1)):
            way = (
                ": a single logit z of two classes is torch.stack([0 * z, z], 1), and labels alone "
                "are counted by a smooth.Voter of your own"
            )
        raise ValueError(
            f"model must return logits of shape ({rows}, {num_classes}) for "
            f"num_classes={num_classes}, got {tuple(logits.shape)}{way}"
        )
    return logits


def _together(waiting: Tensor, logits: Tensor) -> Tensor:
    """Logits of two calls in one tensor, with all their digits."""
    if waiting.dtype != logits.dtype:
        raise ValueError(
            f"model must return logits of one dtype, got {waiting.dtype} and {logits.dtype}"
        )
    return torch.cat([waiting, logits])


def tally(logits: Tensor, bins: Tensor, counts: Tensor) -> None:
    """Add the votes of ``logits`` (R, K) to ``counts`` (B, K + 1), row r to row ``bins[r]``; the
    last column is for non-finite logits."""
    width = counts.shape[1]
    finite = (
        logits.mul(0).sum(dim=1) == 0
    )  # a row with an infinity or NaN gives NaN; no host ever looks
    votes = torch.where(finite, logits.max(dim=1).indices, width - 1) + bins * width
    counts.view(-1).scatter_add_(0, votes, torch.ones_like(votes))


def _fitting_batch(x: Tensor, rows: int) -> int:
    """A batch in whole blocks: on a CPU so small that a convolutional network's activations stay in
    its caches (a thousand rows, 640 KiB of inputs), elsewhere large enough to fill the device (256
    MiB of inputs)."""
    most, budget = (1000, 5 * 2**17) if x.device.type == "cpu" else (2**16, 2**28)
    row = x[0].numel() * max(4, x.element_size())
    return max(1, min(rows, most, max(BLOCK, budget // row // BLOCK * BLOCK)))


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


def explain(error: Exception, x: Tensor | Inputs, rows: int) -> None:
    """Add to an error of the model what it was called with."""
    if sys.version_info >= (3, 11):  # which shows notes below the message
        error.add_note(
            f"The model was called with {rows} inputs of shape {tuple(x.shape[1:])}; one input "
            f"alone is given as x[None]."
        )


def count_votes(  # noqa: PLR0913  # the hot loop
    model: nn.Module,
    law: Law,
    x: Tensor | Inputs,
    num_classes: int,
    *,
    start: int,
    stop: int,
    seed: int,
    index: Tensor,
    stage: int = ESTIMATION,
    batch_size: int | None = None,
) -> Votes:
    """Count the votes of the samples ``start`` ... ``stop - 1`` of every input.

    The noise of a sample is a function of (seed, index of its input, stage, number of the sample):
    batch size, order and neighbours do not change it. Votes are counted on the device of ``x`` and
    nothing leaves it.

    Args:
        model: Maps a batch of inputs, in its own dtype, to logits (rows, num_classes).
        law: Perturbs the inputs.
        x: Inputs (B, ...). Of several parts the model gets those that noise touches noisy, and
            with them the others.
        num_classes: Width of the logits, K.
        start: First sample, at least 0.
        stop: One past the last sample.
        seed: Seed of the run.
        index: (B,) int64, which inputs these are.
        stage: ``SELECTION`` or ``ESTIMATION``.
        batch_size: Rows per forward call; None starts from one that fits and halves it when memory
            runs out.

    Returns:
        The votes, on the device of ``x``.
    """
    x, whole = (x.touched, x) if isinstance(x, Inputs) else (x, None)
    per_input = stop - start
    rows = len(x) * per_input
    batch = (
        _fitting_batch(x, rows)
        if batch_size is None
        else min(count("batch_size", batch_size, 1), max(rows, 1))
    )
    counts = torch.zeros((len(x), num_classes + 1), dtype=torch.int64, device=x.device)
    dtype, x = input_dtype(model, x), widened(x)
    blocks = _Blocks(law, x.shape[1:], x.device)
    keys, adds = index.tolist(), _adds(law, x.shape[1:])

    def owners(first: int, last: int) -> Tensor:
        """The inputs that these rows are copies of."""
        return torch.arange(first, last, device=x.device) // per_input

    noisy = torch.empty(0)
    waiting: Tensor | None = None
    done = 0
    with voting(model), _heap.kept():
        while done < rows:
            size = min(batch, rows - done)
            try:
                if len(noisy) < size:
                    noisy = x.new_empty((size, *x.shape[1:]), dtype=dtype)
                filled = 0
                pieces = _pieces(done, done + size, start, per_input, blocks.size)
                for i, block, first, last in pieces:
                    noise = blocks(seed, keys[i], stage, block)[first:last]
                    room = noisy[filled : filled + last - first]
                    if adds:
                        torch.add(x[i : i + 1], noise, out=room)
                    else:
                        room.copy_(law.perturb(x[i : i + 1], noise))
                    filled += last - first
                asked: Any = noisy[:size]
                if whole is not None:
                    asked = whole.under(asked, owners(done, done + size))
                logits = checked_logits(model(asked), size, num_classes)
                told = logits if waiting is None else _together(waiting, logits)
                if told.numel() >= _TALLIED or done + size == rows:
                    tally(told, owners(done + size - len(told), done + size), counts)
                    left = None
                else:  # copied: the model may hand out the same tensor again
                    left = told.clone() if told is logits else told
            except Exception as error:
                if batch_size is not None or size == 1 or not out_of_memory(error):
                    explain(error, x, size)
                    raise
                batch, noisy = max(1, size // 2), torch.empty(0)  # what was counted stays counted
                continue
            waiting, done = left, done + size
    return Votes(counts[:, :num_classes], counts[:, num_classes])


def draw_noise(
    law: Law,
    shape: torch.Size,
    n: int,
    *,
    seed: int,
    index: int,
    stage: int = ESTIMATION,
    device: torch.device | None = None,
) -> Tensor:
    """The noise that :func:`count_votes` gives to the first n samples of one input, (n, ...)."""
    blocks = _Blocks(law, shape, device or torch.device("cpu"))
    drawn = [blocks(seed, index, stage, block) for block in range(-(-n // blocks.size))]
    return torch.cat(drawn)[:n]
