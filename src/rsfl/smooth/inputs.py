"""Batches of several tensors: what the law touches, and what goes along with it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rsfl._fingerprint import input_hash

__all__ = ["Along", "Batch", "Inputs", "hashes", "joined", "stacked"]

Along: TypeAlias = Mapping[str, Any] | tuple[Any, ...]
"""The parts of a batch as a model takes them, by name or by place: tensors (B, ...), and where the
touched parts belong the shape (torch.Size) that one input has there."""

Batch: TypeAlias = "Tensor | Along | Inputs"
"""What a smoother is given: a tensor (B, ...), or of a structured model the parts of a batch."""


@dataclass(frozen=True)
class Inputs:
    """A batch of inputs of which a law touches a part; or one of them, without the dimension of the
    batch.

    It has the length, shape, dtype and device of what is touched, and is indexed as a tensor is:
    whoever only counts votes need not know that there is more.

    Attributes:
        touched: (B, ...) what noise is added to; of several parts their coordinates, side by side.
        along: What the model gets beside it.
        derived: Whether ``touched`` is what the model makes of ``along``, and so tells nothing
            more.
        of: The structured model that told the parts apart; what is touched for one is not what is
            touched for another.
    """

    touched: Tensor
    along: Along
    derived: bool = False
    of: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.touched)

    @property
    def shape(self) -> torch.Size:
        """That of what is touched."""
        return self.touched.shape

    @property
    def dtype(self) -> torch.dtype:
        """That of what is touched."""
        return self.touched.dtype

    @property
    def device(self) -> torch.device:
        """That of what is touched."""
        return self.touched.device

    def __getitem__(self, rows: int | slice | Tensor | None) -> "Inputs":
        """Some of the inputs, in copies of their own where ``rows`` is a tensor; one where it is a
        number; of one input, a batch where it is None."""
        return replace(self, touched=self.touched[rows], along=self._along(lambda p: p[rows]))

    def __iter__(self) -> Iterator["Inputs"]:
        """One input after the other."""
        return (self[i] for i in range(len(self)))

    def clone(self) -> "Inputs":
        """A copy with tensors of its own."""
        return replace(self, touched=self.touched.clone(), along=self._along(torch.clone))

    def to(self, dtype: torch.dtype, *, copy: bool = False) -> "Inputs":
        """With what is touched in another dtype."""
        along = self._along(torch.clone) if copy else self.along
        return replace(self, touched=self.touched.to(dtype, copy=copy), along=along)

    def holding(self, touched: Tensor) -> "Inputs":
        """These inputs with something else in place of what is touched."""
        return replace(self, touched=touched)

    def under(self, touched: Tensor, rows: Tensor) -> "Inputs":
        """Noisy copies (R, ...) of the inputs ``rows`` (R,): each with what goes along with its
        own."""
        return replace(self, touched=touched, along=self._along(lambda part: part[rows]))

    def filled(self) -> Along:
        """The batch as a model takes it, with what is touched in its places."""
        sizes = [part for part in _parts(self.along) if isinstance(part, torch.Size)]
        if len(sizes) == 1:
            pieces = iter([self.touched])
        else:
            flat = torch.split(self.touched, [size.numel() for size in sizes], dim=1)
            pieces = iter(p.reshape(-1, *s) for p, s in zip(flat, sizes, strict=True))

        def placed(part: Any) -> Any:
            return next(pieces) if isinstance(part, torch.Size) else part

        return _mapped(self.along, placed)

    def told(self) -> tuple[Any, ...]:
        """What tells these inputs from others."""
        return None if self.derived else self.touched, self.along

    def _along(self, function: Callable[[Tensor], Tensor]) -> Along:
        def kept(part: Any) -> Any:
            return part if isinstance(part, torch.Size) else function(part)

        return _mapped(self.along, kept)


def _parts(along: Along) -> Sequence[Any]:
    return list(along.values()) if isinstance(along, Mapping) else along


def _mapped(along: Along, function: Callable[[Any], Any]) -> Along:
    if isinstance(along, Mapping):
        return {name: function(part) for name, part in along.items()}
    return tuple(function(part) for part in along)


def hashes(x: Tensor | Inputs) -> Tensor:
    """(B,) int64, hashes of the inputs."""
    return torch.tensor([input_hash(one) for one in (x.cpu() if isinstance(x, Tensor) else x)])


def joined(parts: Sequence[Inputs]) -> Inputs:
    """One batch of several, whose parts have the same names and shapes."""
    columns = zip(*(_parts(one.along) for one in parts), strict=True)
    along = iter([c[0] if isinstance(c[0], torch.Size) else torch.cat(c) for c in columns])
    touched = torch.cat([one.touched for one in parts])
    return replace(parts[0], touched=touched, along=_mapped(parts[0].along, lambda _: next(along)))


def stacked(parts: Sequence[Any]) -> Any:
    """A batch of single inputs, tensors or of several parts, of one shape.

    Raises:
        ValueError: What goes along has other names or shapes in some.
    """
    if isinstance(parts[0], Tensor):
        return torch.stack(list(parts))
    told = [_shapes(one) for one in parts]
    for other in told:
        if other != told[0]:
            raise ValueError(
                f"inputs must have parts of the same shapes, got {told[0]} and {other}: a "
                f"tokenizer gives them with padding='max_length'"
            )
    return joined([one[None] for one in parts])


def _shapes(one: Inputs) -> list[tuple[Any, ...]]:
    names = one.along if isinstance(one.along, Mapping) else range(len(one.along))
    sizes = [part if isinstance(part, torch.Size) else part.shape for part in _parts(one.along)]
    return [(name, tuple(size)) for name, size in zip(names, sizes, strict=True)]
