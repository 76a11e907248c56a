"""What is asked of a model: its modes, the dtypes in which it is smoothed, and whether it is one
affine map.

Dtypes: noise is added with many digits, and the model takes the sum with as many as it has. The
model's own dtype may have few. Rounded before the noise, an input is another one: its certificate
is for a ball around the rounded input, and a perturbed input would be rounded by itself. Rounded
after it, the rounding is a part of the classifier, and the certificate is for the input as it was
given.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["affine_layer", "evaluating", "input_dtype", "widened"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients, each module's own mode restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def input_dtype(model: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype of a model's inputs: that of its first floating point parameter, or that of x if it
    has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)


def widened(x: Tensor) -> Tensor:
    """``x`` in the dtype in which noise is added to it: float32, or its own if that has more
    digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def affine_layer(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """The name prefix and the layer of a model that is one affine map of the flattened input, else
    None.

    That is an ``nn.Linear``, alone or at the end of ``nn.Sequential`` containers whose other
    modules only flatten, and none of which runs hooks or was given a ``forward`` of its own.
    """
    modules = list(
        model.named_modules(remove_duplicate=False)
    )  # one that stands twice computes twice
    if any(_changed(module) for _, module in modules):
        return None
    leaves = [(name, module) for name, module in modules if type(module) is not nn.Sequential]
    if not leaves or type(leaves[-1][1]) is not nn.Linear:
        return None
    *before, (name, last) = leaves
    flat = all(
        type(m) is nn.Identity or (type(m) is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1))
        for _, m in before
    )
    return (f"{name}." if name else "", last) if flat else None


def _changed(module: nn.Module) -> bool:
    """Whether this object computes, or passes back, something else than its class does."""
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    of_gradients = any(parameter._backward_hooks for parameter in module.parameters(recurse=False))
    return bool(hooked) or of_gradients or "forward" in vars(module)
