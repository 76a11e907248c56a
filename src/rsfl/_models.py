"""What is asked of a model: its modes, the dtypes in which it is smoothed, and whether it is one
affine map.

Dtypes: noise is added with many digits, and the model takes the sum with as many as it has. The
model's own dtype may have few. Rounded before the noise, an input is another one: its certificate
is for a ball around the rounded input, and a perturbed input would be rounded by itself. Rounded
after it, the rounding is a part of the classifier, and the certificate is for the input as it was
given.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as _everywhere

__all__ = [
    "FIELDS",
    "affine_layer",
    "answered",
    "as_given",
    "evaluating",
    "held_elsewhere",
    "hooked_everywhere",
    "input_dtype",
    "untouched",
    "voting",
    "widened",
]

_lock = Lock()
_evaluated: dict[int, tuple[nn.Module, bool, int]] = {}
"""Of every module that is being evaluated, whichever threads do it: the mode that it was in, and
how many blocks are open. By id, as a module may be equal to another."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients. Each module's own mode is restored when the last block that
    holds it ends, of whichever model and thread."""
    modules = list(model.modules())
    with _lock:
        for module in modules:
            _, mode, blocks = _evaluated.get(id(module), (module, module.training, 0))
            _evaluated[id(module)] = module, mode, blocks + 1
        if any(map(_to_switch, modules)):  # switching takes most of the time
            model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        with _lock:
            for module in modules:
                _, mode, blocks = _evaluated.pop(id(module))
                if blocks > 1:
                    _evaluated[id(module)] = module, mode, blocks - 1
                elif module.training != mode:
                    module.training = mode


def _to_switch(module: nn.Module) -> bool:
    """Whether a module is in training mode, or may have parts of which torch does not know."""
    kind, own = type(module), vars(module)
    return (
        module.training
        or kind.train is not nn.Module.train
        or kind.eval is not nn.Module.eval
        or kind.children is not nn.Module.children
        or kind.named_children is not nn.Module.named_children
        or "train" in own
        or "eval" in own
    )


@contextmanager
def voting(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while votes are counted, to the last of them.

    Raises:
        ValueError: A module was put in another mode meanwhile, by the model itself or by another
            thread: the votes may be those of several classifiers.
    """
    with evaluating(model):
        modes = [(module, module.training) for module in model.modules()]
        yield
        if any(module.training != mode for module, mode in modes):
            raise ValueError(
                "model must stay in evaluation mode while it votes, got one that left it: train() "
                "inside forward, or in another thread, would void every certificate"
            )


def input_dtype(model: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype of a model's inputs: that of its first floating point parameter, or that of x if it
    has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)


def answered(answer: object) -> Tensor:
    """The logits of what a model returned: itself, or what it holds under that name."""
    logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"model must return a tensor of logits, or an object with logits, got "
            f"{type(answer).__name__}"
        )
    return logits


def as_given(model: nn.Module, x: Tensor) -> Tensor:
    """``x`` in the dtype of the model's inputs. Whole numbers stay what they are: names of
    things."""
    return x.to(input_dtype(model, x)) if x.is_floating_point() else x


def widened(x: Tensor) -> Tensor:
    """``x`` in the dtype in which noise is added to it: float32, or its own if that has more
    digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


_OURS: dict[type[nn.Module], tuple[frozenset[str], Callable[..., object]]] = {
    kind: (frozenset(vars(plain)), kind.forward)
    for kind, plain in (
        (nn.Linear, nn.Linear(1, 1, device="meta")),  # which draws nothing
        (nn.Flatten, nn.Flatten()),
        (nn.Identity, nn.Identity()),
        (nn.Sequential, nn.Sequential()),
    )
}
"""The classes that are known to the last field: what their objects hold, and what they compute."""

_CALL = nn.Module.__call__, nn.Module._call_impl, nn.functional.linear


def affine_layer(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """The name prefix and the layer of a model that is one affine map of the flattened input, else
    None.

    That is an ``nn.Linear``, alone or at the end of ``nn.Sequential`` containers whose other
    modules only flatten. Each is recognised by its exact class and by its fields, none of which
    was added or replaced: no hook of its own or of all modules, no ``forward`` of the object or put
    into the class, no parametrization, no parameter of another class.
    """
    if hooked_everywhere() or (nn.Module.__call__, nn.Module._call_impl) != _CALL[:2]:
        return None
    if nn.functional.linear is not _CALL[2]:
        return None
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


FIELDS = frozenset(vars(nn.Module()))
"""What every module has."""


def held_elsewhere(model: nn.Module) -> bool:
    """Whether its modules hold tensors, arrays or other modules in another way than as parameters,
    buffers and children: as attributes, in lists, in objects or closures."""
    seen = {id(part) for kind in (model.modules(), model.parameters()) for part in kind}
    seen |= {id(buffer) for buffer in model.buffers()}

    def holds(value: object) -> bool:
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type, ModuleType)):
            return False
        seen.add(id(value))
        kept.append(value)  # an id is one object's only while it lives
        if isinstance(value, (Tensor, np.ndarray, nn.Module)):
            return True
        return any(holds(part) for part in _parts(value))

    kept: list[object] = []
    return any(
        holds(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in FIELDS
    )


def _parts(value: object) -> list[object]:
    """What a container, a function or an object holds."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _bound(cell)]
        return [*cells, *(value.__defaults__ or ())]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    of_the_process = type(value).__module__.partition(".")[0] in ("torch", "logging", "threading")
    return [] if of_the_process else list(getattr(value, "__dict__", {}).values())


def _bound(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def hooked_everywhere() -> bool:
    """Whether torch runs hooks around every module of the process."""
    return any(
        getattr(_everywhere, f"_global_{kind}_hooks", None)
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
    )


def _changed(module: nn.Module) -> bool:
    """Whether this object may compute, or pass back, something else than its class did when it was
    imported."""
    if type(module) not in _OURS:
        return True
    held, forward = _OURS[type(module)]
    if not untouched(module, held) or type(module).forward is not forward:
        return True
    return bool(module._buffers or (type(module) is not nn.Linear and module._parameters))


def untouched(module: nn.Module, held: frozenset[str]) -> bool:
    """Whether a module holds no more than these fields, no hooks, and parameters of torch's own
    class alone."""
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    if hooked or not (vars(module).keys() <= held):
        return False
    parameters = [p for p in module._parameters.values() if p is not None]
    return not any(type(p) is not nn.Parameter or p._backward_hooks for p in parameters)
