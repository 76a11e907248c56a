"""Functions as models: what is called, and the modules that it holds."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

__all__ = ["Called", "as_model"]


class Called(nn.Module):
    """A function as a model.

    The modules that it holds are this module's: in closures, defaults, objects and arguments that
    were given before, and under names that its code looks up. Votes are counted in their evaluation
    mode, in their dtype and on their device, and they tell runs apart.

    Args:
        function: Takes a batch of inputs and returns logits, or an object with ``logits``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.held = nn.ModuleList(_modules(function, set()))

    def extra_repr(self) -> str:
        """What is called."""
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the function returns."""
        return self.function(*inputs, **named)


def as_model(model: Any) -> nn.Module:
    """The model as a module, if it is one or can be called.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        raise TypeError(f"model must be a model, got the class {model.__name__}: call it first")
    if hasattr(model, "certify"):
        raise TypeError(
            f"model must be what a smoother is made of, got {model!r}: "
            f"smoother.module(samples=100) is a smoothed classifier as a module"
        )
    if isinstance(model, Mapping):
        raise TypeError(
            f"model must be a torch.nn.Module, got a {type(model).__name__}: "
            f"model.load_state_dict takes weights"
        )
    if not callable(model):
        raise TypeError(
            f"model must be a torch.nn.Module or a function from batches to logits, got {model!r}"
        )
    return Called(model)


def _modules(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """The outermost modules that a value holds."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    for part in _parts(value):
        yield from _modules(part, seen)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        cells = [held for cell in value.__closure__ or () for held in _content(cell)]
        found = [value.__globals__.get(name) for name in _names(value.__code__)]
        looked_up = [one for one in found if isinstance(one, nn.Module) or _beside(one, value)]
        return [*cells, *defaults, *looked_up]
    own = type(value).__module__.partition(".")[0] not in ("builtins", "torch", "numpy")
    return list(getattr(value, "__dict__", {}).values()) if own else []


def _beside(one: Any, function: FunctionType) -> bool:
    """Whether something is a function of the same file."""
    return isinstance(one, FunctionType) and one.__module__ == function.__module__


def _content(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a name that was never bound
        return []


def _names(code: CodeType) -> set[str]:
    """The names that code looks up, that of functions within it included."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
