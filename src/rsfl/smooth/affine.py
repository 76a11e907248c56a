"""Models that are one affine map, whose noisy copies are cheap and whose votes are known exactly."""

from torch import nn

__all__ = ["affine_layer"]


def affine_layer(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """The name prefix and the layer of a model that is one affine map of the flattened input, else None.

    That is an ``nn.Linear``, alone or at the end of ``nn.Sequential`` containers whose other modules only flatten, and
    none of which runs hooks or was given a ``forward`` of its own.
    """
    modules = list(model.named_modules(remove_duplicate=False))  # one that stands twice computes twice
    if any(_changed(module) for _, module in modules):
        return None
    leaves = [(name, module) for name, module in modules if type(module) is not nn.Sequential]
    if not leaves or type(leaves[-1][1]) is not nn.Linear:
        return None
    *before, (name, last) = leaves
    flat = all(
        type(m) is nn.Identity or (type(m) is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1)) for _, m in before
    )
    return (f"{name}." if name else "", last) if flat else None


def _changed(module: nn.Module) -> bool:
    """Whether this object computes, or passes back, something else than its class does."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    of_gradients = any(parameter._backward_hooks for parameter in module.parameters(recurse=False))
    return bool(hooked) or of_gradients or "forward" in vars(module)
