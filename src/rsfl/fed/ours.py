"""What is recognised as ours, and so called by its name in the ledger: by exact class and by fields
that nobody touched. A name, a module or an ``__eq__`` proves nothing."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from operator import is_
from types import BuiltinFunctionType, MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn import functional
from torch.utils._device import DeviceContext

from rsfl._models import FIELDS, hooked_everywhere
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
    "settings_of",
]

RULES = (Mean, GeometricMedian, CoordinateMedian, TrimmedMean, Krum)
_KNOWN = (*RULES, Client, Remote, SGD, CrossEntropy, Task, Layout)
_NOTES = frozenset(
    {"__annotations__", "__annotations_cache__", "__annotate__", "__annotate_func__"}
)
"""What Python may add to a class when somebody asks for its annotations: no code."""


def _held(room: Any) -> dict[str, Any]:
    """What a class or a module holds now."""
    return {name: value for name, value in vars(room).items() if name not in _NOTES}


def _layers() -> Iterator[type]:
    """The classes of torch's own layers, and those from which they inherit."""
    for name, room in list(sys.modules.items()):
        if name.startswith("torch.nn.modules."):
            for kind in vars(room).values():
                if isinstance(kind, type) and kind.__module__ == name:
                    yield kind


_CODE: Mapping[type, Mapping[str, Any]] = MappingProxyType(
    {kind: _held(kind) for kind in (*_KNOWN, *_layers())}
)
"""Our classes, and torch's, as they were imported."""

_FIELDS = {kind: frozenset(field.name for field in fields(kind)) for kind in _KNOWN}

_FUNCTIONS = (functional.cross_entropy, functional.linear, torch.autograd.grad)
_FUNCTIONAL = {name: value for name, value in _held(functional).items() if callable(value)}


def _as_imported(kind: type) -> bool:
    """Whether nobody has put code into a class."""
    code, known = vars(kind), _CODE[kind]
    return code.keys() - known.keys() <= _NOTES and _same(code, known)


def _same(now: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    return all(map(is_, map(now.get, known), known.values()))


def is_ours(value: Any, *kinds: type) -> bool:
    """Whether a value is exactly one of our classes, with its own fields and no others, and nobody
    has put code into the class."""
    kind = type(value)
    if kind not in (kinds or _KNOWN):
        return False
    held = getattr(value, "__dict__", {})
    return _as_imported(kind) and held.keys() <= _FIELDS[kind]


def plain_tensor(value: Any) -> bool:
    """Whether this is a tensor of torch's own class without fields of its own."""
    return type(value) is Tensor and not value.__dict__


def plain_process() -> bool:
    """Whether torch computes here what it computes elsewhere: no hooks around all modules, no mode
    that rewrites calls or what gradients are made from, no replaced function."""
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return (
        not hooked_everywhere()
        and all(type(mode) is DeviceContext for mode in modes)
        and not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
        and not _packed()
        and (functional.cross_entropy, functional.linear, torch.autograd.grad) == _FUNCTIONS
    )


def _packed() -> bool:
    """Whether hooks stand around the tensors that gradients are made from: then torch refuses to
    switch them off."""
    try:
        with disable_saved_tensors_hooks("switched off"):
            return False
    except RuntimeError:
        return True


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


def of_torch_alone(*models: nn.Module) -> bool:
    """Whether models are made of torch's own layers as they were imported, which hold no hooks, no
    code and no parameters of another class: what they compute follows from their numbers."""
    layers = [layer for model in models for layer in model.modules()]
    bases = {base for kind in set(map(type, layers)) for base in kind.__mro__[:-1]}
    return (
        not hooked_everywhere()
        and _same(vars(functional), _FUNCTIONAL)
        and all(base in _CODE and _as_imported(base) for base in bases)
        and all(map(_plain_layer, layers))
    )


def settings_of(layer: nn.Module) -> dict[str, Any]:
    """What a layer of torch holds beside its tensors and children."""
    return {
        name: value
        for name, value in vars(layer).items()
        if name not in FIELDS and not name.startswith("_flat_weight")  # of recurrent layers
    }


def _plain_layer(layer: nn.Module) -> bool:
    held = vars(layer)
    weights = [one for one in layer._parameters.values() if one is not None]
    others = [one for one in layer._buffers.values() if one is not None]
    return (
        not any(held.get(name) for name in FIELDS if "_hooks" in name)
        and all(type(one) is nn.Parameter and not _watched(one) for one in weights)
        and all(type(one) in (Tensor, nn.Parameter) and not _watched(one) for one in others)
        and all(map(_setting, settings_of(layer).values()))
    )


def _watched(value: Tensor) -> bool:
    """Whether somebody's code runs when a tensor gets its gradient."""
    return bool(value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None))


def _setting(value: Any) -> bool:
    """Whether a field of a layer is a plain value, or a function of torch, which keeps nothing."""
    if value is None or type(value) in (bool, int, float, str, torch.dtype, torch.device):
        return True
    if isinstance(value, (tuple, list)):
        return type(value) in (tuple, list, torch.Size) and all(map(_setting, value))
    name = getattr(value, "__name__", None)
    if not isinstance(name, str):
        return False
    return value is _FUNCTIONAL.get(name) or (
        type(value) is BuiltinFunctionType and value is vars(torch).get(name)
    )


def keeps_nothing(settings: Settings) -> bool:
    """Whether all the code that a run calls is rsfl's or torch's own, which keeps nothing from one
    call to the next: rule, model, clients, their data, trainers and losses. Schedules are not
    looked at."""
    trainers = {id(one.trainer): one.trainer for one in settings.clients}
    return (
        is_ours(settings.aggregate, *RULES)
        and plain_process()
        and of_torch_alone(settings.model)
        and all(is_ours(one, Client, Remote) for one in settings.clients)
        and all(type(t) is Tensor for t in _data(settings))
        and all(is_ours(one, SGD) and _of_rsfl(vars(one)["loss"]) for one in trainers.values())
    )


def _data(settings: Settings) -> Iterator[Any]:
    """What clients train on: a tensor of another class runs code of its own wherever it is read."""
    for one in settings.clients:
        if type(one) is Client:
            yield from (one.x, one.y)


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
