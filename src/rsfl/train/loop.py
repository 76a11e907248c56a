"""A plain training loop that can be killed and resumed. Loops of one's own call the losses
directly."""

import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rsfl import _heap
from rsfl._checkpoint import CheckpointError, read, write
from rsfl._checks import count
from rsfl._draws import generator, seed_global
from rsfl._fingerprint import differences
from rsfl._models import evaluating
from rsfl._progress import Progress
from rsfl._progress import progress as shown_progress
from rsfl.train.batches import GLOBAL, LOSS, Source
from rsfl.train.identity import run_identity
from rsfl.train.losses import Loss

__all__ = ["Epoch", "fit"]


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch.

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


def fit(  # noqa: PLR0913  # a run's settings
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
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> tuple[Epoch, ...]:
    """Train a model in place.

    Every draw is keyed by seed and epoch: the order of the data, the loss's draws, and what modules
    such as dropout take from the global state, which is given back as it was found. So a run that
    was killed and is called again with the same arguments and ``checkpoint`` ends, on a CPU, in the
    same weights bit for bit.

    Every module trains in the mode that it is in, so that a batch normalisation set to evaluation
    mode stays frozen. A model that is in evaluation mode itself is trained with a warning.

    Args:
        model: Maps a batch of inputs to logits.
        batches: Gives the batches of each epoch, such as :class:`Batches` or
            :class:`DatasetBatches`; they are moved to the model's device. A ``DataLoader`` would
            not repeat an epoch's order when a run is resumed.
        loss: ``loss(model, x, y, generator)``, a scalar.
        optimizer: Steps the parameters; the ones that it does not hold stay, as in fine-tuning a
            head.
        epochs: Number of epochs in all, those before a resumption included.
        warmup: Epochs over which a loss that has ``warmed_up(epoch, epochs)`` becomes its own: the
            budget of :class:`Adversarial` and the weight of :class:`SmoothMix` grow,
            :class:`MACER` goes without its hinge.
        seed: Seed of the loss's draws.
        scheduler: Stepped after each epoch.
        metrics: Measures the model after each epoch. Called with the model in evaluation mode and
            without gradients; it does not influence training.
        checkpoint: File to write after each epoch, and to resume from if it is there and belongs to
            this run: the same data, loss, settings of optimizer and scheduler, warmup, seed, and a
            model that looks the same. What differs is named. Functions count by their names.
        progress: Whether to show a progress bar.

    Returns:
        The result of each epoch.

    Raises:
        FloatingPointError: The loss was not finite; the message names the batch, and the step was
            not taken.
        CheckpointError: The file is broken or belongs to another run.
        ValueError, TypeError: An argument is out of its range.
    """
    if not callable(batches):
        raise TypeError(
            "batches must give the batches of an epoch by its number, as train.Batches(x, y) and "
            f"train.DatasetBatches(dataset) do, got {type(batches).__name__}"
        )
    if not _takes(loss, model, "x", "y", "generator"):
        raise TypeError(
            "loss must take (model, x, y, generator), as train.CrossEntropy() and "
            "train.Adversarial(...) do, "
            f"got {loss!r}"
        )
    epochs, warmup, _ = count("epochs", epochs, 1), count("warmup", warmup), count("seed", seed)
    if warmup and not hasattr(loss, "warmed_up"):
        raise TypeError(
            "loss must have a method warmed_up(epoch, epochs) for a warmup, as Adversarial, MACER "
            f"and SmoothMix have, got {loss!r}"
        )
    path, run = None if checkpoint is None else Path(checkpoint), dict[str, str]()
    if path is not None:
        run = run_identity(model, batches, loss, optimizer, scheduler, warmup=warmup, seed=seed)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    history = _resumed(path, run, parts, epochs) if path is not None and path.exists() else []
    if not model.training:
        warnings.warn(
            "model trains in evaluation mode; model.train() switches it back", stacklevel=2
        )
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    total, begun = epochs * len(batches), len(history) * len(batches)
    bars = shown_progress(total, shown=progress, what="training", unit="batch", initial=begun)
    with _heap.kept(), bars as bar:
        for epoch in range(len(history) + 1, epochs + 1):
            now = loss.warmed_up(epoch, warmup) if hasattr(loss, "warmed_up") else loss
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                seed_global(seed, epoch, GLOBAL)
                begin = perf_counter()
                mean = _epoch(
                    model,
                    batches,
                    now,
                    optimizer,
                    epoch,
                    generator(seed, epoch, LOSS, device=device),
                    bar,
                )
                seconds = perf_counter() - begin
                with evaluating(model):
                    measured = (
                        {} if metrics is None else {k: float(v) for k, v in metrics(model).items()}
                    )
            if scheduler is not None:
                scheduler.step()
            history.append(Epoch(epoch, mean, seconds, measured))
            bar.update(0, **{"epoch": epoch, "loss": mean, **measured})
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
    bar: Progress,
) -> float:
    total = 0.0
    for number, (x, y) in enumerate(batches(epoch), start=1):
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, x.to(draws.device), y.to(draws.device), draws)
        if not math.isfinite(current := value.item()):
            raise FloatingPointError(
                f"loss is {current} in epoch {epoch}, batch {number} of {len(batches)}"
            )
        torch.autograd.backward(value)
        optimizer.step()
        total += current
        bar.update(1)
    return total / len(batches)


def _resumed(
    path: Path, run: Mapping[str, str], parts: Mapping[str, Any], epochs: int
) -> list[Epoch]:
    """Load what a checkpoint holds; the epochs that it contains."""
    content = read(path)
    if not isinstance(content.get("run"), dict):
        raise CheckpointError(f"{path} does not say which run it belongs to")
    if others := differences(run, content["run"]):
        raise CheckpointError(f"{path} belongs to another run: {others}")
    if len(content["history"]) > epochs:
        raise CheckpointError(
            f"{path} already contains {len(content['history'])} epochs, more than epochs={epochs}"
        )
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return [Epoch(**entry) for entry in content["history"]]


def _takes(function: Any, *arguments: Any) -> bool:
    """Whether a function, or a module's ``forward``, may be called with the arguments, as far as
    its signature says."""
    try:
        signature = inspect.signature(
            function.forward if isinstance(function, nn.Module) else function
        )
    except ValueError:  # it has none that Python can read
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True
