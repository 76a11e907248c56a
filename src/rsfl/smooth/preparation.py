"""Models made ready for many forward calls: what an inference engine does, where it changes nothing
but rounding."""

import copy
import operator
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsfl._models import answered, as_given, evaluating
from rsfl.smooth.spot import disagreement

__all__ = ["largest_difference", "prepared"]

_FOLDED = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""What is folded into which layer before it."""

_RELU = (functional.relu, torch.relu, "relu")
_ADD = (operator.add, torch.add, "add")


def prepared(
    model: nn.Module,
    x: Tensor,
    *,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
) -> nn.Module:
    """A model that computes what this one computes in evaluation mode, up to rounding, in less
    time.

    Batch normalisations are folded into the layers before them; on a CPU a convolution, the sum
    with a shortcut and the ReLU behind it become one call of oneDNN; images are laid out with
    channels last. Parts whose ``forward`` cannot be traced stay as they are, as do layers with
    hooks, with parametrizations or of a class of somebody's own.

    The model itself is not touched, and shares no parameter or buffer with the new one: training
    either leaves the other as it is. A model that computes with parameters which it does not hold,
    through a function or a list, cannot be copied and is refused. It is the new one that is
    certified where it is given to a smoother: not because it is equivalent, but because its votes
    are counted. Layers that were joined have names of their own, so that none stands for another
    output than it did.

    Args:
        model: Maps a batch of inputs to logits.
        x: A few inputs (B, ...), such as ten of the test set, on which both are compared.
        dtype: Of the new model; its own if None. Normalisations are folded before the conversion,
            which is no part of the comparison: :func:`largest_difference` measures what it costs.
        channels_last: Whether weights of 2-d convolutions are laid out so. False is faster for
            some small networks on a CPU, such as those that flatten a large map: measure both.

    Returns:
        The new model, in evaluation mode, without gradients for its parameters.

    Raises:
        ValueError: The logits for ``x`` differ by more than rounding explains, or the new model
            would compute with weights of this one.
        TypeError: model is no ``nn.Module``.

    Example:
        >>> layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
        >>> model = nn.Sequential(*layers, nn.Linear(8 * 6 * 6, 10))
        >>> x = torch.rand(4, 3, 8, 8)
        >>> fast = prepared(model, x)
        >>> largest_difference(model, fast, x) < 1e-5
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x must be a tensor, got {type(x).__name__}: of a model of several inputs prepare the "
            f"modules inside"
        )
    fast = _rewritten(copy.deepcopy(model).eval()).eval().requires_grad_(False)
    if channels_last:
        fast = fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with evaluating(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
        rows = as_given(model, x)
        before = answered(model(rows.clone()))
        with _OwnWeights(model, fast):
            after = answered(fast(rows.clone()))
    if (apart := disagreement(before, after)) is not None:
        raise ValueError(
            f"model must be one that can be prepared: for x its logits and those of the new model "
            f"differ by {apart:.3g}. One with chance in it, or that answers otherwise when its "
            f"layers are called in another order, is to be used as it is"
        )
    return fast if dtype is None else fast.to(dtype)


def largest_difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest difference of a logit of two models for the inputs x (B, ...), each of which
    takes them in its own dtype.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> largest_difference(model, model, torch.rand(5, 3))
        0.0
    """
    answers = []
    for one in (model, other):
        with evaluating(one), torch.random.fork_rng([x.device] if x.is_cuda else []):
            answers.append(answered(one(as_given(one, x).clone())).double())
    return float((answers[0] - answers[1]).abs().amax())


class _OwnWeights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it lasts, computing with parameters or buffers that the new model does not hold is an
    error."""

    def __init__(self, model: nn.Module, fast: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.other = {id(one) for one in _weights(model)}
        self.own = {id(one) for one in _weights(fast)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for one in tree_leaves((args, kwargs)):
            known = isinstance(one, nn.Parameter) or id(one) in self.other
            if known and id(one) not in self.own:
                raise ValueError(
                    f"model must hold all that it computes with, to be copied, got one that also "
                    f"computes with weights of shape {tuple(one.shape)} through a function, a list "
                    f"or a name: make what holds them a module of the model's"
                )
        return func(*args, **(kwargs or {}))


def _weights(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class _OneCall(nn.Module):
    """The ReLU of a convolution, or of its sum with something else: in one call of oneDNN where
    that is possible."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        layer = self.convolution
        if not _by_onednn(layer, x, other):
            y: Tensor = layer(x)
            return functional.relu(y if other is None else y + other)
        how: tuple[Any, ...] = (layer.padding, layer.stride, layer.dilation, layer.groups)
        call = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            alone: Tensor = call(x, layer.weight, layer.bias, *how, "relu", [], "")
            return alone
        how = *how, "add", 1.0, "relu"
        both: Tensor = call.binary(x, other, layer.weight, layer.bias, *how, [], "")
        return both


def _by_onednn(layer: nn.Conv2d, x: Tensor, other: Tensor | None) -> bool:
    """Whether oneDNN can do it in one call: on a CPU, without gradients."""
    kinds = _onednn_dtypes()
    tensors = [x, layer.weight, *([] if other is None else [other])]
    return (
        x.ndim == 4
        and all(one.device.type == "cpu" and one.dtype == x.dtype for one in tensors)
        and x.dtype in kinds
        and not (torch.is_grad_enabled() and any(one.requires_grad for one in tensors))
        and not torch.is_autocast_enabled("cpu")
        and (other is None or other.shape == _shape(layer, x))
        # of a sum in bfloat16 there is a call for this layout alone
        and (other is None or x.dtype == torch.float32 or (x.stride(1) == 1 < x.stride(3)))
    )


@lru_cache(maxsize=1)
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes for which this processor and this PyTorch have such calls."""
    call = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    if call is None or "binary" not in call.overloads() or not torch._C._has_mkldnn:
        return ()
    half = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return (torch.float32, torch.bfloat16)[: 1 + half]


def _shape(layer: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    """The shape of what a convolution makes of x."""

    def side(axis: int) -> int:
        wide = x.shape[2 + axis] + 2 * int(layer.padding[axis])
        return (wide - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1) // layer.stride[
            axis
        ] + 1

    return len(x), layer.out_channels, side(0), side(1)


def _rewritten(model: nn.Module) -> nn.Module:
    """A model that is ours to change, with its layers joined. What cannot be traced stays, with
    its parts joined one by one."""
    opaque: set[nn.Module] = set()
    for module in _inside_out(model):
        if not _layer(module) and (_hooked(module) or _traced(module, opaque) is None):
            opaque.add(module)
    for module in opaque:
        for name, child in module.named_children():
            if child not in opaque and not _layer(child):
                setattr(module, name, _joined(child, opaque))
    return model if model in opaque or _layer(model) else _joined(model, opaque)


def _inside_out(module: nn.Module) -> Iterator[nn.Module]:
    """A module after all that it is made of."""
    for child in module.children():
        yield from _inside_out(child)
    yield module


def _layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, which is called as a whole, or a list of modules,
    which is not called."""
    own = type(module).__module__.partition(".")[0] == "torch"
    return own and not isinstance(module, nn.Sequential)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Tracer(fx.Tracer):
    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or _layer(m)


def _traced(module: nn.Module, opaque: set[nn.Module]) -> fx.Graph | None:
    """What a module calls, in order; None if that depends on more than the shapes of its input."""
    try:
        graph = _Tracer(opaque).trace(module)
    except Exception:  # a forward of somebody else's may fail in any way with no numbers in it
        return None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return graph if len(inputs) == 1 else None


def _joined(module: nn.Module, opaque: set[nn.Module]) -> nn.Module:
    graph = _traced(module, opaque)
    assert graph is not None
    joined = fx.GraphModule(module, graph, type(module).__name__)
    for name, constant in list(joined.named_buffers(recurse=False)):
        joined.register_buffer(name, constant.detach().clone())  # a trace holds tensors as they are
    _clear(joined)
    _fold(joined)
    _one_by_one(joined)
    joined.delete_all_unused_submodules()
    joined.recompile()
    return joined


class _Calls:
    """The layers that a graph calls, and how often."""

    def __init__(self, joined: fx.GraphModule) -> None:
        self.modules = dict(joined.named_modules(remove_duplicate=False))
        called = [self.modules[str(n.target)] for n in joined.graph.nodes if n.op == "call_module"]
        self.times = Counter(map(id, called))

    def layer(self, node: Any, *kinds: type[nn.Module]) -> nn.Module | None:
        """The layer that a node calls, if it is exactly one of these kinds, called once, with one
        input and without hooks."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        found = self.modules[str(node.target)]
        plain = type(found) in kinds and "forward" not in vars(found) and not _hooked(found)
        once = self.times[id(found)] == 1 and len(node.args) == 1 and not node.kwargs
        return found if plain and once else None


def _clear(joined: fx.GraphModule) -> None:
    """Leave out what changes nothing: a shortcut may be padded by nothing, and copied for it."""
    calls = _Calls(joined)
    for node in list(joined.graph.nodes):
        idle = calls.layer(node, nn.Identity, nn.Dropout, nn.Dropout2d) is not None
        if node.target is functional.pad and len(node.args) > 1:
            idle = _zeros(node.args[1])
        if node.target is operator.getitem:
            cuts = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            idle = all(cut in (slice(None), slice(None, None, 1)) for cut in cuts)
        if idle:
            node.replace_all_uses_with(node.args[0])
            joined.graph.erase_node(node)


def _zeros(padding: Any) -> bool:
    return isinstance(padding, (tuple, list)) and all(type(p) is int and p == 0 for p in padding)


def _fold(joined: fx.GraphModule) -> None:
    """Fold normalisations into the layers before them."""
    calls = _Calls(joined)
    for node in list(joined.graph.nodes):
        norm: Any = calls.layer(node, *_FOLDED.values())
        if norm is None or norm.running_mean is None:
            continue
        before = node.args[0]
        layer: Any = calls.layer(before, *_FOLDED)
        if layer is None or _FOLDED[type(layer)] is not type(norm) or len(before.users) > 1:
            continue
        fold = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        _renamed(joined, before, "normalised", fold(layer, norm))
        node.replace_all_uses_with(before)
        joined.graph.erase_node(node)


def _one_by_one(joined: fx.GraphModule) -> None:
    """Let a convolution, the sum behind it and its ReLU be one call."""
    calls = _Calls(joined)
    order = {node: place for place, node in enumerate(joined.graph.nodes)}
    for node in list(joined.graph.nodes):
        if not (_function(node, _RELU) or calls.layer(node, nn.ReLU)) or not node.all_input_nodes:
            continue
        into = node.args[0]
        parts = [into]
        if _function(into, _ADD) and len(into.args) == 2 and len(into.users) == 1:
            if not all(isinstance(one, fx.Node) for one in into.args):
                continue
            parts = sorted(into.args, key=lambda one: -order[one])  # the later one, the other
        first = parts[0]
        layer: Any = calls.layer(first, nn.Conv2d)
        zeros = layer is not None and layer.padding_mode == "zeros"
        if not zeros or isinstance(layer.padding, str) or len(first.users) > 1:
            continue
        _renamed(joined, first, "relu", _OneCall(layer))
        first.args = (*first.args, *parts[1:])
        node.replace_all_uses_with(first)
        joined.graph.erase_node(node)
        if len(parts) > 1:
            joined.graph.erase_node(into)


def _renamed(joined: fx.GraphModule, node: fx.Node, what: str, layer: nn.Module) -> None:
    """Let a node call another layer, under a name that tells what it does besides: whoever asks for
    the output of the one by its name must not get that of the other."""
    node.target = f"{node.target}_{what}"
    joined.add_submodule(node.target, layer)


def _function(node: Any, functions: tuple[Any, ...]) -> bool:
    """Whether a node calls one of these functions or methods."""
    return node.op in ("call_function", "call_method") and node.target in functions
