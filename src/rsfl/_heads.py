"""Linear heads: models that are one affine map of what frozen layers make of an input."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsfl._fingerprint import layers_hash
from rsfl._models import FIELDS, affine_layer, hooked_everywhere, untouched

__all__ = ["Head", "linear_head"]

_LAYERS: dict[type[nn.Module], Callable[[], nn.Module]] = {
    nn.Identity: nn.Identity,
    nn.Flatten: nn.Flatten,
    nn.Linear: lambda: nn.Linear(1, 1, device="meta"),
    nn.Conv1d: lambda: nn.Conv1d(1, 1, 1, device="meta"),
    nn.Conv2d: lambda: nn.Conv2d(1, 1, 1, device="meta"),
    nn.MaxPool1d: lambda: nn.MaxPool1d(1),
    nn.MaxPool2d: lambda: nn.MaxPool2d(1),
    nn.AvgPool1d: lambda: nn.AvgPool1d(1),
    nn.AvgPool2d: lambda: nn.AvgPool2d(1),
    nn.AdaptiveAvgPool1d: lambda: nn.AdaptiveAvgPool1d(1),
    nn.AdaptiveAvgPool2d: lambda: nn.AdaptiveAvgPool2d(1),
    nn.ReLU: nn.ReLU,
    nn.LeakyReLU: nn.LeakyReLU,
    nn.ELU: nn.ELU,
    nn.GELU: nn.GELU,
    nn.SiLU: nn.SiLU,
    nn.Softplus: nn.Softplus,
    nn.Tanh: nn.Tanh,
    nn.Sigmoid: nn.Sigmoid,
}
"""Layers that treat each sample on its own and do the same in both modes. Dropout and the batch
statistics of BatchNorm do not: training switches every layer into its training mode."""

_KNOWN = {kind: frozenset(vars(make())) for kind, make in _LAYERS.items()}
_KNOWN[nn.Sequential] = frozenset(vars(nn.Sequential()))
_CODE = {kind: dict(vars(kind)) for kind in _KNOWN}
"""The classes as they were imported, and what their objects hold."""

_CALLS = {
    name: getattr(functional, name)
    for name in (
        *("linear", "conv1d", "conv2d", "pad", "relu", "leaky_relu", "elu", "gelu", "silu"),
        *("softplus", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    )
}
_BATCHED: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4}
"""Dimensions of a batch. With one less, a convolution takes the samples for channels of one."""


@dataclass(frozen=True, eq=False)
class Head:
    """An affine layer, and the frozen layers before it.

    Args:
        prefix: What the names of the layer's parameters begin with in the model.
        layer: The affine layer.
        frozen: What its inputs come of, in order; nothing where they are the flattened inputs.
    """

    prefix: str
    layer: nn.Linear
    frozen: tuple[nn.Module, ...] = ()

    def features(self, x: Tensor) -> Tensor:
        """What the affine layer sees of inputs (N, ...), as rows (N, d).

        Raises:
            ValueError: The frozen layers make no rows of these inputs.
            RuntimeError: They cannot take them.
        """
        if not self.frozen:
            return x.flatten(1)
        with torch.no_grad():
            z = x.clone()  # a layer may work in place
            for layer in self.frozen:
                if z.ndim != _BATCHED.get(type(layer), z.ndim):
                    raise ValueError(f"x must be a batch for {layer}, got {tuple(z.shape)}")
                z = layer(z)
        if z.shape != (len(x), self.layer.in_features):
            raise ValueError(
                f"x must become rows of {self.layer.in_features} features, got {tuple(z.shape)} "
                f"of {tuple(x.shape)}"
            )
        return z

    @property
    def fingerprint(self) -> str:
        """A hash of the frozen layers, their order, settings and weights; empty without any."""
        return layers_hash(self.frozen) if self.frozen else ""


def linear_head(model: nn.Module) -> Head | None:
    """The affine layer of a model and the frozen layers before it; None where a model is something
    else.

    That is a model that :func:`affine_layer` knows, or an ``nn.Sequential`` whose last module is a
    trained ``nn.Linear`` and whose others are layers of torch without hooks, fields or code of
    their own, which treat each sample on its own, have no modes, and train nothing; all in float64.
    """
    found = affine_layer(model)
    if found is not None:
        return Head(*found)
    if hooked_everywhere() or type(model) is not nn.Sequential or not len(model):
        return None
    if any(getattr(functional, name) is not call for name, call in _CALLS.items()):
        return None
    modules = list(model.named_modules(remove_duplicate=False))
    if not all(_known(module) for _, module in modules):
        return None
    *frozen, (name, last) = (one for one in modules if type(one[1]) is not nn.Sequential)
    if type(last) is not nn.Linear or last is not model[-1]:
        return None
    layers = tuple(module for _, module in frozen)
    return Head(f"{name}.", last, layers) if _apart(layers, last) else None


def _known(module: nn.Module) -> bool:
    """Whether a module is one of the layers, and does what its class did when it was imported."""
    kind = type(module)
    if kind not in _KNOWN or not untouched(module, _KNOWN[kind]) or module._buffers:
        return False
    code, known = vars(kind), _CODE[kind]
    if len(code) != len(known) or not all(map(is_, map(code.get, known), known.values())):
        return False
    # A number of another class may say something else each time.
    held = (value for name, value in vars(module).items() if name not in FIELDS)
    return all(map(_plain, held)) and not (kind is nn.Flatten and module.start_dim != 1)


def _plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _apart(frozen: tuple[nn.Module, ...], last: nn.Linear) -> bool:
    """Whether all of the last layer is trained and nothing before it, in float64 and in memory of
    its own."""
    before = [p for module in frozen for p in module.parameters()]
    trained = list(last.parameters())
    memory = {p.untyped_storage().data_ptr() for p in trained}
    return (
        all(p.requires_grad for p in trained)
        and not any(p.requires_grad for p in before)
        and all(p.dtype == torch.float64 for p in (*trained, *before))
        and not any(p.untyped_storage().data_ptr() in memory for p in before)
    )
