"""Smoothing a model's parameters: votes of noisy copies of the model, each asked about all
inputs."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from typing_extensions import override

from rsfl import _heap
from rsfl._checks import count
from rsfl._draws import rekey
from rsfl._models import affine_layer, as_given, held_elsewhere, voting, widened
from rsfl.noise import ParameterGaussian
from rsfl.smooth.module import structure
from rsfl.smooth.spot import asked_twice, probes, unanswered
from rsfl.smooth.voter import Voter
from rsfl.smooth.votes import ESTIMATION, Votes, checked_logits, tally

__all__ = ["ParameterSmoother"]

_MODELS = -1
"""The index under which noisy models are drawn: no input has it."""


class ParameterSmoother(Voter):
    """The class that noisy copies of a model vote for most: Gaussian noise on the parameters, not
    on the input.

    A certificate says how far, in l2, the parameters may move before the smoothed label can change.
    Copy number j is the same for every input, whatever the batch. The model itself is never
    changed.

    Args:
        model: Maps a batch of inputs to logits (B, num_classes). It may write into the batch: it is
            given a copy.
        sigma: Standard deviation of the noise on each parameter, positive.
        num_classes: Width of the logits.
        parameters: Names of the parameters that carry noise, as in ``model.named_parameters()``;
            all by default. With a part of them, the certificate is for models whose other
            parameters are identical. Buffers and tensors that modules hold in other ways never
            carry any, and are to be identical too. The logits have to answer to each of these
            parameters: one that is unused, or used through a copy, is refused by its name.
        memory: Bytes that noisy parameters and their logits may take at a time.
        spot_check: See :class:`Smoother`. That the logits answer to the noise is always checked.

    Example:
        >>> model = nn.Linear(2, 2).double()
        >>> smoother = ParameterSmoother(model, sigma=0.1, num_classes=2)
        >>> smoother.certify(torch.rand(3, 2, dtype=torch.float64)).space
        'parameters'
    """

    model: nn.Module
    law: ParameterGaussian
    default_n = 1000

    def __init__(
        self,
        model: nn.Module,
        sigma: float,
        num_classes: int,
        *,
        parameters: Sequence[str] | None = None,
        memory: int = 2**28,
        spot_check: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if structure(model) is not None:
            raise TypeError(
                f"model must take one tensor, got {type(model).__name__}: noise on parameters "
                f"touches no part of an input, so build the rest into a module"
            )
        places: dict[nn.Module, str] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            if (first := places.setdefault(module, name)) != name:
                raise ValueError(
                    f"model must not use the same module twice, got {first!r} and {name!r} "
                    f"sharing one"
                )
        names = [name for name, _ in model.named_parameters()]
        self.parameters = tuple(names if parameters is None else parameters)
        if not self.parameters or not set(self.parameters) <= set(names):
            raise ValueError(f"parameters must be some of {names}, got {list(self.parameters)}")
        rest = set(self.parameters) < set(names) or any(True for _ in model.buffers())
        law = ParameterGaussian(sigma, partial=rest or held_elsewhere(model))
        super().__init__(law, num_classes, model=model, spot_check=spot_check)
        self.memory = count("memory", memory, 1)

    def noisy(
        self, first: int, last: int, *, seed: int, stage: int = ESTIMATION
    ) -> dict[str, Tensor]:
        """The noisy parameters of the copies ``first`` ... ``last - 1``, stacked along a new first
        dimension."""
        clean = {
            name: value.detach()
            for name, value in self.model.named_parameters()
            if name in self.parameters
        }
        sizes = [value.numel() for value in clean.values()]
        device = next(iter(clean.values())).device
        generator = torch.Generator(device)
        noise = torch.empty((last - first, sum(sizes)), device=device, dtype=torch.float32)
        for row, copy in enumerate(range(first, last)):
            rekey(generator, seed, _MODELS, stage, copy)
            noise[row] = self.law.sample(noise[row].shape, generator=generator, device=device)
        parts = torch.split(noise, sizes, dim=1)
        return {
            name: (widened(value) + part.view(-1, *value.shape)).to(value.dtype)
            for (name, value), part in zip(clean.items(), parts, strict=True)
        }

    @override
    def dim(self, x: object) -> int:
        return sum(
            value.numel()
            for name, value in self.model.named_parameters()
            if name in self.parameters
        )

    def _way(self, x: Tensor) -> Literal["wide", "vmap", "loop"]:
        """How copies are evaluated: one affine layer as a single wide product; elsewhere one by one
        where that is fastest, on a CPU, and stacked where launches would dominate."""
        if affine_layer(self.model) is not None:
            return "wide"
        return "loop" if x.device.type == "cpu" else "vmap"

    @override
    def spot(self, x: Tensor) -> None:
        rows = probes(as_given(self.model, x[:1]))
        if self.spot_check:
            asked_twice(self.model, rows, self.num_classes)
        if silent := unanswered(self.model, rows, self.parameters, self.law.sigma):
            raise ValueError(
                f"parameters must be those that the logits answer to, got {silent}, to which they "
                f"do not: unused, or used through a copy that noise does not reach. Without them, "
                f"parameters={[name for name in self.parameters if name not in silent]}"
            )

    @override
    def count(
        self,
        x: Tensor,
        index: Tensor,
        start: int,
        stop: int,
        *,
        seed: int,
        stage: int = ESTIMATION,
        batch_size: int | None = None,
    ) -> Votes:
        x = as_given(self.model, x)
        way = self._way(x)
        size = min(len(x), 1000 if batch_size is None else count("batch_size", batch_size, 1))
        counts = torch.zeros((len(x), self.num_classes + 1), dtype=torch.int64, device=x.device)
        # Elsewhere than in the loop the logits of all copies are held at once, for one batch of
        # inputs.
        bytes_a_copy = 8 * (self.dim(x) + (0 if way == "loop" else 2 * size * self.num_classes))
        chunk = 1 if way == "loop" else max(1, self.memory // bytes_a_copy)
        inputs = torch.arange(len(x), device=x.device)
        with voting(self.model), _heap.kept():
            for first in range(start, stop, chunk):
                copies = self.noisy(first, min(first + chunk, stop), seed=seed, stage=stage)
                if way == "loop":
                    batched = {f"model.{name}": value[0] for name, value in copies.items()}
                    tally(
                        functional_call(
                            _InBatches(self.model, size, self.num_classes), batched, (x,)
                        ),
                        inputs,
                        counts,
                    )
                    continue
                m = len(next(iter(copies.values())))
                for rows in torch.split(inputs, size):
                    stacked = self._stacked_logits(copies, x[rows[0] : rows[-1] + 1], way).flatten(
                        0, 1
                    )
                    logits = checked_logits(stacked, len(rows) * m, self.num_classes)
                    tally(logits, rows.repeat_interleave(m), counts)
        return Votes(counts[:, :-1], counts[:, -1])

    def _stacked_logits(self, copies: dict[str, Tensor], x: Tensor, way: str) -> Tensor:
        """Logits (B, copies, K) of all copies for all inputs."""
        layer = affine_layer(self.model) if way == "wide" else None
        if layer is None:
            stacked: Tensor = vmap(
                lambda copy: functional_call(self.model, copy, (x.clone(),)), out_dims=1
            )(copies)
            return stacked
        # One product for all copies: the weights of all classes of all copies side by side.
        prefix, linear = layer
        m = len(next(iter(copies.values())))
        weight = copies.get(f"{prefix}weight", linear.weight.detach()[None])
        weight = weight.expand(m, *weight.shape[1:])
        logits = (x.flatten(1) @ weight.reshape(-1, weight.shape[-1]).T).view(len(x), m, -1)
        if linear.bias is not None:
            logits += copies.get(f"{prefix}bias", linear.bias.detach()[None])
        return logits


class _InBatches(nn.Module):
    """A model that takes its inputs a batch at a time: exchanging its parameters is paid once for
    all of them."""

    def __init__(self, model: nn.Module, size: int, num_classes: int) -> None:
        super().__init__()
        self.model, self.size, self.num_classes = model, size, num_classes

    def forward(self, x: Tensor) -> Tensor:
        # The model may write into its input: the next copy shall find what this one found, and so
        # shall the caller.
        parts = (part.clone() for part in torch.split(x, self.size))
        return torch.cat(
            [checked_logits(self.model(part), len(part), self.num_classes) for part in parts]
        )
