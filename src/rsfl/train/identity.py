"""What a run of training is a function of: two runs share a checkpoint only if all of it agrees."""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rsfl._draws import seed_global
from rsfl._fingerprint import described, identity
from rsfl.train.batches import GLOBAL, Batches, DatasetBatches, Source
from rsfl.train.losses import Loss

__all__ = ["run_identity"]

_MOVING = frozenset(
    {"optimizer", "last_epoch", "base_lrs", "best", "num_bad_epochs", "cooldown_counter"}
    | {"T_cur", "T_i"}
)
"""What a scheduler counts while it runs, beside what begins with an underscore; its rates are the
optimizer's."""


def run_identity(
    model: nn.Module,
    batches: Source,
    loss: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    **settings: int,
) -> dict[str, str]:
    """The parts of a run by name, as :func:`rsfl._fingerprint.identity` keeps them.

    The weights that a model begins with are no part, nor is the state of its optimizer: a
    checkpoint brings its own. Functions count by their names.
    """
    return identity(
        {
            "model": _model(model),
            "data": _data(batches, settings["seed"]),
            "batches": len(batches),
            "loss": _called(loss),
            "optimizer": type(optimizer).__qualname__,
            **{f"optimizer.{name}": value for name, value in _groups(model, optimizer).items()},
            "scheduler": None if scheduler is None else _settings(scheduler),
            **settings,
        }
    )


def _model(model: nn.Module) -> list[Any]:
    """How it prints, each module's mode, and what its tensors look like."""
    modes = [module.training for module in model.modules()]
    tensors = [
        (name, tuple(one.shape), one.dtype, one.requires_grad)
        for name, one in (*model.named_parameters(), *model.named_buffers())
    ]
    return [_printed(model), modes, tensors]


def _printed(module: nn.Module) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(module))  # addresses differ between processes


def _called(loss: Loss) -> Any:
    """A loss by its settings, if it has any, else by its name."""
    if isinstance(loss, nn.Module):
        return [_printed(loss), loss.state_dict()]
    if is_dataclass(loss) or isinstance(loss, partial) or not hasattr(loss, "__dict__"):
        return loss
    return _constructed(described(loss), vars(loss))


def _constructed(name: str, settings: Mapping[str, Any]) -> str:
    told = (f"{key}={described(value)}" for key, value in settings.items())
    return f"{name}({', '.join(told)})"


def _groups(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Each setting of an optimizer, group by group; of a learning rate, where it starts."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[Any]] = {}
    for group in optimizer.param_groups:
        values = group | {
            "params": [names.get(id(one), tuple(one.shape)) for one in group["params"]],
            "lr": group.get("initial_lr", group["lr"]),
        }
        values.pop("initial_lr", None)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _settings(scheduler: LRScheduler) -> str:
    """A scheduler by what it was given."""
    fixed = {
        name: [_settings(one) for one in value] if name == "_schedulers" else value
        for name, value in vars(scheduler).items()
        if name == "_schedulers" or (name not in _MOVING and not name.startswith("_"))
    }
    return _constructed(type(scheduler).__qualname__, fixed)


def _data(batches: Source, seed: int) -> Any:
    """The tensors that batches are cut from, or else the first batch of all.

    Where the same batch comes out otherwise when it is asked for again, although the global state
    is the same, only its labels count.
    """
    if type(batches) is Batches:
        return batches
    if type(batches) is DatasetBatches:
        batches = replace(batches, workers=0)
    once, again = _first(batches, seed), _first(batches, seed)
    return [described(batches), once if described(once) == described(again) else once[1:]]


def _first(batches: Source, seed: int) -> list[Any]:
    with torch.random.fork_rng(devices=[]):
        seed_global(seed, 1, GLOBAL)
        return list(next(iter(batches(1)), ()))
