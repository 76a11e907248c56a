"""What tells settings, tensors, inputs and models from others, the same in every process: names,
numbers, bytes and code."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from hashlib import sha256
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as _globals

__all__ = [
    "Fingerprint",
    "backend_fingerprint",
    "described",
    "differences",
    "identity",
    "input_hash",
    "layers_hash",
    "model_fingerprint",
    "weights_hash",
]


def described(value: Any) -> str:
    """A text that is the same for equal settings, and differs where tensors, numbers, texts or
    containers of them do.

    Modules and functions count by their names, other objects by their types: they are not looked
    into.
    """
    return _Description(deep=False)(value)


def _plain(tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().reshape(-1)
    return content.view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16


def _tensor(value: Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)} {sha256(_plain(value)).hexdigest()}"


class _Description:
    """A text of a value. A deep one goes into objects, modules and the code of functions, each
    once: whoever refers to itself is named by its place in the walk."""

    def __init__(self, *, deep: bool) -> None:
        self.deep = deep
        self.seen: dict[int, tuple[int, Any]] = {}

    def __call__(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"{value.dtype} {value.shape} {sha256(value.tobytes()).hexdigest()}"
        if value is None or isinstance(
            value, (bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)
        ):
            return repr(value)
        if not self.deep:
            return self._shallow(value)
        if id(value) in self.seen:
            return f"#{self.seen[id(value)][0]}"
        self.seen[id(value)] = (len(self.seen), value)  # which keeps it, and so its id
        return self._shallow(value)

    def _shallow(self, value: Any) -> str:
        if isinstance(value, nn.Module):
            return self._module(value) if self.deep else type(value).__name__
        if is_dataclass(value) and not isinstance(value, type):
            settings = (
                f"{field.name}={self(getattr(value, field.name))}" for field in fields(value)
            )
            return f"{type(value).__name__}({', '.join(settings)})"
        if isinstance(value, partial):
            return f"partial({', '.join(map(self, (value.func, value.args, value.keywords)))})"
        if isinstance(value, Mapping):
            return repr(sorted((self(key), self(one)) for key, one in value.items()))
        if isinstance(value, (set, frozenset)):
            return repr(sorted(map(self, value)))
        if isinstance(value, (list, tuple)):
            return repr(list(map(self, value)))
        return self._object(value) if self.deep else _name(value)

    def _module(self, value: nn.Module) -> str:
        parts = {name: self(part) for name, part in sorted(vars(value).items())}
        return f"{_name(type(value))} {code_of(type(value))} {parts}"

    def _object(self, value: Any) -> str:
        if isinstance(value, MethodType):
            return f"{self(value.__func__)} of {self(value.__self__)}"
        if isinstance(value, FunctionType):
            held = [_content(cell) for cell in value.__closure__ or ()]
            rest = (value.__defaults__, value.__kwdefaults__, held)
            return f"{value.__qualname__} {_code(value.__code__)} {self(list(rest))}"
        if isinstance(value, (type, ModuleType)) or not hasattr(value, "__dict__"):
            return _name(value)
        if type(value).__module__.partition(".")[0] in _ELSEWHERE:
            return _name(type(value))
        return f"{_name(type(value))} {code_of(type(value))} {self(dict(vars(value)))}"


_ELSEWHERE = frozenset({"builtins", "logging", "threading", "weakref", "torch", "_thread", "io"})
"""What holds state of the process, not of what a model computes."""


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was never bound
        return None


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _code(code: CodeType) -> str:
    """A hash of what code does: its instructions, names and constants, wherever it stands."""
    constants = [_constant(one) for one in code.co_consts]
    told = (code.co_code.hex(), *code.co_names, *code.co_varnames, *constants)
    return sha256("\n".join(told).encode()).hexdigest()[:16]


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def code_of(kind: type) -> str:
    """A hash of the code of a class and of those it inherits from. Of torch's own only what a call
    runs: it may have been patched."""
    told = []
    for one in kind.__mro__:
        of_torch = one.__module__.partition(".")[0] == "torch"
        for name, value in sorted(vars(one).items()):
            function = _function(value)
            if isinstance(function, FunctionType) and (not of_torch or name in _CALLED):
                told.append(f"{one.__qualname__} {name} {_code(function.__code__)}")
    return sha256("\n".join(told).encode()).hexdigest()[:16]


def _function(value: Any) -> Any:
    """The function of a method, a property or a wrapper."""
    for attribute in ("__func__", "fget", "func"):
        value = getattr(value, attribute, None) or value
    return value


_CALLED = ("__call__", "_call_impl", "_wrapped_call_impl", "forward")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HELD = frozenset(vars(nn.Module()))
"""What every module has: mode, hooks, parameters, buffers and children, which have parts of their
own."""


def global_hooks() -> list[Callable[..., Any]]:
    """The hooks that torch runs around every module of the process."""
    kinds = ("_global_forward_hooks", "_global_forward_pre_hooks")
    return [hook for kind in kinds for hook in getattr(_globals, kind, {}).values()]


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of the parts of a model, so that what differs can be named.

    Attributes:
        structure: How it prints.
        weights: Names, dtypes, shapes and bytes of parameters and buffers.
        attributes: What its modules hold beside them: numbers, texts, tensors, objects, modules in
            lists.
        code: The code of its classes, of functions that it holds and of its hooks.
        answers: Its logits for some inputs, as bytes; "" where it was not asked.
    """

    structure: str
    weights: str
    attributes: str
    code: str
    answers: str = ""

    @property
    def whole(self) -> str:
        """One hash of all."""
        return _hashed(*(getattr(self, field.name) for field in fields(self)))

    def differs(self, other: "Fingerprint") -> list[str]:
        """The names of the parts in which two differ."""
        return [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


def model_fingerprint(model: nn.Module, answers: Iterable[Tensor] = ()) -> Fingerprint:
    """The fingerprint of a model, and of what it answered.

    What it stores as attributes while it runs makes it another model.
    """
    told: dict[str, list[str]] = {"structure": [_printed(model)], "weights": []}
    told |= {"attributes": [], "code": []}
    for kind in (model.named_parameters(), model.named_buffers()):
        told["weights"] += [f"{name} {type(t).__name__} {_tensor(t)}" for name, t in sorted(kind)]
    walk = _Description(deep=True)
    for _, module in model.named_modules():
        walk.seen[id(module)] = (len(walk.seen), module)  # each has lines of its own
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if name not in _HELD}
        told["attributes"].append(f"{path} {walk(plain)}")
        hooks = [getattr(module, kind) for kind in _HOOKS]
        told["code"].append(
            f"{path} {code_of(type(module))} {walk([list(h.values()) for h in hooks])}"
        )
    told["code"].append(f"global {walk(global_hooks())}")
    told["answers"] = [_tensor(one) for one in answers]
    return Fingerprint(**{name: _hashed(*lines) if lines else "" for name, lines in told.items()})


def backend_fingerprint(
    backend: object, held: Mapping[str, Any], answers: Iterable[Tensor]
) -> Fingerprint:
    """The fingerprint of something that is no model of torch: its name, what it holds, its code and
    its answers."""
    return Fingerprint(
        structure=_hashed(_name(type(backend))),
        weights="",
        attributes=_hashed(_Description(deep=True)(dict(held))),
        code=_hashed(code_of(type(backend))),
        answers=_hashed(*map(_tensor, answers)),
    )


def _printed(model: nn.Module) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # addresses differ between processes


def input_hash(x: Any) -> int:
    """63 bits that tell one input from others by its dtype, shape and bytes; never 0. Of several
    parts, by all that it tells of itself."""
    told = _tensor(x) if isinstance(x, Tensor) else described(x.told())
    return (int(sha256(told.encode()).hexdigest()[:16], 16) >> 1) or 1


def weights_hash(of: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of what a federated model exchanges.

    Args:
        of: A model: its trained parameters, then its floating-point buffers. Or these tensors by
            name in that order, as ``Layout.split`` makes them of a vector.
    """
    if isinstance(of, nn.Module):
        trained = {name: p for name, p in of.named_parameters() if p.requires_grad}
        of = trained | {name: b for name, b in of.named_buffers() if b.is_floating_point()}
    return _hashed(*(f"{name} {_tensor(tensor)}" for name, tensor in of.items()))


def layers_hash(layers: Iterable[nn.Module]) -> str:
    """SHA-256 over layers of torch in their order: classes, settings, and weights with their names,
    dtypes and shapes. Names of classes stand for their code."""
    told = []
    for place, layer in enumerate(layers):
        held = sorted((name, value) for name, value in vars(layer).items() if name not in _HELD)
        weights = [f"{name} {_tensor(value)}" for name, value in layer.named_parameters()]
        told += [f"{place} {type(layer).__qualname__} {held!r}", *weights]
    return _hashed(*told)


def _hashed(*texts: str) -> str:
    return sha256("\n".join(texts).encode()).hexdigest()


_QUOTED = 60
"""Up to so many characters a part is kept as it is; beyond, as a hash of 64."""


def identity(parts: Mapping[str, Any]) -> dict[str, str]:
    """What tells a run from others, by name: two are the same run if all of it agrees.

    Each part as :func:`described`, short ones in words and long ones as a hash.
    """
    told = {name: described(part) for name, part in parts.items()}
    return {
        name: text if len(text) <= _QUOTED else sha256(text.encode()).hexdigest()
        for name, text in told.items()
    }


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """In which parts two runs differ, in words; empty if they are the same."""
    told = []
    for name in dict.fromkeys((*here, *there)):
        ours, theirs = here.get(name), there.get(name)
        if ours != theirs:
            quoted = all(text is not None and len(text) <= _QUOTED for text in (ours, theirs))
            told.append(f"{name} is {theirs} there, {ours} here" if quoted else f"{name} differs")
    return "; ".join(told)
