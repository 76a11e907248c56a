"""What is recognised as ours, and so called by its name in the ledger: by exact class and by fields
that nobody touched. A name, a module or an ``__eq__`` proves nothing."""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from operator import is_
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._device import DeviceContext

from rsfl._models import hooked_everywhere
from rsfl.fed.aggregate import CoordinateMedian, GeometricMedian, Krum, Mean, Rule, TrimmedMean
from rsfl.fed.client import Client, Remote
from rsfl.fed.layout import Layout
from rsfl.fed.settings import Settings
from rsfl.fed.trainer import SGD, Task
from rsfl.train import CrossEntropy

__all__ = [
    "is_ours",
    "keeps_nothing",
    "named_loss",
    "named_optimizer",
    "named_rule",
    "of_torch_alone",
    "plain_process",
    "plain_tensor",
]

RULES = (Mean, GeometricMedian, CoordinateMedian, TrimmedMean, Krum)
_KNOWN = (*RULES, Client, Remote, SGD, CrossEntropy, Task, Layout)
_CODE: Mapping[type, Mapping[str, Any]] = MappingProxyType(
    {kind: dict(vars(kind)) for kind in _KNOWN}
)
"""Our classes as they were imported."""

_FIELDS = {kind: frozenset(field.name for field in fields(kind)) for kind in _KNOWN}

_FUNCTIONS = (functional.cross_entropy, functional.linear, torch.autograd.grad)


def is_ours(value: Any, *kinds: type) -> bool:
    """Whether a value is exactly one of our classes, with its own fields and no others, and nobody
    has put code into the class."""
    kind = type(value)
    if kind not in (kinds or _KNOWN):
        return False
    code, known = vars(kind), _CODE[kind]
    held = getattr(value, "__dict__", {})
    same = len(code) == len(known) and all(map(is_, map(code.get, known), known.values()))
    return same and held.keys() <= _FIELDS[kind]


def plain_tensor(value: Any) -> bool:
    """Whether this is a tensor of torch's own class without fields of its own."""
    return type(value) is Tensor and not value.__dict__


def plain_process() -> bool:
    """Whether torch computes here what it computes elsewhere: no hooks around all modules, no mode
    that rewrites calls or what
    gradients are made from, no replaced function."""
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return (
        not hooked_everywhere()
        and all(type(mode) is DeviceContext for mode in modes)
        and not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        and (functional.cross_entropy, functional.linear, torch.autograd.grad) == _FUNCTIONS
    )


def named_rule(rule: Rule) -> str:
    """``mean`` for the rule that certificates know, the class of another of ours, ``custom`` and
    the name of others."""
    if is_ours(rule, Mean):
        return "mean"
    name = getattr(rule, "__name__", type(rule).__name__)
    return type(rule).__name__ if is_ours(rule, *RULES) else f"custom {name}"


def named_loss(trainer: Any) -> str:
    """``softmax cross-entropy`` for the plain gradient of it, ``custom`` for all else."""
    plain = (
        is_ours(trainer, SGD)
        and trainer.mixture is None
        and is_ours(trainer.loss, CrossEntropy)
        and trainer.loss.law is None
        and plain_process()
    )
    return "softmax cross-entropy" if plain else "custom"


def named_optimizer(member: Any) -> str:
    """``sgd`` for a client of ours that trains by `SGD` on plain tensors, ``custom`` for others."""
    plain = is_ours(member, Client, Remote) and is_ours(member.trainer, SGD)
    data = (member.x, member.y) if plain and type(member) is Client else ()
    return "sgd" if plain and all(map(plain_tensor, data)) else "custom"


def of_torch_alone(model: nn.Module) -> bool:
    """Whether a model is made of torch's own layers, none of which has hooks or code of its own."""
    return not hooked_everywhere() and all(
        _at_home(type(module), "torch.nn.modules.")
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in _HOOKS)
        for module in model.modules()
    )


def keeps_nothing(settings: Settings) -> bool:
    """Whether all the code that a run calls is rsfl's or torch's own, which keeps nothing from one
    call to the next: rule, model, clients, trainers and losses. Schedules are not looked at."""
    trainers = {id(one.trainer): one.trainer for one in settings.clients}
    return (
        is_ours(settings.aggregate, *RULES)
        and plain_process()
        and of_torch_alone(settings.model)
        and all(is_ours(one, Client, Remote) for one in settings.clients)
        and all(is_ours(one, SGD) and _of_rsfl(vars(one)["loss"]) for one in trainers.values())
    )


def _of_rsfl(value: Any) -> bool:
    """Whether a setting is a plain value, or a frozen record of rsfl made of such."""
    if value is None or type(value) in (bool, int, float, str) or plain_tensor(value):
        return True
    if type(value) in (tuple, list, dict):
        return all(map(_of_rsfl, value.values() if type(value) is dict else value))
    kind = type(value)
    if not is_dataclass(kind) or not _at_home(kind, "rsfl."):
        return False
    names = {field.name for field in fields(kind)}
    held = set(getattr(value, "__dict__", ()))
    return held <= names and all(_of_rsfl(getattr(value, name)) for name in names)


def _at_home(kind: type, room: str) -> bool:
    """Whether the module that a class names as its own has it: a class may say anything."""
    home = sys.modules.get(kind.__module__)
    return kind.__module__.startswith(room) and getattr(home, kind.__name__, None) is kind


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
