"""Models whose inputs are more than one tensor: which part the law touches, or at which place."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from rsfl._models import evaluating
from rsfl.smooth.inputs import Along, Inputs, joined

__all__ = ["At", "Parts", "Structured"]


class Structured(nn.Module):
    """A model, and what of its inputs a law touches.

    A batch is a mapping of tensors (B, ...), which the model gets as keywords, or a tuple of them,
    which it gets in their order. A smoother of such a model takes such batches wherever others
    take tensors.

    Args:
        model: Returns logits, or an object with ``logits``.

    Attributes:
        touched: What is touched, in words, as certificates say it.
    """

    touched: str

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        self.model = model

    @abstractmethod
    def split(self, batch: Any) -> Inputs:
        """The batch as a law sees it, differentiable.

        Raises:
            TypeError: It is no batch of tensors.
            ValueError: It has other parts, or another number of rows in some.
        """

    @abstractmethod
    def forward(self, inputs: Inputs) -> Any:
        """What the model answers."""

    def checked(self, batch: Any) -> Inputs:
        """The batch as certificates are about it: a function of each input by itself, whatever
        stands beside it."""
        if isinstance(batch, Inputs):
            return self.own(batch)
        along = self._batch(batch)
        rows = len(next(iter(_tensors(along).values())))
        with evaluating(self.model):
            return joined([self.split(_row(along, i)) for i in range(rows)])

    def own(self, inputs: Inputs) -> Inputs:
        """Inputs whose parts were told apart before, if that was for this model.

        Raises:
            ValueError: It was for another one, of which something else is touched.
        """
        if inputs.of is not self:
            raise ValueError(
                f"batch must be told apart by this model, which touches {self.touched}, got inputs "
                f"of {'another' if inputs.of is None else inputs.of.touched}: give the batch itself"
            )
        return inputs

    def single(self, parts: Any) -> Inputs:
        """One input of a data set, whose parts have no dimension for a batch."""
        return self.checked(_mapped(parts, lambda part: torch.as_tensor(part)[None]))[0]

    def _ask(self, batch: Along) -> Any:
        return self.model(**batch) if isinstance(batch, Mapping) else self.model(*batch)

    def _batch(self, batch: Any) -> Along:
        """The parts on the model's device, if they are tensors of as many rows."""
        along = _mapped(batch, lambda part: part)
        parts = _tensors(along)
        for name, part in parts.items():
            if not isinstance(part, Tensor) or part.ndim == 0:
                raise TypeError(
                    f"batch[{name!r}] must be a tensor with a row for each input, got "
                    f"{type(part).__name__}: a tokenizer gives tensors with return_tensors='pt'"
                )
        rows = {name: len(part) for name, part in parts.items()}
        if not parts or len(set(rows.values())) > 1 or 0 in rows.values():
            raise ValueError(f"batch must have as many rows in each part, at least 1, got {rows}")
        device = next((p.device for p in self.parameters()), next(iter(parts.values())).device)
        return _mapped(along, lambda part: part.to(device))


def _mapped(batch: Any, function: Callable[[Any], Any]) -> Along:
    if isinstance(batch, Mapping):
        return {str(name): function(part) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(function(part) for part in batch)
    if isinstance(batch, Tensor):
        return (function(batch),)
    raise TypeError(
        f"batch must be a mapping or tuple of tensors, got {type(batch).__name__}: a tokenizer "
        f"gives one with return_tensors='pt', a DataLoader one after the other"
    )


def _tensors(along: Along) -> dict[str | int, Any]:
    """The parts by name or place."""
    return dict(along.items() if isinstance(along, Mapping) else enumerate(along))


def _apart(parts: Mapping[str | int, Tensor], chosen: Sequence[str | int]) -> None:
    """Raise ValueError where a part that goes along is the memory of one that is touched: who moves
    one moves both, and the model could read from it what noise should hide."""
    starts = {(parts[name].data_ptr(), parts[name].device): name for name in chosen}
    for name, part in parts.items():
        other = starts.get((part.data_ptr(), part.device))
        if name not in chosen and other is not None and part.numel():
            raise ValueError(
                f"batch[{name!r}] must not be the same tensor as batch[{other!r}], which carries "
                f"noise: what goes along stays as it is. Make it of the noisy part inside the "
                f"model, or name both"
            )


def _row(along: Along, i: int) -> Along:
    return _mapped(along, lambda part: part[i : i + 1])


class Parts(Structured):
    """A model of several inputs, some of which a law touches: the rest goes along as it is.

    Args:
        model: Takes the parts of a batch as keywords, if it is a mapping, or in their order.
        *names: The parts that are touched, by name or by place. Several are touched together: the
            radius is a norm over all of their coordinates.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> from rsfl.smooth import Smoother
        >>> class Masked(nn.Module):
        ...     def forward(self, pixels, mask):
        ...         return torch.stack([(pixels * mask).sum(1), torch.zeros(len(mask))], 1)
        >>> smoother = Smoother(Parts(Masked(), "pixels"), Gaussian(0.5), num_classes=2)
        >>> mask = torch.tensor([[1.0, 1.0, 0.0]])
        >>> batch = {"pixels": torch.tensor([[0.9, 0.2, -7.0]]), "mask": mask}
        >>> smoother.certify(batch, n=1000).label
        tensor([0])
    """

    def __init__(self, model: nn.Module, *names: str | int) -> None:
        super().__init__(model)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"names must be different parts of the batch, at least 1, got {names}")
        self.names = names
        self.touched = " and ".join(map(str, names))

    @override
    def split(self, batch: Any) -> Inputs:
        along = self._batch(batch)
        parts = _tensors(along)
        if unknown := [name for name in self.names if name not in parts]:
            raise ValueError(f"batch must have {unknown[0]!r}, got the parts {list(parts)}")
        chosen = {name: part for name, part in parts.items() if name in self.names}
        for name, part in chosen.items():
            if not part.is_floating_point():
                raise TypeError(
                    f"batch[{name!r}] must have a floating point dtype to carry noise, got "
                    f"{part.dtype}: smooth.At(model, 'name of a module') adds noise to what a "
                    f"module, such as the embeddings, makes of numbers that name things"
                )
        several = len(chosen) > 1
        pieces = [part.reshape(len(part), -1) if several else part for part in chosen.values()]
        holes = {name: part.shape[1:] for name, part in chosen.items()}
        filled = [holes.get(name, part) for name, part in parts.items()]
        names = map(str, parts)
        rest = dict(zip(names, filled, strict=True)) if isinstance(along, Mapping) else filled
        touched = torch.cat(pieces, dim=1) if several else pieces[0]
        _apart(parts, list(chosen))
        return Inputs(touched, rest if isinstance(rest, dict) else tuple(rest), of=self)

    @override
    def forward(self, inputs: Inputs) -> Any:
        return self._ask(inputs.filled())


class At(Structured):
    r"""A model with the law at the output of one of its modules: noise on the embeddings of a text,
    or on a layer's features.

    A certificate speaks of that output: the label is the same for every tensor within the radius
    of what the module gives for this input, the rest of the batch unchanged. It is not a
    statement about other texts, unless their embeddings lie within the radius.

    Args:
        model: Takes the batch: keywords of a mapping, the entries of a tuple, or one tensor.
        place: Name of the module, as ``model.named_modules()`` has it. It must run once in each
            pass, and give one tensor (B, ...).

    Example:
        >>> from rsfl.noise import Gaussian
        >>> from rsfl.smooth import Smoother
        >>> model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
        >>> smoother = Smoother(At(model, "0"), Gaussian(0.1), num_classes=2)
        >>> certificate = smoother.certify(torch.tensor([[3, 1]]), n=1000)
        >>> certificate.touched
        'the output of 0'
    """

    def __init__(self, model: nn.Module, place: str) -> None:
        super().__init__(model)
        names = [name for name, _ in model.named_modules() if name]
        if place not in names:
            raise ValueError(
                f"place must be the name of one of the model's modules, got {place!r}; the first "
                f"are {names[:8]}"
            )
        self.place = place
        self.touched = f"the output of {place}"

    @override
    def split(self, batch: Any) -> Inputs:
        along = self._batch(batch)
        found: list[Tensor] = []

        def seen(out: Tensor) -> None:
            found.append(out.clone())  # the next module may write into it

        self._through(_mapped(along, torch.clone), seen)  # and the model into its inputs
        rows = len(next(iter(_tensors(along).values())))
        if len(found[0]) != rows:
            raise ValueError(
                f"place must be a module with a row for each of {rows} inputs, got "
                f"{tuple(found[0].shape)} from {self.place!r}"
            )
        return Inputs(found[0], along, derived=True, of=self)

    @override
    def forward(self, inputs: Inputs) -> Any:
        return self._through(inputs.along, lambda _: inputs.touched)

    def _through(self, along: Along, act: Callable[[Tensor], Tensor | None]) -> Any:
        """The model's answer, with its module's output seen, or replaced, by ``act``."""
        calls, thread = 0, get_ident()

        def hook(_: nn.Module, given: Any, out: Any) -> Any:
            nonlocal calls
            if get_ident() != thread:  # another one asks the same model about its own inputs
                return None
            calls += 1
            if not (isinstance(out, Tensor) and out.is_floating_point()):
                raise TypeError(
                    f"place must be a module that gives one floating point tensor, got "
                    f"{type(out).__name__} from {self.place!r}"
                )
            return act(out)

        handle = self.model.get_submodule(self.place).register_forward_hook(hook)
        try:
            answer = self._ask(along)
        finally:
            handle.remove()
        if calls != 1:
            raise ValueError(
                f"place must be a module that runs once in each pass, got {calls} calls of "
                f"{self.place!r}"
            )
        return answer
