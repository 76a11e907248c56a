"""The exchanged part of a model as one vector: trained parameters first, floating-point buffers
after them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._fingerprint import weights_hash

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of what clients and server send each other, and where each lies in the
    vector.

    Frozen parameters and integer buffers stay where they are: they are the same in every copy of
    the model. Who sends a whole state dict sends them back as well; nobody reads them.

    Args:
        shapes: Shape of each exchanged tensor, in order.
        parameters: How many of them are trained parameters; the rest are buffers, which are
            averaged but neither clipped nor perturbed with the parameters.
        dtype: Their common floating-point type.
        fixed: Names of what stays.
    """

    shapes: Mapping[str, torch.Size]
    parameters: int
    dtype: torch.dtype
    fixed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        """The layout of a model.

        Raises:
            ValueError: No parameter is trained, or the floating-point types are mixed.
        """
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
        dtypes = {str(tensor.dtype) for tensor in (*trained.values(), *buffers.values())}
        if not trained or len(dtypes) > 1:
            raise ValueError(
                f"model must have trained parameters of one floating-point type, got "
                f"{sorted(dtypes)}"
            )
        shapes = {name: tensor.shape for name, tensor in (trained | buffers).items()}
        fixed = frozenset(model.state_dict()) - shapes.keys()
        return cls(shapes, len(trained), next(iter(trained.values())).dtype, fixed)

    @property
    def trained(self) -> int:
        """How many coordinates of the vector are trained parameters."""
        return sum(shape.numel() for shape in list(self.shapes.values())[: self.parameters])

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Views of a vector (d,) or of rows (C, d) by name, each of its own shape behind the
        leading ones."""
        pieces = torch.split(rows, [shape.numel() for shape in self.shapes.values()], dim=-1)
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.reshape(*rows.shape[:-1], *shape) for (name, shape), piece in named}

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The vector of these tensors, a copy; others in the mapping are left out."""
        # Unbound: whatever was put into the fields of a tensor is not asked.
        flat = [Tensor.reshape(Tensor.detach(tensors[name]), (-1,)) for name in self.shapes]
        return torch.cat(flat).clone() if len(flat) == 1 else torch.cat(flat)

    def hashed(self, vector: Tensor) -> str:
        """The hash of a vector as certificates compare it: `rsfl._fingerprint.weights_hash`."""
        return weights_hash(self.split(vector))

    def read(self, model: nn.Module) -> Tensor:
        """The vector of a model."""
        return self.vector(dict(self._tensors(model)))

    def write(self, model: nn.Module, vector: Tensor) -> nn.Module:
        """Put the vector into the model, and give it back."""
        values = self.split(vector)
        with torch.no_grad():
            for name, tensor in self._tensors(model):
                tensor.copy_(values[name])
        return model

    def _tensors(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in self.shapes:
                yield name, tensor

    def problem(self, reply: Any) -> str:
        """Why this is not a model that was asked for, in words; empty if it is one.

        Only exact types pass: a subclass of a dict or of a tensor answers with code of its own,
        whatever it is asked, and would run it wherever the reply is used.
        """
        if reply is None:
            return "sent nothing"
        if type(reply) is not dict:
            return f"sent a {type(reply).__name__}, not a plain dict of tensors"
        if any(type(name) is not str for name in reply):
            return "sent keys that are not plain texts"
        missing = [name for name in self.shapes if name not in reply]
        extra = [name for name in reply if name not in self.shapes and name not in self.fixed]
        if missing or extra:
            return f"sent the wrong keys: missing {missing!r}, unexpected {extra!r}"
        for name, shape in self.shapes.items():
            value = reply[name]
            if type(value) is not Tensor or value.dtype != self.dtype:
                kind = value.dtype if type(value) is Tensor else type(value).__name__
                return f"sent {name!r} as {kind} instead of {self.dtype}"
            if value.layout is not torch.strided or value.is_meta:
                return f"sent {name!r} as something other than plain numbers"
            if value.shape != shape:
                return f"sent {name!r} of shape {tuple(value.shape)} instead of {tuple(shape)}"
            if _beyond(value):
                return f"sent {name!r} with less memory than its shape takes"
        return ""


def _beyond(value: Tensor) -> bool:
    """Whether reading the tensor would leave its memory."""
    last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    end = (value.storage_offset() + last + 1) * value.element_size()
    return bool(value.numel()) and end > value.untyped_storage().nbytes()
