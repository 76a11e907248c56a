"""A plain training loop that can be killed and resumed. Loops of one's own call the losses directly."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from rsfl import _heap
from rsfl._checks import count
from rsfl._draws import generator, subseed
from rsfl.smooth.modes import evaluating
from rsfl.train.checkpoint import CheckpointError, read, write
from rsfl.train.losses import Adversarial, Loss

__all__ = ["Batches", "DatasetBatches", "Epoch", "Source", "fit"]


_ORDER, _LOSS, _GLOBAL = range(3)


class Source(Protocol):
    """Where mini-batches come from: any object that gives an epoch's batches, the same ones whenever it is asked."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches (x, y) of an epoch, which counts from 1."""
        ...


@dataclass(frozen=True, eq=False)
class Batches:
    """Mini-batches of tensors, shuffled anew in each epoch; the order depends on the seed and the epoch alone.

    Args:
        x: Inputs (N, ...).
        y: Labels (N,).
        size: Inputs a batch; the last one of an epoch is as short as it comes.
        seed: Seed of the order.

    Example:
        >>> batches = Batches(torch.arange(5.0)[:, None], torch.arange(5), size=2)
        >>> [len(x) for x, _ in batches(1)]
        [2, 2, 1]
    """

    x: Tensor
    y: Tensor
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        count("size", self.size, 1)
        if len(self.x) != len(self.y) or len(self.x) == 0:
            raise ValueError(f"x and y must be equally many, at least 1, got {len(self.x)} and {len(self.y)}")

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, which counts from 1."""
        order = torch.randperm(len(self.x), generator=generator(self.seed, epoch, _ORDER)).to(self.x.device)
        for part in torch.split(order, self.size):
            yield self.x[part], self.y[part]


@dataclass(frozen=True, eq=False)
class DatasetBatches:
    """Mini-batches of a map-style data set, in the order that :class:`Batches` gives to tensors.

    They come through a ``DataLoader`` made anew for each epoch, in an order that depends on the seed and the epoch
    alone. So do the draws of items that take theirs from PyTorch's global state: worker processes are seeded for the
    epoch, and without any :func:`fit` seeds the state.

    Args:
        dataset: Gives pairs (x, y) by index 0 ... len(dataset) - 1.
        size: Items a batch; the last one of an epoch is as short as it comes.
        seed: Seed of the order.
        workers: Processes that load items; 0 loads them in this one. Random items differ with their number.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> batches = DatasetBatches(TensorDataset(torch.arange(5.0)[:, None], torch.arange(5)), size=2)
        >>> [len(x) for x, _ in batches(1)]
        [2, 2, 1]
    """

    dataset: Dataset[Any]
    size: int = 128
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        count("size", self.size, 1)
        count("workers", self.workers)
        if not (hasattr(self.dataset, "__getitem__") and hasattr(self.dataset, "__len__")):
            raise TypeError(f"dataset must have a length and items by index, got {self.dataset!r}")
        if self._items() == 0:
            raise ValueError("dataset must hold at least one item, got 0")

    def _items(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # PyTorch's own class does not declare it

    def __len__(self) -> int:
        return -(-self._items() // self.size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, which counts from 1."""
        draws = generator(self.seed, epoch, _ORDER)
        order = torch.randperm(self._items(), generator=draws).tolist()
        return iter(DataLoader(self.dataset, self.size, sampler=order, num_workers=self.workers, generator=draws))


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean over its batches.
        seconds: How long its batches took.
        metrics: What the caller measured at its end.
    """

    epoch: int
    loss: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def fit(
    model: nn.Module,
    batches: Source,
    loss: Loss,
    optimizer: Optimizer,
    *,
    epochs: int,
    warmup: int = 0,
    seed: int = 0,
    scheduler: LRScheduler | None = None,
    metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
    checkpoint: Path | str | None = None,
    progress: bool = False,
) -> tuple[Epoch, ...]:
    """Train a model in place.

    Every draw is keyed by seed and epoch: the order of the data, the loss's draws, and what modules such as dropout
    take from the global state, which is given back as it was found. So a run that was killed and is called again with
    the same arguments and ``checkpoint`` ends, on a CPU, in the same weights bit for bit.

    Every module trains in the mode that it is in, so that a batch normalisation set to evaluation mode stays frozen. A
    model that is in evaluation mode itself is trained with a warning.

    Args:
        model: Maps a batch of inputs to logits.
        batches: Gives the batches of each epoch, such as :class:`Batches` or :class:`DatasetBatches`; they are moved
            to the model's device. A ``DataLoader`` would not repeat an epoch's order when a run is resumed.
        loss: ``loss(model, x, y, generator)``, a scalar.
        optimizer: Steps the parameters; the ones that it does not hold stay, as in fine-tuning a head.
        epochs: Number of epochs in all, those before a resumption included.
        warmup: Epochs over which the budget of an :class:`Adversarial` loss grows to its own.
        seed: Seed of the loss's draws.
        scheduler: Stepped after each epoch.
        metrics: Measures the model after each epoch. Called with the model in evaluation mode and without gradients;
            it does not influence training.
        checkpoint: File to write after each epoch, and to resume from if it is there.
        progress: Whether to show a progress bar.

    Returns:
        What each epoch came to.

    Raises:
        FloatingPointError: The loss was not finite; the message names the batch, and the step was not taken.
        CheckpointError: The file is broken or belongs to another run.
        ValueError, TypeError: An argument is out of its range.
    """
    if not callable(batches):
        raise TypeError(
            "batches must give the batches of an epoch by its number, as train.Batches(x, y) and "
            f"train.DatasetBatches(dataset) do, got {type(batches).__name__}"
        )
    epochs, warmup, _ = count("epochs", epochs, 1), count("warmup", warmup), count("seed", seed)
    if warmup and not isinstance(loss, Adversarial):
        raise TypeError(f"loss must be Adversarial for a warmup, got {loss!r}")
    run = f"{_named(loss)}, {type(optimizer).__name__}, {len(batches)} batches, warmup {warmup}, seed {seed}"
    path = None if checkpoint is None else Path(checkpoint)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    history = _resumed(path, run, parts, epochs) if path is not None and path.exists() else []
    if not model.training:
        warnings.warn("model trains in evaluation mode; model.train() switches it back", stacklevel=2)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    total, begun = epochs * len(batches), len(history) * len(batches)
    with _heap.kept(), tqdm(total=total, initial=begun, disable=not progress) as bar:
        for epoch in range(len(history) + 1, epochs + 1):
            now = loss.warmed_up(epoch, warmup) if isinstance(loss, Adversarial) else loss
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(subseed(seed, epoch, _GLOBAL))
                begin = perf_counter()
                mean = _epoch(model, batches, now, optimizer, epoch, generator(seed, epoch, _LOSS, device=device), bar)
                seconds = perf_counter() - begin
                with evaluating(model):
                    measured = {} if metrics is None else {k: float(v) for k, v in metrics(model).items()}
            if scheduler is not None:
                scheduler.step()
            history.append(Epoch(epoch, mean, seconds, measured))
            bar.set_postfix({"epoch": epoch, "loss": mean, **measured})
            if path is not None:
                states = {name: part.state_dict() for name, part in parts.items()}
                write(path, {"run": run, "history": [asdict(e) for e in history], **states})
    return tuple(history)


def _epoch(
    model: nn.Module,
    batches: Source,
    loss: Loss,
    optimizer: Optimizer,
    epoch: int,
    draws: torch.Generator,
    bar: "tqdm[Any]",
) -> float:
    total = 0.0
    for number, (x, y) in enumerate(batches(epoch), start=1):
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, x.to(draws.device), y.to(draws.device), draws)
        if not math.isfinite(current := value.item()):
            raise FloatingPointError(f"loss is {current} in epoch {epoch}, batch {number} of {len(batches)}")
        torch.autograd.backward(value)
        optimizer.step()
        total += current
        bar.update()
    return total / len(batches)


def _resumed(path: Path, run: str, parts: Mapping[str, Any], epochs: int) -> list[Epoch]:
    """Load what a checkpoint holds; the epochs that it has behind it."""
    content = read(path)
    if content.get("run") != run or set(parts) != set(content) - {"run", "history"}:
        raise CheckpointError(f"{path} belongs to another run: {content.get('run')!r}, this one is {run!r}")
    if len(content["history"]) > epochs:
        raise CheckpointError(f"{path} has {len(content['history'])} epochs behind it, more than epochs={epochs}")
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return [Epoch(**entry) for entry in content["history"]]


def _named(loss: Loss) -> str:
    """A loss by its settings if it has any, else by its name: an address in memory would differ in the next process."""
    return repr(loss) if is_dataclass(loss) else str(getattr(loss, "__qualname__", type(loss).__qualname__))
